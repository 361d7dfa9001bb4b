"""Run folders that are to go on: how far their peers are, what is refused and why, what is left."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from p2p_dml import checkpoint, config
from p2p_dml.checkpoint import checkpoint_file
from p2p_dml.errors import ConfigError
from p2p_dml.events import event_file, read_events
from p2p_dml.launchers import folder, resuming, simulated
from p2p_dml.launchers.resuming import Past

PEERS, ROUNDS = 3, 6
TABLES: Mapping[str, Any] = {
    "peers": PEERS,
    "rounds": ROUNDS,
    "strategy": {"name": "hyperprism", "degree": "learned"},
    "links": "ring",
    "train": {"lr": 0.1, "momentum": 0.9, "steps": 1, "batch_size": 8},
    "checkpoint_every": 2,
    "evaluate_every": 2,
}
LONGER = ["rounds=9"]


def _ignore(path: Path, started: float) -> Callable[[], None]:
    return lambda: None


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of six rounds, with checkpoints of rounds 2, 4 and 6."""
    parent = tmp_path_factory.mktemp("made")
    simulated.simulate(config.parse(TABLES, parent), parent / "run", _ignore)
    return parent / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy of it to be damaged."""
    return Path(shutil.copytree(made, tmp_path / "run"))


def _resume(run: Path, overrides: list[str]) -> list[str]:
    """Go on with a simulation; returns what was said."""
    said: list[str] = []
    past = resuming.read(run, overrides, "simulate")
    simulated.simulate(past.config, None, _ignore, say=said.append, past=past)
    return said


def _starts(run: Path, overrides: list[str], waits: bool = True) -> tuple[dict[int, int], str]:
    said: list[str] = []
    past = resuming.read(run, overrides, "simulate")
    return resuming.starts(past, waits, said.append), "\n".join(said)


def _file(run: Path, peer: int, round_: int) -> Path:
    return run / checkpoint_file(peer, round_)


def _flip(path: Path) -> None:
    """Turn over the last bit of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _tear(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _change_facts(run: Path, **changes: object) -> None:
    facts = json.loads((run / "run.json").read_text(encoding="utf-8"))
    (run / "run.json").write_text(json.dumps(facts | changes), encoding="utf-8")


def _foreign(path: Path) -> None:
    """A whole checkpoint, but of another run."""
    other = checkpoint.load(path)
    changed = checkpoint.Checkpoint(
        other.peer, other.round, "0" * 32, other.version, other.tensors, other.outline
    )
    checkpoint.save(path.parents[2], changed)


def _old(path: Path) -> None:
    """A whole checkpoint as it was before states had outlines."""
    now = checkpoint.load(path)
    older = checkpoint.Checkpoint(now.peer, now.round, now.digest, now.version, now.tensors)
    checkpoint.save(path.parents[2], older)


# ---- how far the peers are --------------------------------------------------------------------


def test_all_go_on_after_the_newest_round_that_all_have(run: Path) -> None:
    assert _starts(run, LONGER) == (dict.fromkeys(range(PEERS), 6), "")
    _file(run, 1, 6).unlink()
    assert _starts(run, []) == (dict.fromkeys(range(PEERS), 4), "")


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (_flip, "its checksum says that it is damaged"),
        (_tear, "not a checkpoint of this runtime"),
        (lambda path: path.write_bytes(b""), "not a checkpoint of this runtime"),
        (_foreign, "of another run, peer or round"),
        (_old, "it does not say how the strategy's state was built"),
    ],
    ids=["damaged", "torn", "empty", "foreign", "old"],
)
def test_what_is_not_whole_is_passed_over_and_named(
    run: Path, damage: Callable[[Path], None], why: str
) -> None:
    damage(_file(run, 2, 6))
    found, said = _starts(run, [])
    assert found == dict.fromkeys(range(PEERS), 4)
    assert re.search(f"passed over: .*peer-002/round-000006.*{why}", said)


def test_who_waits_for_nobody_goes_on_after_its_own_newest(run: Path) -> None:
    _flip(_file(run, 0, 6))
    for round_ in (2, 4, 6):
        _file(run, 1, round_).unlink()
    found, said = _starts(run, [], waits=False)
    assert found == {0: 4, 1: 0, 2: 6}
    assert "peer-000/round-000006" in said


def test_a_round_in_which_a_message_died_with_its_sender_is_passed_over(run: Path) -> None:
    file = event_file(run, 1)
    lines = list(read_events(file))
    for line in lines:
        if line["event"] == "round_done" and line["round"] in (3, 6):
            line["missing"] = [0, 2]
    dead = {"event": "neighbour_changed", "t": 1.0, "peer": 1, "neighbour": 2, "state": "dead"}
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert _starts(run, LONGER) == (dict.fromkeys(range(PEERS), 6), "")  # only late
    with file.open("a", encoding="utf-8") as log:
        log.write(json.dumps(dead | {"round": 6, "why": "killed"}) + "\n")
    found, said = _starts(run, LONGER)
    assert found == dict.fromkeys(range(PEERS), 4)
    assert said == "passed over: round 6: peer 1 did not hear peer 2, lost"
    past, own = resuming.read(run, LONGER, "simulate"), [6, 4, 2]
    for waits in (True, False):  # so too where every host looks into a folder of its own
        found_here = list(resuming.usable_rounds(past, 1, waits, lambda line: None))
        assert found_here == (own[1:] if waits else own)


