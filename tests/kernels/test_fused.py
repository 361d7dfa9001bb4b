"""When the kernels for GPUs are used, and how much torch works on at a time where they are not."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import Tensor

from p2p_dml.kernels import _fused, _native
from p2p_dml.kernels._power import power_mean
from p2p_dml.kernels._sizes import at_once
from p2p_dml.kernels.means import weighted_power_mean


def refuse(xs: Sequence[Tensor], weights: Sequence[float], out: Tensor) -> None:
    raise RuntimeError("no C compiler")


def fill(*arguments: object) -> None:
    """A kernel that writes 7 into its results."""
    for x in arguments[-2:]:
        if isinstance(x, Tensor):
            x.fill_(7)


@pytest.fixture
def usable(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if CPU tensors were a GPU's, and the kernels `fill`."""
    monkeypatch.setattr(_native, "library", None)
    monkeypatch.setattr(_fused, "takes", lambda xs: True)
    monkeypatch.setattr(_fused, "kernels", lambda: SimpleNamespace(mean=fill, power_mean=fill))


def test_tensors_of_a_cpu_are_not_for_them() -> None:
    assert not _fused.takes([torch.ones(2), torch.ones(2)])


@pytest.mark.usefixtures("usable")
def test_they_compute_means_and_slopes_of_what_they_take() -> None:
    xs, out, slope = [torch.ones(3), torch.zeros(3)], torch.zeros(3), torch.zeros(3)
    assert weighted_power_mean(xs, [0.5, 0.5], 1.0).tolist() == [7.0] * 3
    assert power_mean(xs, [0.5, 0.5], 3.0, out, slope) is out
    assert (out.tolist(), slope.tolist()) == ([7.0] * 3, [7.0] * 3)


@pytest.mark.usefixtures("usable")
@pytest.mark.parametrize("p", [1.0, 3.0])
def test_a_result_with_gaps_is_filled_in_place(p: float) -> None:
    whole = torch.zeros(2, 3)
    weighted_power_mean([torch.ones(2), torch.ones(2)], [0.5, 0.5], p, out=whole[:, 1])
    assert whole.tolist() == [[0.0, 7.0, 0.0], [0.0, 7.0, 0.0]]


def test_without_triton_or_switched_off_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert _fused.kernels.__wrapped__() is None
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "here")
    monkeypatch.setenv(_native.SWITCH, "0")
    assert _fused.kernels.__wrapped__() is None


@pytest.mark.parametrize(("mean", "is_found"), [(fill, True), (refuse, False)])
def test_they_are_tried_first(
    monkeypatch: pytest.MonkeyPatch, mean: object, is_found: bool
) -> None:
    module = ModuleType("stub")
    vars(module)["mean"] = mean
    ones = torch.ones
    monkeypatch.delenv(_native.SWITCH, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: "here")
    monkeypatch.setattr(importlib, "import_module", lambda name: module)
    monkeypatch.setattr(torch, "ones", lambda size, device: ones(size))
    assert (_fused.kernels.__wrapped__() is module) is is_found


def test_a_cpu_is_given_what_its_cache_holds_and_others_what_memory_holds() -> None:
    assert at_once(torch.empty(1), 100, rows=7) == 100
    elsewhere = torch.empty(1, device="meta")
    assert at_once(elsewhere, 100, rows=8) == at_once(elsewhere, 100) // 8 > 1 << 20
    assert at_once(elsewhere, 100, rows=1 << 40) == 1
