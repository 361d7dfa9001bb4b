"""Combine, then adapt: neighbours' models of the round's start, and one's own training on top."""

from __future__ import annotations

from p2p_dml.kernels.means import weighted_mean
from p2p_dml.tensors import tmap
from p2p_dml.types import Inbox, Learner, Tensors


def mix_and_add(start: Tensors, learner: Learner, inbox: Inbox) -> None:
    """x_i <- sum_j w_ij x_j^start + (x_i - x_i^start); x_i as it is if nobody was heard."""
    if not inbox.messages:
        return
    mixed = weighted_mean(*inbox.with_own(start))
    learner.params = tmap(lambda m, x, old: m + (x - old), mixed, learner.params, start)
