"""The vocabulary every other module speaks: payloads, graphs, neighbourhoods, and the seams.

Values are frozen dataclasses; seams are Protocols. Nothing here knows of sockets, clocks or files.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, Protocol, TypeVar

from torch import Tensor

from p2p_dml.graph import Graph as Graph
from p2p_dml.graph import PeerId as PeerId

Tensors = dict[str, Tensor]
Part = Literal["representation", "decision"]


class Need(Enum):
    """What a strategy's theory asks of the schedule, the mixing rule or the run."""

    SYMMETRIC = "symmetric links"
    DOUBLY_STOCHASTIC = "doubly stochastic mixing weights"
    COLUMN_STOCHASTIC = "column stochastic mixing weights"
    STATIC = "a graph that never changes"
    COMPLETE = "a complete graph in every round"
    SYNCHRONOUS = "synchronous rounds"
    EVERY_MESSAGE = "every message exactly once, in asynchronous rounds too"
    EXACT = "messages that come as they were sent"
    FIRST_WEIGHTS = "the first weights, which all peers draw alike, also at peers that come later"
    NO_MATRIX_BUFFERS = "no buffers of two or more dimensions among what peers exchange"


@dataclass(frozen=True, slots=True)
class Payload:
    """What one peer sends another in one exchange: named tensors and named scalars.

    `is_finite`: its sender, in this machine, has found no NaN and no infinity in the tensors.
    """

    tensors: Mapping[str, Tensor]
    scalars: Mapping[str, float] = field(default_factory=dict)
    is_finite: bool = False


Outbox = Mapping[PeerId, Payload]


@dataclass(frozen=True, slots=True)
class Coded:
    """An outbox whose payloads need not look alike, and how those of others are read.

    `read` is given a sender and its payload and returns what shall stand in the inbox; it raises
    WireError if the payload makes no sense, which then counts as missing.
    """

    outbox: Outbox
    read: Callable[[PeerId, Payload], Payload]


Sent = Outbox | Coded


def outbox_of(sent: Sent) -> Outbox:
    """What goes to whom, however it is to be read."""
    return sent.outbox if isinstance(sent, Coded) else sent


@dataclass(frozen=True, slots=True, order=True)
class Tag:
    """The place of an exchange in the run: rounds count from 1, exchanges of a round from 0."""

    round: int
    exchange: int = 0


LinkSchedule = Callable[[int], Graph]
"""tick -> graph; a pure function with random access, equal at every peer."""


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """One peer's row and column of the mixing matrix W for one exchange.

    `in_weights[j]` = w_ij for each neighbour j that peer i hears; `self_weight` = w_ii;
    `out_weights[k]` = w_ki for each neighbour k that hears peer i. Keys ascend.
    """

    me: PeerId
    self_weight: float
    in_weights: Mapping[PeerId, float]
    out_weights: Mapping[PeerId, float]

    def broadcast(self, payload: Payload) -> Outbox:
        """The same payload for every neighbour that hears this peer."""
        return dict.fromkeys(self.out_weights, payload)


MixingRule = Callable[[Graph, PeerId], Neighbourhood]


@dataclass(frozen=True, slots=True)
class Message:
    """A payload with its sender and tag, as it came off a transport."""

    sender: PeerId
    tag: Tag
    payload: Payload


@dataclass(frozen=True, slots=True)
class Mail:
    """What a transport collected for one exchange; `num_bytes` of payload came in.

    `ages`: rounds since each payload on time came, where payloads are used again (asynchronous
    rounds). `silent`: senders of whom there is none, though they are connected or have finished.
    `ahead`: the newest round of senders that have gone on without sending for this exchange, or 0.
    """

    on_time: Mapping[PeerId, Payload]
    late: Sequence[Message] = ()
    num_bytes: int = 0
    ages: Mapping[PeerId, int] = field(default_factory=dict)
    silent: int = 0
    ahead: int = 0


@dataclass(frozen=True, slots=True)
class Inbox:
    """What a strategy gets for one exchange.

    `messages`: payloads by sender, ascending. `late`: messages of earlier exchanges (push-sum
    adds them, most strategies ignore them).
    """

    hood: Neighbourhood
    messages: Mapping[PeerId, Payload]
    late: Sequence[Message] = ()

    @property
    def missing(self) -> tuple[PeerId, ...]:
        """Neighbours that should have been heard and were not."""
        return tuple(j for j in self.hood.in_weights if j not in self.messages)

    @property
    def self_weight(self) -> float:
        """Own weight plus the weight of every missing neighbour, so that the row sums to 1.

        Returning the weight to self (not renormalising) keeps the mean over peers exactly when
        both ends of a link lose it.
        """
        return self.hood.self_weight + sum(self.hood.in_weights[j] for j in self.missing)

    def with_own(self, own: Mapping[str, Tensor]) -> tuple[list[Mapping[str, Tensor]], list[float]]:
        """Own and received tensors in ascending peer order, with their mixing weights.

        The order is the same at every peer and on every transport, so sums are equal bit for bit.
        """
        rows = {j: (p.tensors, self.hood.in_weights[j]) for j, p in self.messages.items()}
        rows[self.hood.me] = (own, self.self_weight)
        ordered = [rows[j] for j in sorted(rows)]
        return [tensors for tensors, _ in ordered], [weight for _, weight in ordered]


