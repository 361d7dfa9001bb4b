"""Models in fewer bits: codes held against numpy and plain loops, refusals, what mixing keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from p2p_dml import reading
from p2p_dml.assemble import blueprint
from p2p_dml.checks import check_needs
from p2p_dml.config import parse
from p2p_dml.errors import ConfigError, TrainingError, WireError
from p2p_dml.kernels.mixing import metropolis
from p2p_dml.links.static import Ring
from p2p_dml.strategies import DPSGD, STRATEGIES
from p2p_dml.types import Coded, Inbox, Mail, Message, Need, Payload, PeerId, Tag
from p2p_dml.wire_format import BLOCK, FORMATS, SCALES, Coder, read_late

NAMES = tuple(FORMATS)
SIZES = [
    (),
    (1,),
    (7, 3),
    (BLOCK - 1,),
    (BLOCK,),
    (BLOCK + 1,),
    (3, BLOCK),
    (5, 1000),
    (1100, 1000),
]
"""Shapes around a block, and one that is worked on in two pieces."""


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 1) -> Tensor:
    """Normal numbers whose size differs from row to row, as that of layers does."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape or (1,), generator=generator, dtype=torch.float64)
    x *= torch.randn(len(x), *[1] * (x.dim() - 1), generator=generator).exp()
    return x.view(shape).to(dtype)


def coder(name: str) -> Coder:
    return Coder(me=3, strategy="dpsgd", name=name)