def test_no_round_that_all_have_is_told_by_peer(run: Path) -> None:
    for peer, round_ in ((0, 2), (0, 4), (1, 6), (2, 6)):
        _file(run, peer, round_).unlink()
    _flip(_file(run, 2, 4))
    with pytest.raises(
        ConfigError,
        match="no round of which every peer has a whole checkpoint; the newest are: peer 0: round "
        r"6; peers 1 to 2: round 4\. Set checkpoint_every",
    ):
        _starts(run, [])


def test_no_checkpoints_at_all(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    for waits in (True, False):
        with pytest.raises(ConfigError, match=r"the newest are: peers 0 to 2: none\. Set"):
            _starts(run, [], waits)


def test_rounds_gathered_from_several_hosts(run: Path) -> None:
    past = resuming.read(run, LONGER, "simulate")
    found = {0: [6, 4, 2], 1: (4, 2), 2: {6, 4}}
    assert resuming.starts_among(past, found, waits=True) == dict.fromkeys(range(PEERS), 4)
    assert resuming.starts_among(past, {**found, 1: []}, waits=False) == {0: 6, 1: 0, 2: 6}
    assert list(resuming.usable_rounds(past, 1, True, lambda line: None)) == [6, 4, 2]
    with pytest.raises(ConfigError, match="peers 0, 2: round 6; peer 1: round 4"):
        resuming.starts_among(past, {0: [6], 1: [4], 2: [6]}, waits=True)


def test_a_checkpoint_that_is_gone_meanwhile_is_an_error_of_the_peer(run: Path) -> None:
    past = resuming.read(run, LONGER, "simulate")
    assert resuming.start_of(past, 1, 0).event.round == 0
    assert resuming.start_of(past, 1, 4).event.round == 4
    _file(run, 1, 4).unlink()
    with pytest.raises(ConfigError, match=r"peer 1: passed over: .*round-000004"):
        resuming.start_of(past, 1, 4)


# ---- what is refused, with nothing touched ----------------------------------------------------


def _snapshot(run: Path) -> dict[Path, bytes]:
    return {
        path: path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.name != "run.lock"
    }


REFUSED: Mapping[str, tuple[Callable[[Path], object], list[str], str]] = {
    "finished": (lambda run: None, [], "all peers have done 6 rounds, and the run has 6; --set"),
    "fewer rounds": (lambda run: None, ["rounds=5"], "all peers have done 6 rounds.*has 5"),
    "another strategy": (lambda run: None, ["strategy=dpsgd"], "--set strategy: the rounds that"),
    "another seed": (lambda run: None, ["seed=1"], "--set seed: .*takes rounds, duration_s, check"),
    "unknown key": (lambda run: None, ["ronuds=9"], "ronuds: unknown key; did you mean 'rounds'"),
    "no folder": (shutil.rmtree, [], r"--resume .*: not a run folder: looked for run\.json"),
    "no facts": (
        lambda run: (run / "run.json").write_text("{}"),
        [],
        r"run\.json: damaged, the run cannot go on: KeyError\('digest'\)",
    ),
    "torn facts": (lambda run: _tear(run / "run.json"), [], r"run\.json: damaged"),
    "strange facts": (lambda run: _change_facts(run, digest=3), [], r"run\.json: digest: .*int 3"),
    "version": (
        lambda run: _change_facts(run, version="0.0.9"),
        LONGER,
        r"began with p2p_dml 0\.0\.9, and this is",
    ),
    "processes": (
        lambda run: _change_facts(run, mode="run"),
        LONGER,
        "not a run of `p2p-dml simulate`: go on with it by `p2p-dml run --resume ",
    ),
    "alone": (lambda run: _change_facts(run, mode="peer"), LONGER, "started one by one"),
    "hosts": (
        lambda run: _change_facts(run, mode="launch"),
        LONGER,
        "not a run of `p2p-dml simulate`: go on with it by `p2p-dml launch HOSTS.toml --resume ",
    ),
    "virtual": (lambda run: _change_facts(run, clock="virtual"), LONGER, "virtual clocks cannot"),
    "torn settings": (lambda run: _tear(run / "run.toml"), LONGER, r"run\.toml: .*"),
    "changed settings": (
        lambda run: (run / "run.toml").write_text(
            tomli_w.dumps({**TABLES, "seed": 5}), encoding="utf-8"
        ),
        LONGER,
        r"run\.toml: no longer the run that the checkpoints are of",
    ),
}


@pytest.mark.parametrize(("damage", "overrides", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_go_on_is_refused_and_left_alone(
    run: Path, damage: Callable[[Path], object], overrides: list[str], message: str
) -> None:
    damage(run)
    before = _snapshot(run)
    with pytest.raises(ConfigError, match=message):
        _resume(run, overrides)
    assert _snapshot(run) == before


def test_a_run_that_is_going_on_is_refused(run: Path) -> None:
    with folder.held(run), pytest.raises(ConfigError, match="this run is still going on"):
        _claim(run, 0.1)
    with folder.claimed(run), pytest.raises(ConfigError, match="this run is still going on"):
        _claim(run, 0.0)
    _claim(run, 0.0)


def _claim(run: Path, patience_s: float) -> None:
    with folder.claimed(run, patience_s):
        pass


# ---- what a resumed run leaves ----------------------------------------------------------------


def _facts(run: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((run / "run.json").read_text(encoding="utf-8"))
    return facts


def test_a_longer_run_is_the_run_of_that_length(run: Path, tmp_path: Path) -> None:
    tables = {**TABLES, "rounds": 9}
    simulated.simulate(config.parse(tables, tmp_path), tmp_path / "whole", _ignore)
    assert _resume(run, LONGER) == ["resumed after round 6 of 9"]
    for peer in range(PEERS):
        for round_ in (8, 9):
            ours, expected = (_file(each, peer, round_) for each in (run, tmp_path / "whole"))
            assert ours.read_bytes() == expected.read_bytes()
    assert config.load(run / "run.toml") == config.load(tmp_path / "whole" / "run.toml").model_copy(
        update={"folder": run}
    )
    before, after = _facts(tmp_path / "whole"), _facts(run)
    assert (after["digest"], after["rounds"]) == (before["digest"], 9)
    assert len(after["earlier_digests"]) == 1
    assert [entry["round"] for entry in after["resumed"]] == [6]


def test_it_can_go_on_again_and_its_older_checkpoints_are_still_its_own(run: Path) -> None:
    _resume(run, LONGER)
    for peer in range(PEERS):
        for round_ in (8, 9):
            _file(run, peer, round_).unlink()
    assert _resume(run, []) == ["resumed after round 6 of 9"]
    assert [entry["round"] for entry in _facts(run)["resumed"]] == [6, 6]


def test_cut_off_between_facts_and_settings_it_can_still_go_on(run: Path) -> None:
    kept = (run / "run.toml").read_bytes()
    _resume(run, LONGER)
    (run / "run.toml").write_bytes(kept)
    assert _resume(run, ["rounds=10"]) == ["resumed after round 9 of 10"]


def test_settings_that_change_no_round_can_be_set(run: Path) -> None:
    _resume(run, [*LONGER, "evaluate_every=0", "checkpoint_every=1", "name=again", "threads=2"])
    assert _file(run, 0, 7).exists()
    assert _facts(run)["name"] == "again"


def test_what_was_later_is_removed(run: Path) -> None:
    _flip(_file(run, 1, 6))
    half = _file(run, 2, 5).with_suffix(".part")
    half.write_bytes(b"half")
    said = _resume(run, [])
    assert said[-1] == "resumed after round 4 of 6"
    assert not half.exists()
    lines = [line for line in read_events(event_file(run, 0)) if line["event"] == "checkpointed"]
    assert [line["round"] for line in lines] == [2, 4, 6, 6]
    assert _starts(run, LONGER)[0] == dict.fromkeys(range(PEERS), 6)


def test_events_say_where_it_goes_on(run: Path) -> None:
    _resume(run, LONGER)
    for peer in range(PEERS):
        lines = list(read_events(event_file(run, peer)))
        begin = [i for i, line in enumerate(lines) if line["event"] == "started"][1]
        kinds = [(line["event"], line.get("round")) for line in lines[begin : begin + 4]]
        assert kinds == [("started", None), ("resumed", 6), ("joined", None), ("evaluated", 6)]


def test_relative_names_are_still_found_from_where_the_run_file_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, out = tmp_path / "home", tmp_path / "elsewhere" / "run"
    home.mkdir()
    (home / "resumed_loop.py").write_text(
        "from torch import nn\n\n\ndef network():\n    return nn.Linear(2, 1)\n\n\n"
        "def train(model, round):\n    return 0.5\n",
        encoding="utf-8",
    )
    tables = {
        "peers": 2,
        "rounds": 2,
        "strategy": "dpsgd",
        "links": "ring",
        "model": "resumed_loop:network",
        "train": "resumed_loop:train",
    }
    simulated.simulate(config.parse(tables, home), out, _ignore)
    monkeypatch.chdir(tmp_path)
    past: Past = resuming.read(out, LONGER, "simulate")
    assert past.config.folder == home
    assert _resume(out, LONGER) == ["resumed after round 2 of 9"]
    shutil.rmtree(home)
    assert resuming.read(out, LONGER, "simulate").config.folder == out
