"""Learners: a model with local data and optimiser, which knows nothing of other peers."""

from __future__ import annotations

from p2p_dml.learners._batched import drawback, obstacle
from p2p_dml.learners._metrics import Metrics
from p2p_dml.learners._samples import own_counts, test_samples
from p2p_dml.learners._training import Training
from p2p_dml.learners.fleet import Fleet
from p2p_dml.learners.function import FunctionLearner
from p2p_dml.learners.supervised import SupervisedLearner

__all__ = [
    "Fleet",
    "FunctionLearner",
    "Metrics",
    "SupervisedLearner",
    "Training",
    "drawback",
    "obstacle",
    "own_counts",
    "test_samples",
]