class Links(Protocol):
    """A strategy's view of the link schedule during one round."""

    @property
    def now(self) -> Neighbourhood:
        """The neighbourhood of the next exchange."""
        ...

    def shared_bits(self, stream: int, count: int) -> Sequence[int]:
        """`count` random 64-bit words, the same at every peer in this exchange."""
        ...


class Learner(Protocol):
    """A model with its local data and optimiser; knows nothing of other peers."""

    @property
    def params(self) -> Tensors:
        """The model's tensors by name, as live views: training changes them in place."""
        ...

    @params.setter
    def params(self, new: Mapping[str, Tensor]) -> None:
        """Copy values in; names and shapes must be those of `params`."""
        ...

    @property
    def parts(self) -> Mapping[str, Part]:
        """The part of the model that each tensor of `params` belongs to."""
        ...

    @property
    def round(self) -> int:
        """The round being run, from 1; batches are a pure function of (seed, peer, round)."""
        ...

    def train(self) -> float:
        """Run the round's local training; returns the mean loss over its steps."""
        ...

    def grad(self, at: Mapping[str, Tensor]) -> Tensors:
        """Gradient of the loss on the next mini-batch at parameters `at`; own params stay."""
        ...


S = TypeVar("S")


class Strategy(Protocol[S]):
    """What is sent and how it is combined. Hyper-parameters are frozen; what changes is in S.

    S is None or a dataclass of tensors, dicts of tensors, numbers, and nested ones of these, so
    that a checkpoint can hold it. `round` is a generator: it yields what to send in each of its
    `exchanges`, is sent the inbox of that exchange, and returns the state for the next round. Of a
    plain outbox all payloads are of one layout, and so must be what comes.
    """

    @property
    def needs(self) -> frozenset[Need]: ...

    @property
    def exchanges(self) -> int:
        """Number of exchanges per round (0 for a strategy that never talks)."""
        ...

    def init(self, learner: Learner, seed: int) -> S:
        """State before round 0. `seed` differs between peers (private randomness)."""
        ...

    def round(self, state: S, learner: Learner, links: Links) -> Generator[Sent, Inbox, S]: ...

    def report(self, state: S) -> Mapping[str, float]:
        """Figures worth a curve of their own (degree per layer group, …), by name."""
        ...


AnyStrategy = Strategy[Any]


class Mailbox(Protocol):
    """Keeps what has come to one peer until it is collected; where rounds differ in pace.

    Pure: no sockets. Calls go begin, put …, absent, put …, take in each exchange.
    """

    def begin(self, tag: Tag) -> None:
        """Messages of `tag` are now due."""
        ...

    def put(self, message: Message, num_bytes: int) -> str | None:
        """Keep a message; says why if it is refused."""
        ...

    def absent(self, senders: Iterable[PeerId]) -> list[PeerId]:
        """Those of `senders` to wait for: empty if this peer waits for nobody."""
        ...

    def take(self, senders: Sequence[PeerId]) -> Mail:
        """What is due from `senders`, ascending, and whatever came too late."""
        ...

    def left(self, peer: PeerId) -> None:
        """`peer` has finished: nothing newer will come of it."""
        ...

    def comes_after(self, peer: PeerId, tag: Tag) -> None:
        """`peer` is (back) on a connection: what it sent up to `tag` and is not here is lost."""
        ...

    def due_in_s(self) -> float:
        """Seconds until a message that has been put is there by the mere passing of time.

        inf if there is none: only on an emulated network messages take time after they came.
        """
        ...


class Membership(Protocol):
    """Who takes part in a run where peers come and go, as far as one peer knows."""

    def may_have(self, peer: PeerId) -> bool:
        """Whether the run has room for a peer of this id at all."""
        ...

    def admit(self, peer: PeerId, round: int) -> bool:
        """Let `peer` take part, from a round on that all will know of, if it is `round` now.

        Whether it has not been let in before.
        """
        ...

    def record(self) -> Mapping[str, float]:
        """What another peer has to know."""
        ...

    def merge(self, record: Mapping[str, float]) -> bool:
        """Take over what another peer knows; whether it is news. Raises WireError."""
        ...


class Transport(Protocol):
    """Moves payloads between peers. One instance per peer; used from one thread."""

    @property
    def elastic(self) -> bool:
        """True: a failed neighbour shrinks the inbox. False: a failure ends the run."""
        ...

    def expect(self, neighbours: Iterable[PeerId]) -> None:
        """Announce neighbours of coming rounds, so that connections are ready in time."""
        ...

    def post(self, tag: Tag, sent: Sent) -> int:
        """Send without ever blocking; returns payload bytes sent.

        A snapshot is taken: the tensors may be mutated once this returns. A transport that is not
        elastic may begin to send in `collect`, and wants a payload for each of the receivers.
        """
        ...

    def collect(self, tag: Tag, senders: Sequence[PeerId], deadline_s: float) -> Mail:
        """What there is for `tag`; waits for those of `senders` that are alive and awaited.

        Whom a peer awaits, and what of older messages it is given, its `Mailbox` says.
        """
        ...

    def close(self) -> None:
        """Take leave of live neighbours and free all sockets; idempotent."""
        ...
