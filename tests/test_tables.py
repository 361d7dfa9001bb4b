"""From a table to an object: every mistake names its place and the way out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, final

import pytest

from p2p_dml import tables
from p2p_dml.errors import ConfigError


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Thing:
    """A choice as users make it."""

    degree: float
    steps: int = 1
    mode: Literal["fast", "exact"] = "fast"
    sizes: tuple[int, ...] = ()
    names: list[str] | None = None
    rates: Mapping[str, float] | float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.degree < 1:
            raise ValueError(f"degree {self.degree}: expected at least 1")


def thing(degree: float, steps: int = 2, **rest: object) -> tuple[float, int, int]:
    """A factory with arguments of all kinds."""
    return degree, steps, len(rest)


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("hyperprsm", "did you mean 'hyperprism'? valid: dpsgd, hyperprism, local"),
        ("DPSGD", "valid: dpsgd, hyperprism, local"),
        ("zzz", "valid: dpsgd, hyperprism, local"),
        ("", "valid: dpsgd, hyperprism, local"),
    ],
)
def test_nearest(word: str, hint: str) -> None:
    assert tables.nearest(word, ["local", "hyperprism", "dpsgd"]) == hint


def test_choose() -> None:
    assert tables.choose({"ring": 1, "star": 2}, "star", "links.kind") == 2


@pytest.mark.parametrize("name", ["rign", 3, None, ["ring"]])
def test_choosing_what_is_not_there(name: object) -> None:
    with pytest.raises(ConfigError, match=r"links\.kind: unknown name .*valid: ring, star"):
        tables.choose({"ring": 1, "star": 2}, name, "links.kind")


def test_build_takes_the_table_and_what_the_program_gives() -> None:
    table = {"degree": 3, "sizes": [1, 2], "mode": "exact", "names": ["a"], "rates": {"w": 1}}
    built = tables.build(Thing, table, "strategy", seed=7, unknown="left out")
    assert built == Thing(
        degree=3.0, sizes=(1, 2), mode="exact", names=["a"], rates={"w": 1.0}, seed=7
    )
    assert type(built.degree) is float


def test_the_table_overrides_what_the_program_gives() -> None:
    assert tables.build(Thing, {"degree": 1, "seed": 5}, "strategy", seed=7).seed == 5


def test_functions_are_built_too_and_take_nothing_by_other_names() -> None:
    assert tables.build(thing, {"degree": 2}, "model", rest=1, more=2) == (2.0, 2, 0)
    with pytest.raises(ConfigError, match=r"model\.rest: unknown key; valid: degree, steps"):
        tables.build(thing, {"degree": 2, "rest": 1}, "model")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (
            {"degre": 1},
            r"strategy\.degre: unknown key; did you mean 'degree'\? valid: degree, mode",
        ),
        ({}, r"strategy\.degree: missing; this key has no default"),
        ({"degree": "high"}, r"strategy\.degree: .*valid number; found str 'high'"),
        ({"degree": True}, r"strategy\.degree: .*valid number; found bool True"),
        ({"degree": 2, "steps": 1.0}, r"strategy\.steps: .*valid integer; found float 1\.0"),
        ({"degree": 2, "steps": "1"}, r"strategy\.steps: .*valid integer; found str '1'"),
        ({"degree": 2, "steps": True}, r"strategy\.steps: .*valid integer; found bool True"),
        ({"degree": 2, "mode": "slow"}, r"strategy\.mode: .*'fast' or 'exact'; found str 'slow'"),
        ({"degree": 2, "sizes": 3}, r"strategy\.sizes: .*valid tuple; found int 3"),
        ({"degree": 2, "sizes": [1, "2"]}, r"strategy\.sizes\[1\]: .*integer; found str '2'"),
        ({"degree": 2, "sizes": [1, 2.0]}, r"strategy\.sizes\[1\]: .*integer; found float 2\.0"),
        ({"degree": 2, "sizes": [True]}, r"strategy\.sizes\[0\]: .*integer; found bool True"),
        ({"degree": 2, "names": [5]}, r"strategy\.names\[0\]: .*valid string; found int 5"),
        ({"degree": 2, "rates": {"w": "1"}}, r"strategy\.rates: .*valid number; found str '1'"),
        ({"degree": 0.5}, r"strategy: degree 0\.5: expected at least 1"),
    ],
)
def test_every_mistake_is_named(table: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tables.build(Thing, table, "strategy")


def test_errors_of_the_factory_other_than_values_are_not_the_users() -> None:
    def broken(degree: float) -> None:
        raise KeyError(degree)

    with pytest.raises(KeyError):
        tables.build(broken, {"degree": 1.0}, "strategy")


def test_values_without_an_annotation_pass_as_they_are() -> None:
    marker = object()
    built = tables.build(_bare, {"anything": marker}, "model")
    assert built is marker


def _bare(anything):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return anything


@pytest.mark.parametrize(
    ("annotation", "value", "expected"),
    [
        (int, 5, 5),
        (float, 5, 5.0),
        (int | None, None, None),
        (tuple[float, ...], [1, 2.5], (1.0, 2.5)),
        (tuple[tuple[int, int], ...], [[1, 2], [3, 4]], ((1, 2), (3, 4))),
        (tuple[int, ...], (1, 2), (1, 2)),
        (float | tuple[float, ...], [0.5], (0.5,)),
        (Mapping[str, int], {"a": 1}, {"a": 1}),
        (Callable[[], int], len, len),
        (float, float("inf"), float("inf")),
        (list[float], [float("inf")], [float("inf")]),
    ],
)
def test_check_converts_only_what_loses_nothing(
    annotation: object, value: object, expected: object
) -> None:
    found = tables.check(annotation, value, "x")
    assert (found, type(found)) == (expected, type(expected))
