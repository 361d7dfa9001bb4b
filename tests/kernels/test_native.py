"""The compiled kernels against torch and wider arithmetic; threads and cuts must not show.

What depends on the processor is tested twice: as it was built, and without AVX-512.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from p2p_dml.kernels import _native, backend
from p2p_dml.kernels._power import power_mean
from p2p_dml.kernels.means import weighted_mean, weighted_power_mean

ROOT = Path(__file__).parents[2]
TILE, BLOCK = 1024, 64
DEGREES = (1.0, 1.3, 2.0, 3.0, 4.5, 5.0, 9.0, 15.0, 31.0, 33.0, 101.5)
ULP = {torch.float32: 2.0**-23, torch.float64: 2.0**-52}

built = pytest.mark.skipif(_native.library is None, reason="the compiled kernels were not built")


def draw(count: int, size: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(size)
    return list(torch.randn((count, size), generator=generator, dtype=torch.float64).to(dtype))


def both(xs: list[Tensor], weights: list[float], p: float) -> tuple[Tensor, Tensor]:
    slope = torch.empty_like(xs[0])
    return power_mean(xs, weights, p, slope=slope), slope


@pytest.fixture(scope="session")
def portable(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """The compiled kernels as a processor without AVX-512 runs them."""
    if shutil.which("cc") is None:
        pytest.skip("no cc here")
    path = tmp_path_factory.mktemp("portable") / "_compiled.so"
    source = ROOT / "p2p_dml" / "kernels" / "_native.c"
    flags = ["-O1", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-DPORTABLE"]
    command = ["cc", *flags, "-shared", "-fPIC", "-pthread", str(source), "-o", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    with pytest.MonkeyPatch.context() as patch:
        spec = ModuleSpec("_compiled", None, origin=str(path))
        patch.setattr(importlib.util, "find_spec", lambda name: spec)
        library = _native.load("")
    assert library is not None
    return library


@pytest.fixture(params=["as built", "portable"])
def compiled(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run a test with both power means of float32 that the library holds."""
    if _native.library is None:
        pytest.skip("the compiled kernels were not built, or are switched off")
    name: str = request.param
    if name == "portable":
        monkeypatch.setattr(_native, "library", request.getfixturevalue("portable"))
    return name


