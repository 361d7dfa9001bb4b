"""DFedAvgM: heavy-ball steps from rest, then one mixing, dense or in few bits."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch

from p2p_dml.kernels.means import mix_mean
from p2p_dml.strategies._checks import check_count, check_positive, check_share
from p2p_dml.strategies._coded import Coded
from p2p_dml.tensors import clone, tmap
from p2p_dml.types import Inbox, Learner, Links, Need, Outbox, Payload, Tensors


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DFedAvgMState:
    """`cell`: side of the lattice that the next model is rounded to."""

    cell: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DFedAvgM:
    """`steps` heavy-ball steps per round, momentum starting at 0 in each, then D-PSGD's mixing.

    Gradients are taken at the moving local model; learner.train() is not called, and `lr` is the
    step size, not that of [train]. `bits` and `cell` as in SwarmSGD: the paper instead quantises
    the round's displacement, for which every peer keeps a copy of each neighbour's model; a lattice
    code needs none and so holds on changing links.
    Source: Sun, Li, Wang 2021, algorithm 1, eq. (5).
    """

    lr: float = 0.01
    momentum: float = 0.9
    steps: int = 5
    bits: Literal[8, 16] | None = None
    cell: float = 0.001

    def __post_init__(self) -> None:
        check_positive(lr=self.lr, cell=self.cell)
        check_share(momentum=self.momentum)
        check_count(steps=self.steps)

    @property
    def needs(self) -> frozenset[Need]:
        # A code of a model long past is too far away to be read.
        coded = {Need.SYNCHRONOUS, Need.EXACT} if self.bits else set()
        return frozenset({Need.DOUBLY_STOCHASTIC} | coded)

    @property
    def exchanges(self) -> int:
        return 1

    def init(self, learner: Learner, seed: int) -> DFedAvgMState:
        """The smallest cell."""
        return DFedAvgMState(cell=self.cell)

    def round(
        self, state: DFedAvgMState, learner: Learner, links: Links
    ) -> Generator[Outbox, Inbox, DFedAvgMState]:
        """Heavy ball, exchange, mix."""
        learner.params = self._heavy_ball(learner)
        if self.bits is None:
            inbox = yield links.now.broadcast(Payload(learner.params))
            mix_mean(learner.params, inbox)
            return state
        code = Coded(cell=state.cell, bits=self.bits)
        inbox = yield links.now.broadcast(code.payload(learner.params))
        shift, num_read = code.mix(learner.params, inbox)
        learner.params = tmap(torch.add, learner.params, shift)
        return DFedAvgMState(cell=code.next_cell(inbox, num_read, self.cell))

    def report(self, state: DFedAvgMState) -> Mapping[str, float]:
        return {}

    def _heavy_ball(self, learner: Learner) -> Tensors:
        """y^{k+1} = y^k - lr g(y^k) + momentum (y^k - y^{k-1}), y^0 = y^{-1} = x."""
        now = before = clone(learner.params)
        for _ in range(self.steps):
            g = learner.grad(now)
            new = tmap(
                lambda y, g, old: y - self.lr * g + self.momentum * (y - old), now, g, before
            )
            before, now = now, new
        return now
