"""A peer's trained model without its zeros: as a small dense model, and as values and a bitmap."""

from __future__ import annotations

from p2p_dml.export._dense import load, save
from p2p_dml.export._shrink import shrink
from p2p_dml.export._sparse import load_sparse, save_sparse

__all__ = ["load", "load_sparse", "save", "save_sparse", "shrink"]