def through(name: str, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What receivers make of tensors."""
    codec = FORMATS[name]
    return codec.decode(codec.code(tensors), tensors)


def as_float16(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return x.astype(np.float16).astype(x.dtype)


def as_bfloat16(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """By hand, on the bits: to nearest, ties to the even one."""
    bits = x.astype(np.float32).view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded: np.ndarray[Any, Any] = (bits & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded.astype(x.dtype)


def as_int8(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Block by block, number by number."""
    flat = x.reshape(-1)
    found: np.ndarray[Any, Any] = np.empty_like(x)
    for begin in range(0, flat.size, BLOCK):
        block = flat[begin : begin + BLOCK]
        scale = x.dtype.type(np.float32(np.abs(block).max() / x.dtype.type(127)))
        found.reshape(-1)[begin : begin + BLOCK] = np.rint(block / scale) * scale
    return found


ORACLES = {"float16": as_float16, "bfloat16": as_bfloat16, "int8": as_int8}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_what_arrives_is_what_numpy_makes_of_it(name: str, shape: tuple[int, ...]) -> None:
    x = drawn(*shape)
    found = through(name, {"x": x})["x"]
    assert (found.dtype, found.shape) == (x.dtype, x.shape)
    assert torch.equal(found, torch.from_numpy(np.asarray(ORACLES[name](x.numpy()))).view(shape))


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_no_number_is_off_by_more_than_half_a_level(shape: tuple[int, ...]) -> None:
    for dtype in (torch.float32, torch.float64):
        x = drawn(*shape, dtype=dtype)
        off = (through("int8", {"x": x})["x"] - x).abs().reshape(-1)
        for begin in range(0, x.numel(), BLOCK):
            largest = x.reshape(-1)[begin : begin + BLOCK].abs().max().item()
            assert off[begin : begin + BLOCK].max().item() <= largest / 254 * (1 + 1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_several_tensors_keep_their_places_and_what_is_no_float_its_bits(name: str) -> None:
    sent = {
        "mask": torch.tensor([True, False, True]),
        "w": drawn(3, BLOCK),
        "count": torch.tensor(1 << 40),
        "column": drawn(40, 50).T[3:],
        "nothing": torch.zeros(0, 4),
        "b": drawn(5, dtype=torch.float64),
    }
    found = through(name, sent)
    assert list(found) == list(sent)
    for key, x in sent.items():
        assert (found[key].dtype, found[key].shape) == (x.dtype, x.shape)
        alone = x if key in ("mask", "count", "nothing") else through(name, {key: x})[key]
        assert torch.equal(found[key], alone)


@pytest.mark.parametrize("name", NAMES)
def test_a_code_is_in_memory_of_its_own(name: str) -> None:
    x = drawn(BLOCK)
    before = x.clone()
    codec = FORMATS[name]
    code = codec.code({"x": x})
    expected = codec.decode(code, {"x": x})["x"]
    assert torch.equal(x, before)
    x.fill_(7.0)
    assert torch.equal(codec.decode(code, {"x": x})["x"], expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_layout_is_that_of_the_code(name: str) -> None:
    like = {f"{shape}": drawn(*shape) for shape in SIZES} | {"n": torch.ones(3, dtype=torch.int64)}
    code, layout = FORMATS[name].code(like), FORMATS[name].layout(like)
    assert [(n, x.dtype, x.shape) for n, x in code.items()] == [
        (n, x.dtype, x.shape) for n, x in layout.items()
    ]


@pytest.mark.parametrize(
    ("name", "num_bytes"), [("float16", 5002), ("bfloat16", 5002), ("int8", 2517)]
)
def test_bytes_by_hand(name: str, num_bytes: int) -> None:
    """2,500 numbers and one: 16 bits each, or 8 and four scales of 32."""
    code = FORMATS[name].code({"w": drawn(50, 50), "b": drawn(1)})
    assert sum(x.nbytes for x in code.values()) == num_bytes


def test_zeros_and_the_smallest_numbers() -> None:
    x = torch.tensor([0.0, 1e-40, -1e-44, 0.0])
    assert torch.equal(through("int8", {"x": torch.zeros(3)})["x"], torch.zeros(3))
    for name in NAMES:
        assert (through(name, {"x": x})["x"] - x).abs().max() <= 1e-38


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK, 2 * BLOCK + 4])
def test_what_is_no_number_is_refused_by_receivers(name: str, bad: float, place: int) -> None:
    x = drawn(2 * BLOCK + 5)
    x[place] = bad
    own = {"x": drawn(2 * BLOCK + 5, seed=2)}
    outbox = coder(name).outbox({1: Payload({"x": x})}, 1)
    refused: list[tuple[PeerId, str]] = []
    read = coder(name).reader({1: Payload(own)}, own)
    mail = Mail({3: outbox[1], 4: coder(name).outbox({1: Payload(own)}, 1)[1]})
    good = reading.on_time(mail, read, lambda sender, why: refused.append((sender, why)))
    assert list(good) == [4]
    assert refused == [(3, "tensor 'x' holds a NaN or an infinity")]


@pytest.mark.parametrize(
    ("name", "dtype", "fits", "too_large"),
    [
        ("float16", torch.float32, 65504.0, 65505.0),
        ("float16", torch.float32, -65504.0, -65505.0),
        ("bfloat16", torch.float32, 3.38e38, 3.40e38),
        ("bfloat16", torch.float64, 3.38e38, 1e39),
        ("int8", torch.float64, 3.4e38, -1e39),
    ],
)
def test_a_number_beyond_the_format_ends_the_sender_by_name(
    name: str, dtype: torch.dtype, fits: float, too_large: float
) -> None:
    x = drawn(2000, dtype=dtype)
    x[1500] = fits
    found = through(name, {"x": x})["x"]
    assert found.isfinite().all() and found[1500].item() == pytest.approx(fits, rel=0.01)
    x[1500] = too_large
    with pytest.raises(TrainingError) as caught:
        coder(name).outbox({1: Payload({"a": torch.ones(2), "fc.weight": x})}, 17)
    for said in ("peer 3, round 17", f"wire_format = '{name}'", "'fc.weight' holds", '"as_is"'):
        assert said in str(caught.value)


def test_a_tensor_that_is_called_like_the_scales_cannot_be_sent() -> None:
    with pytest.raises(ConfigError, match=r"peer 3, round 1: .*'int8/scales': this name is taken"):
        coder("int8").outbox({1: Payload({SCALES: torch.ones(2)})}, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_payload_for_many_is_coded_once(name: str) -> None:
    shared, single = Payload({"x": drawn(9)}, {"weight": 0.5}), Payload({"x": drawn(9, seed=2)})
    outbox = coder(name).outbox({1: shared, 2: single, 5: shared}, 1)
    assert list(outbox) == [1, 2, 5]
    assert outbox[1] is outbox[5] is not outbox[2]
    assert outbox[1].scalars == {"weight": 0.5}
    assert coder(name).outbox({}, 1) == {}


def test_a_strategy_with_codes_of_its_own_is_told() -> None:
    with pytest.raises(ConfigError, match=r"peer 3, round 2: strategy 'dpsgd' needs its messages"):
        coder("int8").outbox(Coded({}, lambda sender, payload: payload), 2)


# ---- what strangers send ----------------------------------------------------------------------

LIKE = {"w": torch.zeros(3, 1000), "b": torch.zeros(4)}
GOOD: Mapping[str, Tensor] = FORMATS["int8"].code(LIKE)


def changed(name: str, x: Tensor) -> Payload:
    return Payload({**GOOD, name: x})


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (Payload(LIKE), "tensor names differ: missing ['int8/scales']"),
        (changed("w", LIKE["w"]), "tensor 'w': expected torch.int8 [3, 1000], got torch.float32"),
        (changed("w", GOOD["w"][:2]), "tensor 'w': expected torch.int8 [3, 1000], got torch.int8"),
        (changed(SCALES, torch.ones(3)), "tensor 'int8/scales': expected torch.float32 [4], got"),
        (changed(SCALES, torch.ones(4).double()), "tensor 'int8/scales': expected torch.float32"),
        (changed(SCALES, torch.full((4,), math.nan)), "tensor 'w' holds a NaN or an infinity"),
        (changed(SCALES, torch.full((4,), math.inf)), "tensor 'w' holds a NaN or an infinity"),
        (
            Payload({"w": GOOD["w"] + 100, "b": GOOD["b"], SCALES: torch.full((4,), 3e38)}),
            "tensor 'w' holds a NaN or an infinity",
        ),
        (changed("x", torch.ones(1)), "tensor names differ: missing none, unexpected ['x']"),
    ],
)
@pytest.mark.parametrize("is_finite", [False, True])
def test_what_does_not_fit_counts_as_missing(payload: Payload, why: str, is_finite: bool) -> None:
    refused: list[tuple[PeerId, str]] = []
    read = coder("int8").reader({}, LIKE)
    mail = Mail({1: Payload(GOOD), 2: replace(payload, is_finite=is_finite)})
    good = reading.on_time(mail, read, lambda sender, why: refused.append((sender, why)))
    assert list(good) == [1]
    assert {n: x.dtype for n, x in good[1].tensors.items()} == dict.fromkeys(LIKE, torch.float32)
    ((sender, said),) = refused
    assert sender == 2 and said.startswith(why)


