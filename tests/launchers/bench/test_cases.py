"""Options as cases, and cases as run files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from p2p_dml.errors import ConfigError
from p2p_dml.launchers.bench.cases import WARM_UP, Case, grid, links_of, number, transport_of

CASE: Mapping[str, Any] = {"peers": 4, "topology": "ring", "params": 10, "rounds": 5}


@pytest.mark.parametrize(
    ("text", "value"),
    [("8", 8), ("1_000_000", 10**6), ("500k", 500_000), ("11M", 11 * 10**6)],
)
def test_numbers_have_suffixes(text: str, value: int) -> None:
    assert number(text, "--params") == value


@pytest.mark.parametrize("text", ["", "0", "-3", "M", "1.5M", "eight", "1e6"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--params: expected a positive whole number"):
        number(text, "--params")


@pytest.mark.parametrize(
    ("words", "table"),
    [
        ("ring", {"kind": "ring"}),
        ("k_regular degree=4", {"kind": "k_regular", "degree": 4}),
        (
            "static of.kind=k_regular of.degree=4",
            {"kind": "static", "of": {"kind": "k_regular", "degree": 4}},
        ),
        ("topologies/ring.toml", {"file": "topologies/ring.toml"}),
    ],
)
def test_topologies_in_words(words: str, table: Mapping[str, object]) -> None:
    assert links_of(words) == table


@pytest.mark.parametrize(
    ("words", "table"),
    [
        ("", {}),
        ("zeromq", {"kind": "zeromq"}),
        ("scheme=tcp", {"scheme": "tcp"}),
        ("scheme=tcp linger_s=2.5", {"scheme": "tcp", "linger_s": 2.5}),
    ],
)
def test_transports_in_words(words: str, table: Mapping[str, object]) -> None:
    assert transport_of(words) == table


def test_the_grid_has_every_combination_once() -> None:
    cases = grid(
        peers=["8", "2,4"],
        topologies=["ring,complete"],
        params=["1k"],
        rounds=20,
        dtypes=["float32"],
        transports=["scheme=ipc,scheme=tcp"],
        settings=["threads=2"],
    )
    seen = [(case.peers, case.topology, case.transport) for case in cases]
    assert len(seen) == len(set(seen)) == 3 * 2 * 2
    assert seen[:2] == [(8, "ring", "scheme=ipc"), (8, "ring", "scheme=tcp")]
    assert {case.params for case in cases} == {1000}


def test_a_case_without_a_transport_takes_the_usual_one() -> None:
    assert Case(**CASE).config().transport.scheme == "ipc"


def test_the_run_of_a_case_trains_nothing_and_has_the_rounds_around_those_timed() -> None:
    config = Case(**CASE, transport="scheme=tcp", settings=("threads=2",)).config()
    assert config.rounds == WARM_UP + 5 + 1
    assert (config.peers, config.threads, config.transport.scheme) == (4, 2, "tcp")
    assert config.model["size"] == 10
    assert config.train == {"function": "p2p_dml.learners.still:rest"}


@pytest.mark.parametrize("setting", ["rounds=3", "peers=2", "model.size=7", "elastic=true"])
def test_what_is_an_option_cannot_be_set(setting: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be set here; peers, topology"):
        Case(**CASE, settings=(setting,)).config()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int7"}, "bench rounds: dtype"),
        ({"transport": "scheme=rope"}, "bench rounds: transport.scheme"),
        ({"transport": "shceme=tcp"}, "transport.shceme: unknown key"),
        ({"settings": ("thraeds=2",)}, "thraeds: unknown key"),
    ],
)
def test_wrong_values_are_told_by_their_key(change: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Case(**{**CASE, **change}).config()
