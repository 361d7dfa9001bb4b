"""Binary masks against sorting, numpy's bit packing and sums of expanded masks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from p2p_dml.kernels import masks
from p2p_dml.kernels.masks import MAX_MASKS, count, has_padding, num_kept, ones, pack, unpack

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]

shapes = st.lists(st.lists(st.integers(0, 7), max_size=3), max_size=6)


def words(seed: int, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    drawn: np.ndarray[tuple[int], np.dtype[np.uint64]] = np.random.Philox(
        key=[11, seed]
    ).random_raw(size)
    return drawn


def random_masks(seed: int, shapes: Sequence[Sequence[int]], device: str = "cpu") -> list[Tensor]:
    return [
        torch.from_numpy(words(1000 * seed + i, math.prod(shape)) % 3 == 0)
        .view(tuple(shape))
        .to(device)
        for i, shape in enumerate(shapes)
    ]


def largest_first(x: Tensor, kept: int) -> Tensor:
    """The mask by a stable sort."""
    order = x.reshape(-1).argsort(descending=True, stable=True)
    mask = torch.zeros(x.numel(), dtype=torch.bool)
    mask[order[:kept]] = True
    return mask.view(x.shape)


@pytest.mark.parametrize(
    ("numel", "share", "kept"),
    [
        (10, 0.0, 0), (10, 0.3, 3), (10, 1.0, 10), (1000, 1e-9, 1), (0, 0.5, 0), (1, 0.4, 1),
        (3, 0.5, 2), (4800, 0.3, 1440), (198_528, 0.9, 178_675),
    ],
)  # fmt: skip
def test_num_kept_by_hand(numel: int, share: float, kept: int) -> None:
    assert num_kept(numel, share) == kept


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan, math.inf])
def test_shares_outside_0_and_1_are_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share = "):
        num_kept(10, share)
    with pytest.raises(ValueError, match="share = "):
        masks.top_share(torch.ones(3), share)


def test_top_share_by_hand() -> None:
    x = torch.tensor([[0.5, -3.0, 2.0], [2.0, 0.5, 0.5]])
    assert masks.top_share(x, 1 / 6).tolist() == [[False, False, True], [False, False, False]]
    assert masks.top_share(x, 0.5).tolist() == [[True, False, True], [True, False, False]]
    assert masks.top_share(x, 4 / 6).tolist() == [[True, False, True], [True, True, False]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@given(
    seed=st.integers(0, 99),
    size=st.integers(0, 60),
    levels=st.integers(1, 9),
    share=st.floats(0, 1),
)
def test_top_share_keeps_the_first_of_equal_values(
    device: str, dtype: torch.dtype, seed: int, size: int, levels: int, share: float
) -> None:
    values = (words(seed, size) % np.uint64(levels)).astype(np.float64) - levels // 2
    x = torch.from_numpy(values).to(dtype)
    expected = largest_first(x, num_kept(size, share))
    for most in (0, size):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(masks, "_PARTITIONED", most)
            mask = masks.top_share(x.to(device), share)
        assert mask.dtype == torch.bool
        assert mask.cpu().equal(expected)


@pytest.mark.parametrize("dtype", DTYPES)
@given(
    picked=st.lists(st.integers(0, 11), min_size=1, max_size=40),
    negated=st.booleans(),
    share=st.floats(0, 1),
)
def test_top_share_of_extreme_floats_by_digits_and_by_parts(
    dtype: torch.dtype, picked: list[int], negated: bool, share: float
) -> None:
    info = torch.finfo(dtype)
    tiny = info.tiny * info.eps
    all_ = [0.0, tiny, 2 * tiny, info.tiny, 1.0, 1 + info.eps, 1 - info.eps, 2.0, 3.0, info.max]
    extremes = torch.tensor([*all_, math.inf, -0.0], dtype=torch.float64)
    x = (-extremes if negated else extremes)[picked].to(dtype)
    kept = num_kept(len(picked), share)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "_PARTITIONED", 0)
        assert masks.top_share(x, share).equal(largest_first(x, kept))
    assert masks._sorted_out(x, kept).equal(largest_first(x, kept))


def test_top_share_of_many_values_and_of_a_transposed_tensor() -> None:
    x = torch.from_numpy((words(3, 300_000) >> np.uint64(11)).astype(np.float32)).view(600, 500)
    assert masks.top_share(x, 0.3).equal(largest_first(x, 90_000))
    assert masks.top_share(x.T, 0.3).equal(largest_first(x.T.contiguous(), 90_000))
    rounded = (x / 2**50).round()
    assert len(set(rounded.flatten().tolist())) < 10
    assert masks.top_share(rounded, 0.3).equal(largest_first(rounded, 90_000))


@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
def test_values_that_are_no_numbers_are_a_failed_training(share: float) -> None:
    with pytest.raises(FloatingPointError, match="not all numbers"):
        masks.top_share(torch.tensor([1.0, math.nan, 1.0, 0.0]), share)


def test_packed_by_hand() -> None:
    first = torch.tensor([[True, False], [False, True]])
    second = torch.tensor([False, False, True, False, False, True, True])
    packed = pack([first, second])
    assert packed.tolist() == [0b01001001, 0b00000110]
    assert packed.dtype == torch.uint8


@pytest.mark.parametrize("device", DEVICES)
@given(shapes=shapes, seed=st.integers(0, 99))
def test_packed_as_numpy_does_and_back(
    device: str, shapes: Sequence[Sequence[int]], seed: int
) -> None:
    drawn = random_masks(seed, shapes, device)
    flat = np.concatenate([np.zeros(0, bool), *(m.cpu().numpy().reshape(-1) for m in drawn)])
    bits = pack(drawn)
    assert bits.tolist() == np.packbits(flat, bitorder="little").tolist()
    if drawn:
        assert masks._packed_words([mask.reshape(-1) for mask in drawn]).equal(bits)
    assert bits.numel() == masks.packed_bytes(flat.size)
    found = unpack(bits, shapes)
    assert [m.dtype for m in found] == [torch.bool] * len(shapes)
    assert all(x.equal(y) for x, y in zip(found, drawn, strict=True))


@pytest.mark.parametrize("device", DEVICES)
@given(shapes=shapes, seed=st.integers(0, 99))
def test_ones_are_the_sums_of_the_masks(
    device: str, shapes: Sequence[Sequence[int]], seed: int
) -> None:
    drawn = random_masks(seed, shapes, device)
    numels = [mask.numel() for mask in drawn]
    assert ones(pack(drawn), numels) == [int(mask.sum()) for mask in drawn]
    assert ones(pack([~mask for mask in drawn]), numels) == [int((~m).sum()) for m in drawn]


@pytest.mark.parametrize(
    ("byte", "numel", "padded"),
    [(0b111, 3, False), (0b1000, 3, True), (0b10000000, 7, True), (0b10000000, 8, False)],
)
def test_padding_is_what_stands_behind_the_last_value(byte: int, numel: int, padded: bool) -> None:
    assert has_padding(torch.tensor([255, byte], dtype=torch.uint8), 8 + numel) is padded


@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9])
def test_a_packed_mask_of_no_values_has_no_padding(numel: int) -> None:
    assert not has_padding(pack([torch.ones(numel, dtype=torch.bool)]), numel)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("number", [1, 2, 3, 4, 7, 8, 20, 64, MAX_MASKS])
def test_counts_are_the_sums_of_the_masks(device: str, number: int) -> None:
    drawn = [random_masks(seed, [(1003,)], device)[0] for seed in range(number)]
    found = count([pack([mask]) for mask in drawn], 1003)
    assert found.dtype == torch.uint8
    assert found.equal(torch.stack(drawn).sum(0).byte())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("number", [1, 8, MAX_MASKS, MAX_MASKS + 1, 2 * MAX_MASKS + 3])
def test_counts_reach_the_number_of_masks(device: str, number: int) -> None:
    bits = pack([torch.tensor([True, False, True], device=device)])
    assert count([bits] * number, 3).tolist() == [number, 0, number]


@given(number=st.integers(1, 40), numel=st.integers(0, 200), block=st.integers(1, 9))
def test_counts_do_not_depend_on_the_blocks(number: int, numel: int, block: int) -> None:
    drawn = [random_masks(seed, [(numel,)])[0] for seed in range(number)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "_BLOCK_BYTES", {"cpu": block})
        found = count([pack([mask]) for mask in drawn], numel)
    assert found.tolist() == torch.stack(drawn).sum(0).tolist()


def test_counting_leaves_the_masks_alone() -> None:
    packed = [pack(random_masks(seed, [(100,)])) for seed in range(9)]
    before = [bits.clone() for bits in packed]
    count(packed, 100)
    assert all(x.equal(y) for x, y in zip(packed, before, strict=True))


def test_wrong_numbers_and_lengths_of_masks_are_refused() -> None:
    bits = pack([torch.ones(9, dtype=torch.bool)])
    with pytest.raises(ValueError, match="no masks: expected at least 1"):
        count([], 9)
    with pytest.raises(ValueError, match="9 values take 2 bytes"):
        count([bits, bits[:1]], 9)
    with pytest.raises(ValueError, match="17 values take 3 bytes"):
        ones(bits, [8, 9])
    with pytest.raises(ValueError, match="8 values take 1 bytes"):
        unpack(bits, [(2, 4)])