def test_the_lowest_code_is_a_number_too() -> None:
    """No sender makes -128 of anything; whoever does sends -128 scales."""
    code = {**GOOD, "b": torch.full((4,), -128, dtype=torch.int8), SCALES: torch.full((4,), 0.5)}
    found = coder("int8").reader({}, LIKE)(1, Payload(code))
    assert found.tensors["b"].tolist() == [-64.0] * 4


@pytest.mark.parametrize("name", NAMES)
def test_late_messages_are_read_or_refused(name: str) -> None:
    x = {"x": drawn(2000)}
    good = coder(name).outbox({1: Payload(x, {"weight": 0.25})}, 1)[1]
    late = [Message(4, Tag(2), good), Message(5, Tag(1), Payload(x))]
    refused: list[PeerId] = []
    read = coder(name).reader({}, x)
    mail = read_late(Mail({}, late, 77), read, lambda sender, why: refused.append(sender))
    ((message),) = mail.late
    assert (message.sender, message.tag, mail.num_bytes) == (4, Tag(2), 77)
    assert message.payload.scalars == {"weight": 0.25}
    assert torch.equal(message.payload.tensors["x"], through(name, x)["x"])
    assert refused == [5]
    with pytest.raises(WireError):
        read(5, late[1].payload)


# ---- what mixing keeps ------------------------------------------------------------------------


