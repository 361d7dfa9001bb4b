"""Pure mathematics on tensors; knows nothing of peers."""

from __future__ import annotations

from typing import Literal

from p2p_dml.kernels import _native


def backend() -> Literal["native", "torch"]:
    """What computes means of CPU models: the compiled kernels, or torch where there are none."""
    return "torch" if _native.library is None else "native"
