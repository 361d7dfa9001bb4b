"""How a peer comes into a run that is under way: back, or for the first time.

It has met neighbours who are past the beginning. It goes on from its own last checkpoint, or, if it
has none, with the model of a neighbour, and takes part from the round after the latest one that it
has heard of. Nobody waits for it before. Where strategies learn masks over the weights that all
peers drew alike it keeps those: a neighbour's model would be the weights that its mask has left.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch

from p2p_dml import __version__, checkpoint
from p2p_dml.checkpoint import Checkpoint
from p2p_dml.errors import ConfigError, StartupError, WireError
from p2p_dml.events import Event, Rejected, Rejoined
from p2p_dml.links.elastic import Elastic
from p2p_dml.peer import LocalLearner, PeerLoop
from p2p_dml.tensors import join, mismatch, part
from p2p_dml.transports.zeromq import ZeroMQTransport
from p2p_dml.types import Payload, PeerId, Tensors

_FILE = "checkpoint"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Entrant:
    """A peer before its first round; `run` is where its checkpoints are.

    `earlier_digests`: of the run before it was made longer; checkpoints of then are still its own.
    `waits`: whether rounds are synchronous, so that their numbers mean the same to all.
    `takes_models`: whether the model of a neighbour does in place of its own first one. `elastic`:
    the schedule, where peers come and go.
    """

    me: PeerId
    run: Path
    digest: bytes
    earlier_digests: Collection[str]
    learner: LocalLearner
    waits: bool
    takes_models: bool
    elastic: Elastic | None
    startup_s: float
    on_event: Callable[[Event], None]

    def enter(self, transport: ZeroMQTransport, loop: PeerLoop) -> None:
        """Find state and round, and have `loop` begin there.

        Raises StartupError if nobody has let this peer take part.
        """
        own = checkpoint.newest(self.run, self.me, {self.digest.hex(), *self.earlier_digests})
        if own is not None and own.outline is None:
            own = None
        is_member = self.elastic is None or self.elastic.members.is_to_stay(self.me)
        given = None if own is not None and is_member else self._ask(transport)
        if own is not None:
            event = Rejoined(self._round(transport, own.round), "checkpoint", own.round)
        elif given is not None and self.takes_models:
            self.learner.load_state(given.tensors)
            event = Rejoined(
                self._round(transport, given.round), "neighbour", given.round, given.peer
            )
        else:
            done = given.round if given else 0
            event = Rejoined(self._round(transport, done), "beginning", 0)
        self.on_event(event)
        loop.enter(event.round, own)
        transport.come_inside(event.round)

    def _round(self, transport: ZeroMQTransport, done: int) -> int:
        """The first round to run: that after all others'; where nobody waits, after its own."""
        round_ = (max(done, transport.newest_round) if self.waits else done) + 1
        if self.elastic is None:
            return round_
        if not self.elastic.members.is_to_stay(self.me):
            raise StartupError(
                f"peer {self.me}: nobody who takes part has let it in; is the run still going on?"
            )
        return self.elastic.members.first_round(self.me, round_)

    def _ask(self, transport: ZeroMQTransport) -> Checkpoint | None:
        """The model of a neighbour; None if nobody has given one in time that fits."""
        for neighbour in transport.connected:
            payload = transport.ask_for_model(neighbour, self.startup_s)
            if payload is None:
                continue
            try:
                return self._read(neighbour, payload)
            except WireError as error:
                self.on_event(Rejected(neighbour, transport.newest_round, str(error)))
        return None

    def _read(self, neighbour: PeerId, payload: Payload) -> Checkpoint:
        """What a neighbour gave, held against its checksum and this peer's own model: WireError."""
        try:
            data = payload.tensors[_FILE].contiguous().view(torch.uint8).numpy().tobytes()
            found = checkpoint.decode(data)
        except (KeyError, RuntimeError, ConfigError) as error:
            raise WireError(f"its model cannot be taken over: {error}") from error
        wrong = mismatch(found.tensors, _model_alone(self.learner))
        if (found.peer, found.digest) != (neighbour, self.digest.hex()):
            wrong = f"it is that of peer {found.peer}, run {found.digest[:12]}"
        if wrong:
            raise WireError(f"its model cannot be taken over: {wrong}")
        return found


def model_of(me: PeerId, round_: int, digest: bytes, learner: LocalLearner) -> Payload:
    """This peer's model after `round_`, for a peer that comes in: the bytes of a checkpoint.

    The state of its strategy and of its optimiser, some of which is private, stay here.
    """
    found = Checkpoint(me, round_, digest.hex(), __version__, _model_alone(learner))
    data = bytearray(checkpoint.encode(found))
    return Payload({_FILE: torch.frombuffer(data, dtype=torch.uint8)})


def _model_alone(learner: LocalLearner) -> Tensors:
    return join(model=part(learner.state(), "model"))
