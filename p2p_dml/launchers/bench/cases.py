"""What is measured: the options of `p2p-dml bench rounds` as cases, and the run file of each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from p2p_dml import config as run_files
from p2p_dml.config import RunConfig, Table, overrides_table
from p2p_dml.errors import ConfigError

WARM_UP = 10
"""Rounds before those that are timed: by then buffers are there and connections are fast."""

_OPTIONS = ("peers", "links", "model", "train", "rounds", "dtype", "elastic", "duration_s")
"""Keys of a run file that are the case itself, or would leave its rounds uncounted."""

_SUFFIXES = {"k": 10**3, "M": 10**6}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One set of values; `topology` and `transport` in words, as they were typed."""

    peers: int
    topology: str
    params: int
    rounds: int
    dtype: str = "float32"
    transport: str = ""
    settings: tuple[str, ...] = ()

    def config(self) -> RunConfig:
        """The run of this case. ConfigError if it cannot be."""
        tables: Table = {
            "name": "bench",
            "peers": self.peers,
            "rounds": WARM_UP + self.rounds + 1,
            "dtype": self.dtype,
            "links": links_of(self.topology),
            "strategy": "dpsgd",
            "model": {"name": "p2p_dml.learners.still:vector", "size": self.params},
            "train": "p2p_dml.learners.still:rest",
            "evaluate_every": 0,
            "transport": transport_of(self.transport),
        }
        for text in self.settings:
            if text.partition("=")[0].partition(".")[0].strip() in _OPTIONS:
                raise ConfigError(
                    f"bench rounds: --set {text}: cannot be set here; peers, topology, params, "
                    "rounds and dtype are options of their own"
                )
            run_files.override(tables, text)
        return run_files.parse(tables, Path(), "bench rounds")

    def facts(self) -> dict[str, Any]:
        """The first fields of its line."""
        return {
            "peers": self.peers,
            "topology": self.topology,
            "params": self.params,
            "dtype": self.dtype,
            "transport": self.transport,
            "set": list(self.settings),
            "rounds": self.rounds,
            "warm_up": WARM_UP,
        }


def grid(
    *,
    peers: Sequence[str],
    topologies: Sequence[str],
    params: Sequence[str],
    rounds: int,
    dtypes: Sequence[str],
    transports: Sequence[str],
    settings: Sequence[str],
) -> list[Case]:
    """All cases, the last option changing first; each value may be several, between commas.

    Raises ConfigError if one is no number where there should be one.
    """
    axes = itertools.product(
        [number(each, "--peers") for each in _values(peers)],
        _values(topologies),
        [number(each, "--params") for each in _values(params)],
        _values(dtypes),
        _values(transports) or [""],
    )
    return [
        Case(
            peers=num_peers,
            topology=topology,
            params=size,
            rounds=rounds,
            dtype=dtype,
            transport=transport,
            settings=tuple(settings),
        )
        for num_peers, topology, size, dtype, transport in axes
    ]


def _values(given: Sequence[str]) -> list[str]:
    return [each.strip() for text in given for each in text.split(",") if each.strip()]


def number(text: str, where: str) -> int:
    """A positive whole number such as 8, 1_000_000, 500k or 11M; ConfigError otherwise."""
    factor = _SUFFIXES.get(text[-1:], 1)
    digits = text[:-1] if factor > 1 else text
    try:
        value = int(digits) * factor
    except ValueError:
        value = 0
    if value < 1:
        raise ConfigError(
            f"{where}: expected a positive whole number such as 8, 500k or 11M, found {text!r}"
        )
    return value


def links_of(words: str) -> Table:
    """A topology in words: `ring`, `k_regular degree=4`, or a topology file."""
    first, *rest = words.split()
    key = "file" if first.endswith(".toml") else "kind"
    return {key: first, **overrides_table(rest)}


def transport_of(words: str) -> Table:
    """A transport in words: keys of `[transport]` such as `scheme=tcp`; a bare word is its kind."""
    return overrides_table([each if "=" in each else f"kind={each}" for each in words.split()])
