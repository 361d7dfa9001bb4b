"""Any run file: what is written reads back equal, and overrides do what the file would have."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from hypothesis import given, settings
from hypothesis import strategies as st

from p2p_dml import config
from p2p_dml.run_fields import WEEK_S, as_name

SECONDS = st.floats(1e-3, WEEK_S, allow_nan=False)
SHARES = st.floats(0, 1, allow_nan=False)
NAMES = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20
)
VALUES = st.recursive(
    st.one_of(st.integers(-99, 99), SHARES, st.booleans(), NAMES),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
OWN_TABLE = st.builds(
    lambda name, rest: {"name": name, **{f"key_{i}": x for i, x in enumerate(rest)}},
    NAMES,
    st.lists(VALUES, max_size=3),
)
TRANSPORT = st.fixed_dictionaries(
    {},
    optional={
        "startup_s": SECONDS,
        "straggler_s": SECONDS,
        "heartbeat_s": SECONDS,
        "patience": st.integers(1, 99),
        "queue_messages": st.integers(1, 99),
        "scheme": st.sampled_from(["ipc", "tcp"]),
        "addresses": st.lists(NAMES, max_size=3),
    },
)
NETWORK = st.fixed_dictionaries(
    {},
    optional={
        "loss": SHARES,
        "delay_s": SECONDS,
        "bandwidth_mbps": SECONDS,
        "between": st.lists(st.just({"peers": [[0, 1]], "loss": 0.5}), max_size=2),
    },
)
WATCHDOG = st.fixed_dictionaries(
    {},
    optional={
        "step_s": SECONDS,
        "storage_s": SECONDS,
        "action": st.sampled_from(["report", "end"]),
    },
)
FILES: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "peers": st.integers(1, 100_000),
        "rounds": st.integers(1, 1 << 40),
        "strategy": OWN_TABLE,
        "links": st.just({"kind": "ring"}),
    },
    optional={
        "name": NAMES.map(as_name),
        "seed": st.integers(0, (1 << 63) - 1),
        "dtype": st.sampled_from(["float32", "float64"]),
        "model": OWN_TABLE,
        "train": OWN_TABLE,
        "duration_s": SECONDS,
        "evaluate_every": st.integers(0, 99),
        "transport": TRANSPORT,
        "network": NETWORK,
        "watchdog": WATCHDOG,
    },
)


def flat(tables: Mapping[str, object], path: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys and values of nested tables."""
    for key, value in tables.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


@given(FILES)
@settings(max_examples=60)
def test_what_is_dumped_loads_equal(tables: dict[str, Any]) -> None:
    run = config.parse(tables, Path())
    with tempfile.TemporaryDirectory() as folder:
        config.dump(run, Path(folder, "run.toml"))
        assert config.load(Path(folder, "run.toml"), folder=Path()) == run


@given(FILES)
@settings(max_examples=60)
def test_overrides_do_what_the_file_would_have_done(tables: dict[str, Any]) -> None:
    overrides = [
        f"{key}={tomli_w.dumps({'x': value}).removeprefix('x = ').strip()}"
        for key, value in flat(tables)
        if key != "network.between"
    ]
    made = config.overrides_table(overrides)
    if between := tables.get("network", {}).get("between"):
        config.assign(made, "network.between", between)
    assert config.parse(made, Path()) == config.parse(tables, Path())
