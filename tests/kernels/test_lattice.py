"""The modulo lattice code: what it reads back, how far, and that it notices when it cannot."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from p2p_dml.kernels import lattice

BITS = [8, 16]


def numbers(seed: int, scale: float, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "a": (torch.rand((7, 5), generator=generator, dtype=torch.float64) * 2 - 1).to(dtype)
        * scale,
        "b": (torch.rand(11, generator=generator, dtype=torch.float64) * 2 - 1).to(dtype) * scale,
        "none": torch.zeros(0, dtype=dtype),
    }


def read(
    y: dict[str, Tensor], near: dict[str, Tensor], cell: float, bits: int
) -> dict[str, Tensor] | None:
    codes, checksum = lattice.encode(lattice.points(y, cell), bits)
    found = lattice.decode(codes, near, cell, bits, checksum)
    return None if found is None else lattice.placed(found, cell, near)


@pytest.mark.parametrize("bits", BITS)
@given(seed=st.integers(0, 1000), cell=st.floats(1e-4, 10.0), scale=st.floats(0.0, 1e4))
def test_models_within_reach_are_read_to_half_a_cell(
    bits: int, seed: int, cell: float, scale: float
) -> None:
    y = numbers(seed, scale)
    reach = 0.999 * (2**bits - 1) * cell / 2
    near = {name: x + reach * numbers(seed + 1, 1.0)[name] for name, x in y.items()}
    found = read(y, near, cell, bits)
    assert found is not None
    for name, x in y.items():
        assert bool(((found[name] - x).abs() <= cell / 2 * (1 + 1e-9)).all())


@pytest.mark.parametrize(
    ("bits", "y", "code"), [(8, 2.6, 3), (8, -1.0, 255), (8, 259.0, 3), (16, 0.0, -(2**15))]
)
def test_codes_by_hand(bits: int, y: float, code: int) -> None:
    codes, _ = lattice.encode(lattice.points({"x": torch.tensor([y])}, 1.0), bits)
    assert codes["x"].tolist() == [code]


@pytest.mark.parametrize("bits", BITS)
def test_codes_take_their_bits(bits: int) -> None:
    codes, _ = lattice.encode(lattice.points(numbers(0, 9.0), 0.1), bits)
    assert all(code.nbytes == code.numel() * bits // 8 for code in codes.values())


@pytest.mark.parametrize("bits", BITS)
@given(place=st.integers(0, 10), turns=st.sampled_from([-3, -1, 1, 2]))
def test_one_value_out_of_reach_is_noticed(bits: int, place: int, turns: int) -> None:
    y = numbers(5, 1.0)
    near = {name: x.clone() for name, x in y.items()}
    near["b"][place] += turns * 2**bits * 0.01
    assert read(y, near, 0.01, bits) is None


def test_errors_that_cancel_in_a_plain_sum_are_noticed() -> None:
    y = numbers(5, 1.0)
    near = {name: x.clone() for name, x in y.items()}
    near["a"][0, 0] += 2.56
    near["b"][3] -= 2.56
    assert read(y, near, 0.01, 8) is None


def test_checksums_are_exact_as_floats() -> None:
    sums = {lattice.checksum([torch.tensor([k, 256 * k])]) for k in range(-500, 500)}
    assert len(sums) == 1000
    assert all(0 <= x < 2**52 and x.is_integer() for x in sums)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_values_keep_the_readers_dtype(dtype: torch.dtype) -> None:
    y = numbers(2, 1.0, dtype)
    found = read(y, y, 0.01, 8)
    assert found is not None
    assert {x.dtype for x in found.values()} == {dtype}
