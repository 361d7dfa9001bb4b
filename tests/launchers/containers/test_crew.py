"""How peers in containers ended, and what is done about those that go on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from p2p_dml import config
from p2p_dml.errors import ExitCode, StartupError
from p2p_dml.events import Event, EventLog, Finished, Joined, RoundDone, event_file, read_events
from p2p_dml.launchers import process
from p2p_dml.launchers.containers import crew as crews
from p2p_dml.launchers.containers import docker
from p2p_dml.launchers.containers.crew import Containers, fate
from p2p_dml.launchers.containers.docker import Container

BASE: Mapping[str, object] = {"peers": 3, "rounds": 2, "strategy": "dpsgd", "links": "ring"}


ENDED = Container(
    id="1",
    service="peer-000",
    status="exited",
    exit_code=0,
    is_out_of_memory=False,
)


@pytest.mark.parametrize(
    ("container", "said", "code", "why"),
    [
        (replace(ENDED, exit_code=3), "no hello from peer 2", 3, "no hello from peer 2"),
        (replace(ENDED, exit_code=127), "", 127, "exit code 127 and said nothing"),
        (replace(ENDED, exit_code=137), "round 3", -9, "killed by signal 9 (Killed)"),
        (replace(ENDED, exit_code=139), "", -11, "signal 11 (Segmentation fault)"),
        (replace(ENDED, exit_code=255), "", 255, "exit code 255 and said nothing"),
        (replace(ENDED, exit_code=137, is_out_of_memory=True), "", -9, "memory_mb = 300"),
        (None, "", -9, "removed"),
    ],
)
def test_how_a_peer_ended_is_read_from_its_container(
    container: Container | None, said: str, code: int, why: str
) -> None:
    found, reason = fate(container, 300, said)
    assert found == code
    assert why in reason


def test_without_a_limit_the_machine_was_out_of_memory() -> None:
    _, why = fate(replace(ENDED, exit_code=137, is_out_of_memory=True), None, "")
    assert why == "its container ran out of memory: it used all there is"


class _Engine:
    """Containers in memory in place of docker's; every call of `tell` is taken down."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num: int) -> None:
        self.now = 0.0
        self.told: list[tuple[str, ...]] = []
        self.said: list[str] = []
        self.is_down = False
        self.containers = {
            peer: replace(ENDED, id=str(peer), service=f"peer-{peer:03d}", status="running")
            for peer in range(num)
        }
        monkeypatch.setattr(docker, "look", self._look)
        monkeypatch.setattr(docker, "tell", lambda ids, *words: self.told.append((*words, *ids)))
        monkeypatch.setattr(docker, "save_output", lambda id_, path: f"last words of {id_}")

    def _look(self, ids: object) -> list[Container] | None:
        return None if self.is_down else list(self.containers.values())

    def change(self, peer: int, **fields: Any) -> None:
        self.containers[peer] = replace(self.containers[peer], **fields)

    def end(self, *peers: int, code: int = 0) -> None:
        for peer in peers:
            self.change(peer, status="exited", exit_code=code)

    def crew(self, run: Path) -> Containers:
        """The launcher's view of them."""
        crew = Containers(config.parse(BASE, Path()), run, self.said.append, lambda: self.now)
        crew.begin([each.id for each in self.containers.values()])
        return crew


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> _Engine:
    """Three containers that run."""
    return _Engine(monkeypatch, 3)


def _log(run: Path, peer: int, *events: Event) -> None:
    log = EventLog(event_file(run, peer), peer, clock=lambda: 1.0)
    for event in events:
        log.write(event)
    log.close()