@pytest.fixture
def threads() -> Iterator[None]:
    """Give torch back its number of threads."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("p", DEGREES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_native_and_torch_agree(
    p: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    xs, weights = draw(7, 3 * TILE + 5, dtype), [0.1, 0.2, 0.3, 0.05, 0.15, 0.1, 0.1]
    one_sign = [x.abs().copysign(xs[0]) for x in xs]
    native, slopes = weighted_power_mean(one_sign, weights, p), both(one_sign, weights, p)[1]
    mixed = weighted_power_mean(xs, weights, p)
    monkeypatch.setattr(_native, "library", None)
    plain, plain_slopes = both(one_sign, weights, p)
    largest = torch.stack(xs).abs().amax(0)
    torch.testing.assert_close(native, plain, rtol=16 * ULP[dtype], atol=0)
    assert ((slopes - plain_slopes).abs() <= 16 * ULP[dtype] * largest).all()
    # An error of S, a sum of terms of both signs, is (M / |mean|)^p / p times as large in the mean.
    plain_mixed = weighted_power_mean(xs, weights, p)
    magnified = largest * (largest / plain_mixed.abs()) ** (p - 1)
    allowed = ULP[dtype] * (16 * largest + 4 * magnified)
    assert ((mixed - plain_mixed).abs() <= allowed).all()


def bound(ratio: NDArray[np.floating], dtype: torch.dtype) -> NDArray[np.floating]:
    """Allowed relative error of a mean of `ratio` times the largest input.

    Logarithms have an absolute error that grows with them: one ulp more for each halving.
    """
    allowed: NDArray[np.floating] = ULP[dtype] * (4 - 1.2 * np.log2(ratio))
    return allowed


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("p", [1.5, 3.0, 5.0, 9.0, 31.0, 33.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_ratio_over_its_whole_range_is_accurate(p: float, dtype: torch.dtype) -> None:
    """Models 1 and -r with weights a and 1 - a, a so small that the mean follows r."""
    a = 2.0**-80
    r = torch.from_numpy(np.exp2(np.linspace(-80 / p, 0, 5000))).to(dtype)
    got = weighted_power_mean([torch.ones_like(r), -r], [a, 1 - a], p)
    exact = r.numpy().astype(np.longdouble)
    total = a - exact**p
    kept = np.abs(total) > 0.5 * exact**p  # elsewhere the two terms cancel
    expected = (np.sign(total) * np.abs(total) ** (1 / np.longdouble(p)))[kept]
    assert kept.sum() > 4500
    assert (np.abs(got.numpy()[kept] / expected - 1) <= bound(np.abs(expected), dtype)).all()


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("p", [1.5, 4.0, 33.0, 301.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_over_its_whole_range_is_accurate(p: float, dtype: torch.dtype) -> None:
    """One model x with weight a beside zeros: x a^(1/p)."""
    x = torch.tensor([3.0, -0.7], dtype=dtype)
    lowest = -125 if dtype == torch.float32 else -1021
    for a in np.exp2(np.linspace(lowest, -1e-9, 300)).tolist():
        got = weighted_power_mean([x, torch.zeros_like(x)], [a, 1 - a], p)
        weight = np.longdouble(torch.tensor(a, dtype=dtype).item())
        ratio = weight ** (1 / np.longdouble(p))
        error = np.abs(got.numpy() / (x.numpy().astype(np.longdouble) * ratio) - 1)
        assert (error <= bound(ratio, dtype)).all()


def magnitudes(dtype: torch.dtype) -> NDArray[np.float64]:
    info = torch.finfo(dtype)
    lowest, highest = np.log2(info.tiny * info.eps), np.log2(info.max)
    return np.exp2(np.linspace(lowest, np.nextafter(highest, 0), 3000))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("p", DEGREES[1:])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_models_of_every_magnitude_keep_their_value(p: float, dtype: torch.dtype) -> None:
    x = torch.from_numpy(magnitudes(dtype)).to(dtype)
    got = weighted_power_mean([x, x, x], [0.25, 0.5, 0.25], p)
    normal = x >= torch.finfo(dtype).tiny
    assert ((got - x).abs() <= 2 * ULP[dtype] * x)[normal].all()
    assert ((got >= 0) & (got <= x)).all()
    if p < 7 or p > 31:  # up to there odd powers of denormal numbers are too small for a float
        torch.testing.assert_close(got, x, rtol=2 * ULP[dtype], atol=torch.finfo(dtype).tiny * 1e-7)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("p", [1.0, 3.0, 4.5, 9.0])
@pytest.mark.parametrize("begin", [0, 1, 5, BLOCK, TILE - 1])
@pytest.mark.parametrize("size", [1, BLOCK - 1, BLOCK, BLOCK + 1, TILE, 2 * TILE + 1])
def test_where_a_tensor_is_cut_does_not_show(p: float, begin: int, size: int) -> None:
    xs, weights = draw(3, 4 * TILE), [0.2, 0.5, 0.3]
    piece = slice(begin, begin + size)
    mean, slope = both(xs, weights, p)
    cut_mean, cut_slope = both([x[piece] for x in xs], weights, p)
    assert torch.equal(cut_mean, mean[piece]) and torch.equal(cut_slope, slope[piece])
    whole = weighted_power_mean(xs, weights, p)
    assert torch.equal(weighted_power_mean([x[piece] for x in xs], weights, p), whole[piece])


@pytest.mark.usefixtures("compiled", "threads")
@pytest.mark.parametrize("p", [1.0, 3.0, 4.5])
def test_the_number_of_threads_does_not_show(p: float) -> None:
    xs, weights = draw(3, 400_001), [0.2, 0.5, 0.3]
    found = []
    for number in (1, 2, 3, 100):
        torch.set_num_threads(number)
        found.append((weighted_power_mean(xs, weights, p), *both(xs, weights, p)))
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 63, 64, TILE + 1])
def test_the_weighted_mean_is_a_chain_of_additions(dtype: torch.dtype, size: int) -> None:
    # Multiples of 1/64 below 8: no sum is rounded, so that it does not matter if products are.
    xs = [(8 * x).round().div(8).clamp(-8, 8) for x in draw(5, size, dtype)]
    weights = [0.125, 0.25, 0.125, 0.25, 0.25]
    expected = torch.stack([a * x for a, x in zip(weights, xs, strict=True)]).sum(0)
    got = weighted_mean([{"w": x} for x in xs], weights)["w"]
    assert torch.equal(got, expected)


@pytest.mark.usefixtures("backend")
def test_the_name_of_what_computes_is_told(backend: str) -> None:
    from p2p_dml import kernels

    assert kernels.backend() == backend


@built
def test_the_switch_turns_the_compiled_kernels_off() -> None:
    assert _native.load("") is not None
    assert _native.load("0") is None
    run = [sys.executable, "-c", "from p2p_dml.kernels import backend; print(backend())"]
    environment = {**os.environ, _native.SWITCH: "0"}
    told = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "torch"


@pytest.mark.parametrize(("compiler", "succeeds"), [("false", False), ("cc", True)])
def test_the_build_succeeds_with_and_without_a_compiler(
    compiler: str, succeeds: bool, tmp_path: Path
) -> None:
    pytest.importorskip("setuptools")
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} here")
    command = [sys.executable, "setup.py", "--quiet", "build_ext"]
    folders = ["--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp")]
    environment = {**os.environ, "CC": compiler, "CFLAGS": "-Wall -Wextra -Werror"}
    subprocess.run([*command, *folders], cwd=ROOT, env=environment, check=True, capture_output=True)
    assert bool(list(tmp_path.glob("lib/**/_compiled*.so"))) == succeeds


def test_without_the_library_nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _native.takes([torch.ones(2, dtype=torch.bfloat16)])
    monkeypatch.setattr(_native, "library", None)
    assert not _native.takes([torch.ones(2)])
    assert backend() == "torch"


@pytest.mark.usefixtures("backend")
def test_degree_1_is_the_mean_by_the_general_way_too() -> None:
    xs, weights = [x.abs() for x in draw(3, 100)], [0.2, 0.5, 0.3]
    linear = weighted_power_mean(xs, weights, 1.0)
    torch.testing.assert_close(power_mean(xs, weights, 1.0), linear, rtol=1e-6, atol=0)


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("p", [3.0, 9.0, 4.5, 101.5])
@pytest.mark.parametrize("bad", [float("inf"), -float("inf"), float("nan")])
def test_only_coordinates_that_are_not_finite_become_nan(p: float, bad: float) -> None:
    xs, weights = draw(3, BLOCK + 20), [0.2, 0.5, 0.3]
    clean = both(xs, weights, p)
    xs[1] = xs[1].clone()
    xs[1][::7] = bad
    for found, without in zip(both(xs, weights, p), clean, strict=True):
        assert found[::7].isnan().all()
        found[::7] = without[::7]
        assert torch.equal(found, without)
    assert weighted_power_mean(xs, weights, p).isnan().nonzero().flatten().tolist() == list(
        range(0, BLOCK + 20, 7)
    )


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("p", [3.0, 9.0, 4.5, 101.5])
def test_zeros_give_0_and_no_slope(p: float) -> None:
    zeros = torch.zeros(BLOCK + 5)
    for xs in ([zeros, zeros, -zeros], [zeros + 2, zeros - 2, zeros]):  # nothing, or it cancels
        mean, slope = both(xs, [0.25, 0.25, 0.5], p)
        assert not mean.any() and not slope.any()
        assert not weighted_power_mean(xs, [0.25, 0.25, 0.5], p).any()


@built
def test_what_is_written_raises_the_version_counter() -> None:
    """Training computed ahead tells by it that a model was mixed since."""
    xs = [torch.rand(100), torch.rand(100)]
    slope = torch.empty(100)
    before = xs[0]._version, slope._version
    _native.mean(xs, [0.5, 0.5], xs[0].detach())
    _native.power_mean(xs, [0.5, 0.5], 9.0, xs[0].detach(), slope)
    assert (xs[0]._version, slope._version) == (before[0] + 2, before[1] + 1)
