"""What is sent and how it is combined: one algorithm per file, and the one table of their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from p2p_dml.strategies.allreduce import AllReduce
from p2p_dml.strategies.dpsgd import DPSGD
from p2p_dml.strategies.hyperprism import HyperPrism
from p2p_dml.strategies.local import Local

STRATEGIES: Mapping[str, type[Any]] = {
    "local": Local,
    "dpsgd": DPSGD,
    "allreduce": AllReduce,
    "hyperprism": HyperPrism,
}
"""Strategies by the `name` of a run file's [strategy] table; the other keys are their fields."""

__all__ = ["DPSGD", "STRATEGIES", "AllReduce", "HyperPrism", "Local"]
