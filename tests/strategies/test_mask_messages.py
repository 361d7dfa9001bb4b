"""Messages with masks: those that are well formed, and how all others are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor

from p2p_dml.errors import WireError
from p2p_dml.kernels.masks import ones, pack
from p2p_dml.strategies._mask_coding import DELTA, PACKED, CodingState, MaskCoding, Mode
from p2p_dml.types import Coded, Neighbourhood, Payload

NUMELS = (75, 800, 1200, 40)
CODING = MaskCoding(numels=NUMELS)
A, B = 0, 1
HOOD = Neighbourhood(A, 0.9, {B: 0.1}, {B: 0.1})
DRAWN = np.random.Philox(key=[7, 0]).random_raw(sum(NUMELS)) % np.uint64(4) == 0
BITS = pack([torch.from_numpy(DRAWN)])
"""A packed mask of which every fourth bit or so is set."""


def good(mode: Mode = "entropy") -> Payload:
    outbox, _ = MaskCoding(numels=NUMELS, mode=mode).outbox(CodingState(), HOOD, 1, BITS)
    return outbox[B]


def test_a_coded_exchange_reads_by_sender() -> None:
    outbox, state = CODING.outbox(CodingState(), HOOD, 1, BITS)
    sent = Coded(outbox, partial(CODING.read, state))
    assert sent.read(B, good()).tensors["mask"].equal(BITS)


@pytest.mark.parametrize("mode", ["packed", "entropy"])
def test_a_mask_with_other_numbers_of_ones_than_expected_is_refused(mode: Mode) -> None:
    counts = ones(BITS, NUMELS)
    read = CODING.read(CodingState(), B, good(mode), lambda sender: counts)
    assert read.tensors["mask"].equal(BITS)
    more = [*counts[:-1], counts[-1] + 1]
    with pytest.raises(WireError, match=f"{counts[-1]} ones in layer 3, expected {more[-1]}"):
        CODING.read(CodingState(), B, good(mode), lambda sender: {B: more}[sender])


def scalar(name: str, value: float) -> Callable[[Payload], Payload]:
    return lambda payload: replace(payload, scalars={**payload.scalars, name: value})


def tensors(change: Callable[[Tensor], Mapping[str, Tensor]]) -> Callable[[Payload], Payload]:
    return lambda payload: replace(payload, tensors=change(payload.tensors["mask"]))


@pytest.mark.parametrize(
    ("mode", "change", "why"),
    [
        ("packed", tensors(lambda x: {}), "expected these names"),
        ("packed", tensors(lambda x: {"mask": x, "more": x}), "expected these names"),
        ("packed", scalar("round", 1), "expected these names"),
        ("packed", lambda p: replace(p, scalars={"coding": 0.0, "base": 0.0}), "these names"),
        ("packed", tensors(lambda x: {"mask": x.int()}), "uint8"),
        ("packed", tensors(lambda x: {"mask": x[None]}), "uint8"),
        ("packed", tensors(lambda x: {"mask": x[:-1]}), "264 bytes"),
        ("packed", tensors(lambda x: {"mask": torch.cat([x, x[:1]])}), "266 bytes"),
        ("packed", tensors(lambda x: {"mask": x | 128}), "behind its 2115 values"),
        ("packed", scalar("coding", 3), "coding 3"),
        ("packed", scalar("coding", -1), "whole number"),
        ("packed", scalar("coding", 0.5), "whole number"),
        ("packed", scalar("have", float("nan")), "whole number"),
        ("packed", scalar("have", float("inf")), "whole number"),
        ("packed", scalar("have", 2.0**52), "whole number"),
        ("packed", scalar("base", 7), "coding 0 with base 7"),
        ("packed", scalar("coding", DELTA), "coding 2 with base 0"),
        ("entropy", scalar("coding", PACKED), "bytes"),
        ("entropy", tensors(lambda x: {"mask": x[:-4]}), "mask: "),
        ("entropy", tensors(lambda x: {"mask": x[:-1]}), "mask: "),
        ("entropy", lambda p: scalar("coding", 2)(scalar("base", 7)(p)), "not held"),
    ],
)
def test_what_breaks_the_format_is_refused(
    mode: Mode, change: Callable[[Payload], Payload], why: str
) -> None:
    with pytest.raises(WireError, match=why):
        CODING.read(CodingState(), B, change(good(mode)))