def mixed(models: Tensor, name: str | None, rounds: int) -> Tensor:
    """[peers, n] after rounds of D-PSGD without training on a ring, sent in a format."""
    graph = Ring(num_peers=len(models))(0)
    hoods = [metropolis(graph, me) for me in range(len(models))]
    for _ in range(rounds):
        sent = [through(name, {"x": x})["x"] if name else x for x in models]
        inboxes = [
            Inbox(hood, {j: Payload({"x": sent[j]}) for j in hood.in_weights}) for hood in hoods
        ]
        rows = [inbox.with_own({"x": models[inbox.hood.me]}) for inbox in inboxes]
        models = torch.stack(
            [sum(w * t["x"] for t, w in zip(*row, strict=True)) for row in rows]  # type: ignore[misc]
        )
    return models


@pytest.mark.parametrize(
    ("name", "relative"), [("float16", 2**-11), ("bfloat16", 2**-8), ("int8", 1 / 254)]
)
def test_the_mean_moves_by_rounding_alone(name: str, relative: float) -> None:
    """Each round all neighbours hear a model off by one rounding, with 2/3 of the weight."""
    models = torch.randn(6, 500, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    found = mixed(models, name, 30)
    moved = (found.mean(0) - models.mean(0)).abs().max()
    assert 0 < moved <= 30 * 2 / 3 * relative * models.abs().max()
    assert (found - found.mean(0)).abs().max() < 4 * relative * models.abs().max()
    assert (mixed(models, None, 30).mean(0) - models.mean(0)).abs().max() < 1e-14


def test_what_a_format_holds_exactly_is_mixed_as_it_is() -> None:
    """Whole numbers up to 127, 127 among them, and one round: no bit is lost on the way."""
    models = torch.randint(
        -127, 128, (5, 3000), generator=torch.Generator().manual_seed(1)
    ).double()
    models[:, ::BLOCK] = 127.0
    for name in NAMES:
        assert torch.equal(mixed(models, name, 1), mixed(models, None, 1))


# ---- who may ----------------------------------------------------------------------------------


def parts(strategy: object, wire_format: str = "int8", **changes: object) -> Any:
    tables = {"peers": 4, "rounds": 2, "links": "complete", "strategy": strategy}
    return blueprint(parse({**tables, "wire_format": wire_format, **changes}, Path()))


CODED = ("mcepl", "fedpm", "dispfl", "magnitude")
TRACKING = ("gradient_tracking", "mudag", "adom", "adom_plus")


@pytest.mark.parametrize(
    "strategy",
    [
        *CODED,
        *TRACKING,
        {"name": "swarm", "bits": 8},
        {"name": "dfedavgm", "bits": 16},
        {"name": "sgp", "running_sums": True},
    ],
    ids=str,
)
def test_who_codes_its_messages_itself_is_told_what_to_do(strategy: object) -> None:
    rest = {"mixing": "push_uniform"} if "sgp" in str(strategy) else {}
    with pytest.raises(ConfigError) as caught:
        check_needs(parts(strategy, **rest))
    name = strategy if isinstance(strategy, str) else dict(strategy)["name"]  # type: ignore[call-overload]
    for said in ("wire_format: 'int8' cannot be used", f"strategy '{name}'", '"as_is"', "dpsgd"):
        assert said in str(caught.value)
    check_needs(parts(strategy, "as_is", **rest))


@pytest.mark.parametrize("name", sorted(set(STRATEGIES) - {*CODED, *TRACKING}))
@pytest.mark.parametrize("wire_format", NAMES)
def test_all_others_may(name: str, wire_format: str) -> None:
    check_needs(parts(name, wire_format, mixing="push_uniform" if name == "sgp" else "metropolis"))


def test_peers_of_different_formats_are_of_different_runs() -> None:
    texts = {parts("dpsgd", name).config.canonical() for name in ("as_is", *NAMES)}
    assert len(texts) == 4


def test_a_format_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"wire_format.*'as_is', 'float16', 'bfloat16' or 'int8'"):
        parts("dpsgd", "int4")


def test_plain_strategies_do_not_ask_for_exact_messages() -> None:
    assert Need.EXACT not in DPSGD().needs
