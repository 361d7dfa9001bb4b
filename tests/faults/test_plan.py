"""Who is befallen by what: names, draws and centralities by hand, and errors with their path."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import networkx as nx
import pytest
import torch

from p2p_dml import config, faults, links
from p2p_dml.assemble import blueprint
from p2p_dml.errors import ConfigError
from p2p_dml.events import EventLog, Injected
from p2p_dml.faults import Agenda, Chosen, Fault
from p2p_dml.faults._plan import halves, spoilt
from p2p_dml.types import Coded, Graph, Payload, outbox_of

STAR = links.build("star", 5, 0, Path())(0)
TWO_STARS = Graph(((1, 2, 3), (0,), (0,), (0, 4), (3, 5, 6), (4,), (4,)))
"""0 and 4 have three links each, and 3 lies between them."""


def run_of(*entries: dict[str, object], peers: int = 6, seed: int = 0) -> config.RunConfig:
    tables = {"peers": peers, "rounds": 9, "seed": seed, "strategy": "dpsgd", "links": "ring"}
    return config.parse({**tables, "faults": list(entries)}, Path())


def planned(run: config.RunConfig) -> dict[int, tuple[Fault, ...]]:
    return faults.plan(run, links.build(run.links, run.peers, run.seed, Path())(0))


def test_named_peers_get_their_faults_in_the_order_of_the_file() -> None:
    first = {"peers": [4, 2, 4], "round": 5, "kind": "kill"}
    second = {"peers": [2], "round": 3, "phase": "mix", "kind": "stop", "for_s": 2.5}
    kill = Fault(place=0, round=5, phase="train", kind="kill")
    stop = Fault(place=1, round=3, phase="mix", kind="stop", for_s=2.5)
    assert planned(run_of(first, second)) == {2: (kill, stop), 4: (kill,)}


def test_without_faults_nobody_has_any() -> None:
    assert blueprint(run_of()).faults == {}


@pytest.mark.parametrize(
    ("chosen", "graph", "peers"),
    [
        (Chosen(most_central=1), STAR, [0]),
        (Chosen(most_central=3), STAR, [0, 1, 2]),  # of equals the lower ids
        (Chosen(most_central=2), TWO_STARS, [0, 4]),
        (Chosen(most_central=3, by="betweenness"), TWO_STARS, [0, 3, 4]),
        (Chosen(most_central=9), STAR, [0, 1, 2, 3, 4]),
        (Chosen(share=1.0), STAR, [0, 1, 2, 3, 4]),
    ],
)
def test_the_most_central_by_hand(chosen: Chosen, graph: Graph, peers: list[int]) -> None:
    assert chosen.peers(graph, 0, 0) == peers


@pytest.mark.parametrize(
    ("by", "centrality"),
    [("degree", nx.degree_centrality), ("betweenness", nx.betweenness_centrality)],
)
def test_centralities_are_those_of_networkx(
    by: str, centrality: Callable[[object], dict[int, float]]
) -> None:
    graph = links.build({"kind": "barabasi_albert", "attach": 2}, 30, 5, Path())(0)
    known = nx.Graph([(j, i) for i, heard in enumerate(graph.senders) for j in heard])
    scores = centrality(known)
    ranked = sorted(scores, key=lambda peer: (-round(scores[peer], 9), peer))
    found = faults.plan(
        run_of({"peers": {"most_central": 7, "by": by}, "round": 1, "kind": "kill"}, peers=30),
        graph,
    )
    assert sorted(found) == sorted(ranked[:7])


def test_a_share_is_drawn_by_the_seed_and_differently_for_each_entry() -> None:
    half = {"peers": {"share": 0.5}, "round": 2, "kind": "kill"}
    again = {**half, "round": 3}
    draws = [planned(run_of(half, again, peers=40, seed=seed)) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    for place in (0, 1):
        assert sum(any(f.place == place for f in own) for own in draws[0].values()) == 20
    both = [peer for peer, own in draws[0].items() if len(own) == 2]
    assert 0 < len(both) < 20


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"peers": [6]}, r"faults\[0\].peers: expected peers 0 to 5, found 6"),
        ({"peers": {}}, r"faults\[0\].peers: share, most_central: expected one of them"),
        ({"peers": {"share": 0.5, "most_central": 1}}, "expected one of them"),
        ({"peers": {"share": 0.0}}, "share = 0.0: expected more than 0, at most 1"),
        ({"peers": {"most_central": 0}}, "most_central = 0: expected at least 1"),
        ({"peers": {"sahre": 0.5}}, r"faults\[0\].peers.sahre: unknown key; did you mean 'share'"),
        ({"kind": "nan", "phase": "mix"}, r"faults\[0\].phase: .*'nan'.* train or send, found"),
        ({"kind": "full_disk"}, r"faults\[0\].phase: .*'full_disk'.* checkpoint, found 'train'"),
    ],
)
def test_what_makes_no_sense_is_named(entry: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        planned(run_of({"peers": [1], "round": 1, "kind": "kill", **entry}))


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"round": 0}, "faults.0.round: .*greater than or equal to 1"),
        ({"kind": "explode"}, "faults.0.kind: input should be 'kill', 'stop'"),
        ({"phase": "lunch"}, "faults.0.phase: input should be 'train'"),
        ({"for_s": 0.0}, "faults.0.for_s: .*greater than 0"),
        ({"peer": 3}, "faults.0.peer: unknown key; did you mean 'peers'"),
    ],
)
def test_a_table_is_checked_when_it_is_read(entry: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run_of({"peers": [1], "round": 1, "kind": "kill", **entry})


def test_peers_need_not_agree_on_faults() -> None:
    faulty = run_of({"peers": [1], "round": 1, "kind": "kill"})
    assert faulty.canonical() == run_of().canonical()


# ---- when ---------------------------------------------------------------------------------------

EARLY = Fault(place=0, round=2, phase="train", kind="hang")
LATE = Fault(place=1, round=4, phase="train", kind="kill")


def test_a_fault_is_due_once_from_its_round_on(tmp_path: Path) -> None:
    agenda = Agenda((EARLY, LATE), tmp_path / "none")
    assert agenda.take(1, "train") is None
    assert agenda.take(2, "mix") is None
    assert agenda.take(3, "train") is EARLY  # round 2 was skipped
    assert agenda.take(3, "train") is None
    assert agenda.take(4, "train") is LATE
    assert agenda.take(5, "train") is None


def test_what_an_earlier_incarnation_went_through_is_not_done_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    injected = Injected(round=2, phase="train", kind="hang", fault=0)
    with closing(EventLog(log, 0)) as events:
        events.write(injected)
    assert Agenda((EARLY, LATE), log).take(9, "train") is LATE


# ---- messages -----------------------------------------------------------------------------------

PAYLOAD = Payload({"x": torch.ones(2), "mask": torch.tensor([True])}, {"w": 0.5})


@pytest.mark.parametrize(
    ("receivers", "first", "rest"),
    [((), [], []), ((7,), [7], []), ((5, 3), [3], [5]), ((9, 1, 4), [1, 4], [9])],
)
@pytest.mark.parametrize("is_coded", [False, True])
def test_halves(
    receivers: tuple[int, ...], first: list[int], rest: list[int], is_coded: bool
) -> None:
    outbox = dict.fromkeys(receivers, PAYLOAD)
    sent = Coded(outbox, lambda sender, payload: payload) if is_coded else outbox
    parts = halves(sent)
    assert [list(outbox_of(part)) for part in parts] == [first, rest]
    assert all(isinstance(part, Coded) is is_coded for part in parts)


def test_what_is_spoilt_keeps_its_form() -> None:
    (found,) = outbox_of(spoilt({3: PAYLOAD})).values()
    assert found.tensors["x"].isnan().all() and found.tensors["x"].shape == (2,)
    assert found.tensors["mask"].tolist() == [True]
    assert PAYLOAD.tensors["x"].tolist() == [1.0, 1.0]
