"""SwarmSGD: random pairs average after some local steps, without waiting for each other's."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Literal, final

import torch

from p2p_dml.strategies._checks import check_positive
from p2p_dml.strategies._coded import Coded
from p2p_dml.strategies._displacement import mix_and_add
from p2p_dml.tensors import clone, tmap
from p2p_dml.types import Inbox, Learner, Links, Need, Outbox, Payload


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SwarmState:
    """`cell`: side of the lattice that the next model is rounded to."""

    cell: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Swarm:
    """SwarmSGD; the H local steps are those of learner.train().

    Pairs come from links = "random_matching", whose mixing weights are 1/2; on other links the
    neighbourhood's weights take their place. `blocking`: the pair averages its trained models.
    Otherwise a peer sends the model that its round began with, S^0, and its own training u is
    added to the average: S <- (S^0 + Y_j) / 2 + u.

    `bits`: None sends models as they are; 8 or 16 the lattice code with cells of at least `cell`,
    see `Coded` for what happens when a code cannot be read. 8 bits reach 127 cells to each side.
    Source: Nadiradze et al. 2021, algorithms 1 and 2, section 4.
    """

    blocking: bool = False
    bits: Literal[8, 16] | None = None
    cell: float = 0.001

    def __post_init__(self) -> None:
        check_positive(cell=self.cell)

    @property
    def needs(self) -> frozenset[Need]:
        coded = {Need.EXACT} if self.bits else set()
        return frozenset({Need.DOUBLY_STOCHASTIC, Need.SYNCHRONOUS} | coded)

    @property
    def exchanges(self) -> int:
        return 1

    def init(self, learner: Learner, seed: int) -> SwarmState:
        """The smallest cell."""
        return SwarmState(cell=self.cell)

    def round(
        self, state: SwarmState, learner: Learner, links: Links
    ) -> Generator[Outbox, Inbox, SwarmState]:
        """Train, exchange, mix what was published, keep one's own training."""
        published = clone(learner.params)
        learner.train()
        if self.blocking:
            published = clone(learner.params)
        if self.bits is None:
            inbox = yield links.now.broadcast(Payload(published))
            mix_and_add(published, learner, inbox)
            return state
        code = Coded(cell=state.cell, bits=self.bits)
        inbox = yield links.now.broadcast(code.payload(published))
        shift, num_read = code.mix(published, inbox)
        learner.params = tmap(torch.add, learner.params, shift)
        return SwarmState(cell=code.next_cell(inbox, num_read, self.cell))

    def report(self, state: SwarmState) -> Mapping[str, float]:
        return {}
