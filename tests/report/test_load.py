"""Run folders, whole and damaged, in memory."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from p2p_dml.errors import ConfigError
from p2p_dml.events import Evaluated, Finished, Started, event_file
from p2p_dml.report.load import load


def test_a_whole_run(write_run: Callable[..., Path]) -> None:
    run = load(write_run())
    assert (run.meta.strategy, run.meta.peers, run.meta.seed) == ("dpsgd", 3, 7)
    assert run.config.startswith("[strategy]")
    last = run.peers[2]
    assert (last.samples, last.class_counts, last.fate) == (50, (40, 10), "finished")
    np.testing.assert_array_equal(last.rounds.round, [0, 1, 2, 3])
    np.testing.assert_array_equal(last.rounds.bytes_out, [300] * 4)
    np.testing.assert_array_equal(last.rounds.reported["degree/representation"], [1, 2, 3, 4])
    np.testing.assert_allclose(last.rounds.seconds.sum(axis=0), [4, 0.4, 2, 0.8, 0])
    np.testing.assert_array_equal(last.evaluations.accuracy, [0.6, 0.1])
    np.testing.assert_array_equal(run.peers[0].rounds.missing, [0, 0, 1, 1])


def test_a_killed_peer_keeps_what_it_finished(write_run: Callable[..., Path]) -> None:
    killed = load(write_run(killed=True)).peers[2]
    assert (killed.fate, killed.last_round, killed.exit_code) == ("lost", 1, None)


def test_a_peer_that_came_back_into_its_torn_line(
    write_run: Callable[..., Path], append: Callable[..., None]
) -> None:
    folder = write_run(killed=True)
    again = Started(
        pid=2, incarnation=1, endpoint="", parameters=10, samples=50, class_counts=[40, 10]
    )
    repeated = Evaluated(round=1, accuracy=0.9, loss=None, seconds=0.1, sketch="")
    append(folder, 2, (60, again), (70, repeated), (80, Finished(round=3, exit_code=5)))
    peer = load(folder).peers[2]
    assert (peer.incarnations, peer.fate) == (2, "stopped")
    np.testing.assert_array_equal(peer.evaluations.accuracy, [0.9])
    assert np.isnan(peer.evaluations.loss[0])


def test_a_finished_line_before_a_new_start_does_not_count(
    write_run: Callable[..., Path], append: Callable[..., None]
) -> None:
    folder = write_run()
    again = Started(pid=2, incarnation=1, endpoint="", parameters=1, samples=1, class_counts=[])
    append(folder, 0, (60, again))
    assert load(folder).peers[0].fate == "lost"


def test_absent_event_files_are_empty_peers(
    tmp_path: Path, write_meta: Callable[..., Path]
) -> None:
    (peer,) = load(write_meta(tmp_path, peers=1)).peers
    assert (peer.fate, peer.samples, peer.last_round, peer.last_t) == ("lost", None, None, None)
    assert peer.rounds.seconds.shape == (0, 5)


def test_foreign_lines_are_skipped(write_run: Callable[..., Path]) -> None:
    folder = write_run()
    path = event_file(folder, 0)
    path.write_text('not json\n{"event": "of tomorrow", "t": 1}\n' + path.read_text())
    assert len(load(folder).peers[0].rounds.round) == 4


def test_a_command_in_parts_is_joined_for_a_shell(
    tmp_path: Path, write_meta: Callable[..., Path]
) -> None:
    run = load(write_meta(tmp_path, command=["p2p-dml", "run", "my run.toml"]))
    assert run.meta.command == "p2p-dml run 'my run.toml'"


@pytest.mark.parametrize("field", ["round", "t", "bytes_out", "loss"])
def test_lines_with_a_field_of_a_wrong_type_are_skipped(
    write_run: Callable[..., Path], field: str
) -> None:
    folder = write_run()
    path = event_file(folder, 0)
    text = path.read_text()
    line = next(x for x in map(json.loads, text.splitlines()) if x["event"] == "round_done")
    path.write_text(text + json.dumps(line | {field: "x"}) + "\n")
    assert len(load(folder).peers[0].rounds.round) == 4


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"started": 1e300},
            r"run\.json: started: expected seconds since the epoch, found 1",
        ),
        ({"started": math.nan}, r"run\.json: started: expected seconds since the epoch, found nan"),
        ({"resumed": [{"at": -1}]}, r"run\.json: resumed: at: expected seconds since the epoch"),
        ({"peers": 2}, r"run\.json: peers: expected 3 as in run\.toml, found 2"),
        ({"rounds": 0}, r"run\.json: rounds: expected at least 1, found 0"),
        ({"params": "x"}, r"run\.json: params: .*found str 'x'"),
    ],
)
def test_damage_of_run_json_is_refused(
    write_run: Callable[..., Path], changed: dict[str, object], message: str
) -> None:
    folder = write_run(**changed)
    (folder / "run.toml").write_text("peers = 3\n")
    with pytest.raises(ConfigError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"not a run folder: looked for run\.json"),
        ("{", "expected JSON"),
        ("[]", "expected a JSON object, found list"),
        ('{"started": 1.0, "strategy": "x", "peers": "3"}', "peers: .*found str '3'"),
        ("{}", "started: "),
        (
            '{"started": 1, "strategy": "x", "peers": 0, "rounds": 1, "seed": 1}',
            "peers: expected at least 1, found 0",
        ),
    ],
)
def test_what_is_not_a_run_folder(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


def test_one_peer_of_a_run_on_several_machines_stands_alone(
    tmp_path: Path, write_meta: Callable[..., Path], append: Callable[..., None]
) -> None:
    folder = write_meta(tmp_path, mode="peer")
    append(folder, 1, (5, Finished(round=3, exit_code=0)))
    assert [peer.peer for peer in load(folder).peers] == [1]
