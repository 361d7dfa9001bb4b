"""States of strategies: their leaves by path, their outline, and both together again, exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from p2p_dml.errors import ConfigError
from p2p_dml.states import leaves, outline, restore
from p2p_dml.types import Inbox, Learner, Links, Need, Sent

FLAT = torch.arange(10.0)


@dataclass
class Inner:
    """A part of a strategy's state."""

    y: dict[str, Tensor]
    degree: float


@dataclass(frozen=True)
class Held:
    """An entry that only some states have."""

    bits: Tensor
    round: int


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """A strategy's state of everything that one may hold."""

    inner: Inner | None
    count: int = 0
    done: bool = False
    nothing: None = None
    last: Held | None = None
    held: Mapping[str, Held] = field(default_factory=dict)
    by_peer: Mapping[int, dict[str, Held]] = field(default_factory=dict)
    net: Any = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("what a constructor refuses may still have come to be")


@dataclass(frozen=True)
class Plan:
    """A strategy that is never run: only what `init` says it returns is looked at."""

    needs = frozenset[Need]()
    exchanges = 0

    def init(self, learner: Learner, seed: int) -> State | None:
        raise NotImplementedError

    def round(
        self, state: State | None, learner: Learner, links: Links
    ) -> Generator[Sent, Inbox, State | None]:
        raise NotImplementedError

    def report(self, state: State | None) -> Mapping[str, float]:
        raise NotImplementedError


def again(state: object, fresh: object, away: str = "cpu") -> Any:
    """A state that has been through leaves and outline."""
    return restore(Plan(), fresh, leaves(state, "strategy"), outline(state, "strategy"), away)


