"""What is sent and how it is combined: one algorithm per file, and the one table of their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from p2p_dml.strategies.adom import ADOM
from p2p_dml.strategies.adom_plus import ADOMPlus
from p2p_dml.strategies.allreduce import AllReduce
from p2p_dml.strategies.dfedavgm import DFedAvgM
from p2p_dml.strategies.dispfl import DisPFL
from p2p_dml.strategies.dpsgd import DPSGD
from p2p_dml.strategies.fedpm import FedPM
from p2p_dml.strategies.gradient_tracking import GradientTracking
from p2p_dml.strategies.hyperprism import HyperPrism
from p2p_dml.strategies.local import Local
from p2p_dml.strategies.magnitude import Magnitude
from p2p_dml.strategies.mcepl import MCEPL
from p2p_dml.strategies.mudag import Mudag
from p2p_dml.strategies.sgp import SGP
from p2p_dml.strategies.supermask import Supermask
from p2p_dml.strategies.swarm import Swarm

STRATEGIES: Mapping[str, type[Any]] = {
    "local": Local,
    "dpsgd": DPSGD,
    "allreduce": AllReduce,
    "hyperprism": HyperPrism,
    "gradient_tracking": GradientTracking,
    "sgp": SGP,
    "swarm": Swarm,
    "mudag": Mudag,
    "adom": ADOM,
    "adom_plus": ADOMPlus,
    "dfedavgm": DFedAvgM,
    "mcepl": MCEPL,
    "supermask": Supermask,
    "fedpm": FedPM,
    "dispfl": DisPFL,
    "magnitude": Magnitude,
}
"""Strategies by the `name` of a run file's [strategy] table; the other keys are their fields."""

__all__ = [
    "ADOM",
    "DPSGD",
    "MCEPL",
    "SGP",
    "STRATEGIES",
    "ADOMPlus",
    "AllReduce",
    "DFedAvgM",
    "DisPFL",
    "FedPM",
    "GradientTracking",
    "HyperPrism",
    "Local",
    "Magnitude",
    "Mudag",
    "Supermask",
    "Swarm",
]
