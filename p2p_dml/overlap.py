"""Communication that overlaps with computation: what a round sends is mixed in the next one.

While round r + 1 is trained, the models of round r travel. With the links and weights of round
r - 1, round r mixes  x_i(r) = w_ii x'_i(r) + sum_j w_ij x'_j(r - 1),  x' being the models after
training: others' are exactly one round old. In the first round of a peer there is nothing to mix.

With fixed symmetric links and no training,  sum_i [x_i(r) + sum_j w_ij x_j(r - 1)], j not i,  never
changes, so all models tend to the mean of the first ones with weights in proportion to 2 - w_ii:
the plain mean where all w_ii are equal, as on regular graphs. A training step of all peers moves
their models by 1 / mean(2 - w_ii) of it, little more than half with many neighbours: steps as large
as without overlap want a learning rate so much higher.
The idea is that of overlap SGP with staleness 1 (Assran et al. 2019, section 3); unlike in its
push-sum, what is under way is not taken off its sender's model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from p2p_dml.errors import ConfigError
from p2p_dml.tensors import clone
from p2p_dml.types import Coded, Neighbourhood, Outbox, Payload, PeerId, Sent, Tag


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class UnderWay:
    """A strategy's state, and what was posted and is mixed by nobody yet: what a checkpoint holds.

    `receivers`: the number of the payload that each gets, by which `tensors` and `scalars` go.
    """

    state: Any
    receivers: Mapping[PeerId, int]
    tensors: Mapping[int, Mapping[str, Tensor]]
    scalars: Mapping[int, Mapping[str, float]]

    @property
    def outbox(self) -> Outbox:
        """What was posted, to be posted again."""
        payloads = {k: Payload(x, self.scalars[k]) for k, x in self.tensors.items()}
        return {peer: payloads[k] for peer, k in self.receivers.items()}


@final
class Overlap:
    """What one peer has posted last, and with whom it exchanged then."""

    def __init__(self, me: PeerId) -> None:
        self._me = me
        self._round = 0
        self._hood = _alone(me)
        self._posted: Outbox = {}

    def turn(self, tag: Tag, hood: Neighbourhood, sent: Sent) -> tuple[Tag, Neighbourhood]:
        """Take down what is posted now; returns the exchange to be mixed in its place, and its row.

        Of a round that this peer had no part in it is told nothing: nobody is in that row. Raises
        ConfigError for payloads whose reading goes by what was sent in the same round.
        """
        if isinstance(sent, Coded):
            raise ConfigError(
                f"peer {self._me}, round {tag.round}: overlap = true mixes messages a round after "
                "they were sent, and this strategy reads its messages by what it sends in the same "
                "round (a Coded outbox); leave overlap out"
            )
        before = Tag(tag.round - 1, tag.exchange)
        heard = self._hood if self._round == before.round else _alone(self._me)
        self.posted(tag, hood, sent)
        return before, heard

    def posted(self, tag: Tag, hood: Neighbourhood, sent: Outbox) -> None:
        """Take down what is posted, with a copy of it: training changes models in place."""
        copies: dict[int, Payload] = {}
        for payload in sent.values():
            if id(payload) not in copies:
                copies[id(payload)] = Payload(clone(payload.tensors), dict(payload.scalars))
        self._posted = {peer: copies[id(payload)] for peer, payload in sent.items()}
        self._round, self._hood = tag.round, hood

    def held(self, state: object) -> UnderWay:
        """The strategy's state with what was posted last."""
        payloads = {id(payload): payload for payload in self._posted.values()}
        numbers = {place: k for k, place in enumerate(payloads)}
        return UnderWay(
            state=state,
            receivers={peer: numbers[id(payload)] for peer, payload in self._posted.items()},
            tensors={numbers[place]: payload.tensors for place, payload in payloads.items()},
            scalars={numbers[place]: payload.scalars for place, payload in payloads.items()},
        )


def _alone(me: PeerId) -> Neighbourhood:
    """The row of a peer that hears nobody."""
    return Neighbourhood(me, 1.0, {}, {})
