"""Sketches: exact where they can be, unbiased where they cannot, and linear always."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2p_dml.kernels import sketch
from p2p_dml.kernels.sketch import WIDTH


def draw(key: int, *shape: int) -> Tensor:
    """Repeatable numbers in [-1, 1)."""
    words = np.random.Philox(key=key).random_raw(math.prod(shape)) >> np.uint64(11)
    return torch.from_numpy(words * 2.0**-52 - 1).reshape(shape)


def sketches(models: Tensor, seed: int) -> NDArray[np.float32]:
    return np.stack([sketch.sketch({"x": row}, seed) for row in models])


def distance(models: Tensor) -> float:
    """sqrt(1/n sum |x_i - mean|^2), from the models themselves."""
    return float((models - models.mean(dim=0)).square().sum(dim=1).mean().sqrt())


@pytest.mark.parametrize("size", [1, 2, 100, WIDTH - 1, WIDTH])
def test_small_models_are_exact(size: int) -> None:
    models = draw(size, 5, size)
    found = sketch.consensus_distance(sketches(models, seed=3))
    assert found == pytest.approx(distance(models), rel=1e-6)


@pytest.mark.parametrize("size", [WIDTH + 1, 5 * WIDTH, 70_000])
def test_large_models_are_estimated_without_bias(size: int) -> None:
    """Mean over seeds within four standard errors; each squared norm has one of sqrt(2/WIDTH)."""
    x = draw(size, size)
    seeds = 40
    estimates = [float((sketch.sketch({"x": x}, s).astype(float) ** 2).sum()) for s in range(seeds)]
    error = math.sqrt(2 / WIDTH / seeds)
    assert np.mean(estimates) / float(x.square().sum()) == pytest.approx(1, abs=4 * error)
    assert np.std(estimates) / float(x.square().sum()) < 1.5 * math.sqrt(2 / WIDTH)


def test_the_distance_of_many_large_models_is_near() -> None:
    models = draw(1, 50, 3000)
    found = sketch.consensus_distance(sketches(models, seed=0))
    assert found == pytest.approx(distance(models), rel=4 * math.sqrt(2 / WIDTH / 50))


def test_equal_models_have_no_distance() -> None:
    models = draw(1, 1, 1000).expand(4, 1000)
    assert sketch.consensus_distance(sketches(models, seed=0)) == 0.0


def test_sketches_are_linear() -> None:
    x, y = draw(1, 700), draw(2, 700)
    of_sum = sketch.sketch({"x": 2 * x - 3 * y}, 5)
    parts = 2 * sketch.sketch({"x": x}, 5) - 3 * sketch.sketch({"x": y}, 5)
    assert np.allclose(of_sum, parts, atol=1e-4)


def test_every_parameter_counts_once_in_its_bucket() -> None:
    seen = np.zeros(WIDTH)
    for place in range(2 * WIDTH):
        x = torch.zeros(2 * WIDTH)
        x[place] = 1.0
        values = sketch.sketch({"x": x}, seed=1)
        assert np.count_nonzero(values) == 1
        seen += abs(values)
    assert (seen == 2.0).all()


def test_signs_are_balanced_and_differ_between_seeds() -> None:
    signs = [sketch.sketch({"x": torch.ones(WIDTH)}, seed) for seed in (0, 1)]
    for row in signs:
        assert set(row) == {-1.0, 1.0}
        assert abs(row.sum()) < 5 * math.sqrt(WIDTH)
    agreeing = int((signs[0] == signs[1]).sum())
    assert abs(agreeing - WIDTH / 2) < 5 * math.sqrt(WIDTH) / 2


def test_the_split_into_tensors_does_not_matter() -> None:
    x = draw(4, 150_000)
    whole = sketch.sketch({"x": x}, 9)
    split = sketch.sketch({"a": x[:100].view(20, 5), "b": x[100:70_000], "c": x[70_000:]}, 9)
    assert np.array_equal(whole, split)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.int64])
def test_every_dtype_counts_by_its_value(dtype: torch.dtype) -> None:
    x = (8 * draw(4, 600)).to(dtype)
    assert np.array_equal(sketch.sketch({"x": x}, 9), sketch.sketch({"x": x.double()}, 9))


def test_far_parts_of_a_large_model_have_signs_of_their_own() -> None:
    """Adding x at the front and -x far behind would cancel if the signs repeated."""
    x = torch.zeros(256 * WIDTH + 5)
    x[:5], x[-5:] = 1.0, -1.0
    values = [sketch.sketch({"x": x}, seed)[:5] for seed in range(10)]
    assert {0.0, 2.0, -2.0} == {float(v) for v in np.concatenate(values)}


def test_no_parameters_are_a_sketch_too() -> None:
    assert np.array_equal(sketch.sketch({}, 1), np.zeros(WIDTH, np.float32))


def test_text_round_trip() -> None:
    values = sketch.sketch({"x": draw(1, 5000)}, 2)
    text = sketch.encode(values)
    assert text.isascii()
    found = sketch.decode(text)
    assert found is not None
    assert np.array_equal(found, values)
    assert found.dtype == np.dtype("<f4")


WHOLE = sketch.encode(np.ones(WIDTH, np.float32))


@pytest.mark.parametrize(
    "text", ["", "!" + WHOLE[1:], "é" + WHOLE[1:], WHOLE[:-1], WHOLE[:-4], WHOLE + WHOLE, "AAAA"]
)
def test_what_is_no_sketch_is_none(text: str) -> None:
    """A damaged event file is read as far as it can be."""
    assert sketch.decode(text) is None