def same(one: object, other: object) -> bool:
    """Equal in every class, type, key, order and bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        is_alike = (one.dtype, one.shape) == (other.dtype, other.shape)
        return is_alike and torch.equal(*(x.reshape(-1).view(torch.uint8) for x in (one, other)))
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    if isinstance(one, float) and isinstance(other, float):
        return one.hex() == other.hex()
    return one == other


FRESH = State(inner=Inner({}, 1.0))
FULL = State(
    inner=Inner({"w/1": FLAT.view(2, 5), "a": FLAT[:0]}, -0.0),
    count=2**62,
    done=True,
    last=Held(torch.tensor([True, False]), 3),
    held={"b/2": Held(torch.ones(1, dtype=torch.bfloat16), 1), "a": Held(torch.ones(()), 2)},
    by_peer={7: {"x": Held(torch.zeros(2, dtype=torch.uint8), 0)}, 3: {}},
)


def test_leaves_of_a_nested_state() -> None:
    state = State(inner=Inner({"w": FLAT.view(2, 5).T, "b": FLAT[:1]}, 2.5), count=7, done=True)
    found = leaves(state, "strategy")
    assert list(found) == [
        "strategy/inner/y/w",
        "strategy/inner/y/b",
        "strategy/inner/degree",
        "strategy/count",
        "strategy/done",
    ]
    assert found["strategy/inner/y/w"].is_contiguous()
    assert torch.equal(found["strategy/inner/y/w"], FLAT.view(2, 5).T)


@pytest.mark.parametrize(
    ("number", "dtype"), [(0.1, torch.float64), (2**40, torch.int64), (True, torch.bool)]
)
def test_numbers_keep_their_value(number: float, dtype: torch.dtype) -> None:
    (leaf,) = leaves(number, "x").values()
    assert (leaf.shape, leaf.dtype, leaf.item()) == ((), dtype, number)


def test_leaves_of_mappings_with_other_keys_and_of_nothing() -> None:
    assert list(leaves(MappingProxyType({3: FLAT, "a": {}}), "s")) == ["s/3"]
    assert leaves(None, "s") == {}


def test_leaves_are_no_part_of_a_graph() -> None:
    assert not leaves(torch.ones(2, requires_grad=True), "x")["x"].requires_grad


@pytest.mark.parametrize("function", [leaves, outline])
@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": "text"}}, "s/a/b: a state cannot hold a str"),
        ([FLAT], "s: a state cannot hold a list"),
        (Inner({"w": (FLAT,)}, 1.0), "s/y/w: a state cannot hold a tuple"),  # type: ignore[dict-item]
        ({"a": {(1, 2): FLAT}}, r"s/a: expected keys of text or int, found \(1, 2\)"),
    ],
)
def test_what_a_state_cannot_hold_is_named(
    function: Callable[[object, str], object], state: object, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        function(state, "s")


def test_two_entries_of_one_path_are_refused() -> None:
    with pytest.raises(TypeError, match="s/a/b: two entries of a state have this path"):
        leaves({"a": {"b": 1}, "a/b": 2}, "s")


def test_an_outline_says_what_paths_do_not() -> None:
    state: dict[str, object] = {"n": None, "t": FLAT, "of": Held(FLAT, 3), "e": {}}
    assert json.loads(outline(state, "s")) == [
        "map",
        ["n", None],
        ["t", "tensor"],
        ["of", ["class", "Held", ["bits", "tensor"], ["round", "int"]]],
        ["e", ["map"]],
    ]


@pytest.mark.parametrize("state", [FULL, FRESH, State(inner=None), None])
@pytest.mark.parametrize("fresh", [FULL, FRESH, None])
def test_a_state_comes_back_whatever_a_fresh_one_has(
    state: State | None, fresh: State | None
) -> None:
    assert same(again(state, fresh), state)


def test_a_part_of_a_class_that_no_annotation_names_is_that_of_the_fresh_state() -> None:
    state = State(inner=None, net=Held(FLAT, 1))
    assert same(again(state, State(inner=None, net=Held(FLAT[:1], 0))), state)
    with pytest.raises(ConfigError, match="strategy/net: found a Held and cannot tell which class"):
        again(state, FRESH)


def test_constructors_are_not_run() -> None:
    state = object.__new__(State)
    for each in fields(State):
        object.__setattr__(state, each.name, getattr(FRESH, each.name))
    object.__setattr__(state, "count", -1)
    assert again(state, FRESH).count == -1


def test_tensors_are_copies_and_land_where_the_fresh_state_has_them() -> None:
    state = State(inner=Inner({"here": FLAT, "new": FLAT + 1}, 1.0))
    fresh = State(inner=Inner({"here": FLAT.to("meta")}, 1.0))
    back = again(state, fresh, away="meta")
    assert [x.device.type for x in back.inner.y.values()] == ["meta", "cpu"]
    tensors = leaves(state, "strategy")
    copied = restore(Plan(), FRESH, tensors, outline(state, "strategy"), "cpu")
    assert copied.inner.y["new"].data_ptr() != tensors["strategy/inner/y/new"].data_ptr()


def test_a_tensor_of_a_device_goes_to_the_learners() -> None:
    text = json.dumps(["map", ["x", "tensor elsewhere"], ["y", "tensor"]])
    tensors = {"strategy/x": FLAT, "strategy/y": FLAT}
    back = restore(Plan(), {}, tensors, text, "meta")
    assert {key: x.device.type for key, x in back.items()} == {"x": "meta", "y": "cpu"}
    assert json.loads(outline({"x": FLAT.to("meta")}, "s")) == ["map", ["x", "tensor elsewhere"]]


def test_what_does_not_fit_is_named() -> None:
    tensors, text = leaves(FULL, "strategy"), outline(FULL, "strategy")
    del tensors["strategy/held/b/2/round"]
    with pytest.raises(ConfigError, match="strategy/held/b/2/round: missing"):
        restore(Plan(), FRESH, tensors, text, "cpu")
    older = text.replace('["done","bool"],', "")
    with pytest.raises(ConfigError, match="strategy: expected State with the fields inner, count"):
        restore(Plan(), FRESH, leaves(FULL, "strategy"), older, "cpu")


KEYS = st.text(alphabet="ab/.", min_size=1, max_size=3)
NUMBERS = st.floats(allow_nan=True) | st.integers(-(2**63), 2**63 - 1) | st.booleans()
TENSORS = st.builds(
    lambda size, dtype: torch.arange(size).to(dtype),
    st.integers(0, 3),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.bool]),
)
HELD = st.builds(Held, TENSORS, st.integers(0, 9))
STATES = st.builds(
    State,
    inner=st.none() | st.builds(Inner, st.dictionaries(KEYS, TENSORS), st.floats()),
    count=st.integers(0, 2**63 - 1),
    done=st.booleans(),
    last=st.none() | HELD,
    held=st.dictionaries(KEYS, HELD, max_size=3),
    by_peer=st.dictionaries(st.integers(0, 9), st.dictionaries(KEYS, HELD, max_size=2), max_size=2),
    net=st.none() | st.recursive(NUMBERS | TENSORS, lambda x: st.dictionaries(KEYS, x, max_size=3)),
)


@settings(max_examples=150, deadline=None)
@given(state=STATES, fresh=STATES)
def test_any_state_comes_back(state: State, fresh: State) -> None:
    try:
        tensors = leaves(state, "strategy")
    except TypeError as error:  # {"a/b": …, "a": {"b": …}}
        assert "two entries" in str(error)
        return
    back = restore(Plan(), fresh, tensors, outline(state, "strategy"), "cpu")
    assert same(back, state)
    assert same(leaves(back, "s"), leaves(state, "s"))


def test_numbers_that_are_no_numbers_come_back() -> None:
    assert math.isnan(again({"x": math.nan}, {})["x"])
    assert again({"x": -math.inf}, {}) == {"x": -math.inf}