def _last(run: Path, peer: int) -> dict[str, Any]:
    *_, last = read_events(event_file(run, peer))
    return last


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A run folder of peers that have met and done round 1."""
    for peer in range(3):
        done = RoundDone(1, 0.5, 10, 10, 2)
        _log(tmp_path, peer, Joined(0.1), done)
    return tmp_path


def test_a_killed_container_is_written_down_for_its_peer(engine: _Engine, begun: Path) -> None:
    crew = engine.crew(begun)
    engine.end(1, code=137)
    crew.look()
    assert crew.running == {0, 2}
    assert crew.exit_codes == {1: -9}
    why = "peer 1: its container was killed by signal 9 (Killed)"
    assert crew.errors == {1: why}
    assert {key: _last(begun, 1)[key] for key in ("event", "round", "exit_code")} == {
        "event": "finished",
        "round": 1,
        "exit_code": 137,
    }
    assert not engine.told  # the others go on


@pytest.mark.parametrize("code", [4, 137])  # by itself, or killed on its way out
def test_what_a_peer_wrote_itself_holds(engine: _Engine, begun: Path, code: int) -> None:
    _log(begun, 2, Finished(1, 4, "alone"))
    engine.end(2, code=code)
    crew = engine.crew(begun)
    crew.look()
    assert crew.exit_codes == {2: 4}
    assert crew.errors == {2: "peer 2: alone"}
    assert _last(begun, 2)["error"] == "alone"
    assert len(list(read_events(event_file(begun, 2)))) == 3


def test_before_anyone_has_met_one_end_is_the_end_of_all(engine: _Engine, tmp_path: Path) -> None:
    crew = engine.crew(tmp_path)
    engine.end(0, code=2)
    crew.look()
    assert engine.told == [("kill", "--signal", "TERM", "1", "2")]
    engine.end(1, 2, code=143)
    crew.look()
    assert not crew.running
    assert crew.exit_codes == {0: 2}
    assert crew.errors == {0: "peer 0: last words of 0"}
    assert _last(tmp_path, 1)["exit_code"] == ExitCode.STOPPED


def test_first_stop_asks_second_kills(engine: _Engine, begun: Path) -> None:
    crew = engine.crew(begun)
    crew.stop()
    assert not engine.told  # a signal handler only takes it down
    crew.look()
    crew.look()
    assert engine.told == [("kill", "--signal", "TERM", "0", "1", "2")]
    _log(begun, 0, Finished(1, 5))
    engine.end(0, code=5)
    crew.stop()
    crew.look()
    assert engine.told[1:] == [("kill", "1", "2")]


def test_who_does_not_stop_in_time_is_killed(engine: _Engine, begun: Path) -> None:
    crew = engine.crew(begun)
    crew.stop()
    crew.look()
    engine.now = process.STOP_GRACE_S + 1.0
    crew.look()
    assert engine.told[1:] == [("kill", "0", "1", "2")]


def test_a_paused_container_is_named_and_ended_after_all_others(
    engine: _Engine, begun: Path
) -> None:
    crew = engine.crew(begun)
    engine.change(2, status="paused")
    crew.look()
    crew.look()
    assert engine.said == ["the container of peer 2 is paused"]
    for peer in (0, 1):
        _log(begun, peer, Finished(2, 0))
    engine.end(0, 1)
    crew.look()
    assert not engine.told
    engine.now = crews.PAUSED_S + 1.0
    crew.look()
    assert engine.told == [("kill", "2")]
    engine.end(2, code=137)
    crew.look()
    assert crew.exit_codes == {0: 0, 1: 0, 2: -9}
    assert "paused" in crew.errors[2] and "paused" in _last(begun, 2)["error"]


def test_a_container_that_goes_on_is_not_ended(engine: _Engine, begun: Path) -> None:
    crew = engine.crew(begun)
    engine.change(2, status="paused")
    engine.end(0, 1)
    crew.look()
    engine.change(2, status="running")
    engine.now = crews.PAUSED_S + 1.0
    crew.look()
    assert engine.said[-1] == "the container of peer 2 goes on"
    engine.change(2, status="paused")
    crew.look()
    assert not engine.told


def test_all_paused_by_the_user_is_no_end(engine: _Engine, begun: Path) -> None:
    crew = engine.crew(begun)
    for peer in range(3):
        engine.change(peer, status="paused")
    crew.look()
    engine.now = 1e6
    crew.look()
    assert not engine.told


def test_an_engine_that_does_not_answer_says_nothing_of_the_peers(
    engine: _Engine, begun: Path
) -> None:
    crew = engine.crew(begun)
    engine.is_down = True
    crew.look()
    assert crew.running == {0, 1, 2}
    engine.is_down = False
    del engine.containers[1]
    crew.look()
    assert crew.errors == {1: "peer 1: its container was removed"}
    engine.is_down = True
    engine.now = crews.SILENT_S + 1.0
    with pytest.raises(StartupError, match=r"docker has not answered for 60 s: was dockerd stop"):
        crew.look()
