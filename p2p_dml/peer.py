"""The life of a peer: rounds of training, exchanging and mixing, free of sockets.

`PeerLoop.run` is a generator, as a strategy's round is: it yields the next exchange and is sent
what was delivered, and yields None when all of a round is mixed. `p2p_dml.drive` runs it over a
blocking transport; `p2p_dml.simulate` runs all peers' loops in lock step over memory. Both
therefore run the same code, line by line.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from statistics import fmean
from typing import Protocol

from torch import Tensor

from p2p_dml import reading, wire_format
from p2p_dml.checkpoint import Checkpoint
from p2p_dml.errors import ConfigError, ExitCode, TrainingError
from p2p_dml.events import (
    Checkpointed,
    Evaluated,
    Event,
    Memory,
    Rejected,
    RoundDone,
    Skipped,
)
from p2p_dml.exchange import Delivery, Exchange
from p2p_dml.isolation import Isolation
from p2p_dml.kernels import sketch
from p2p_dml.links import Walk
from p2p_dml.meter import Meter, Tally
from p2p_dml.overlap import Overlap, UnderWay
from p2p_dml.pace import Clock, Slowness, WallClock
from p2p_dml.states import restore
from p2p_dml.types import (
    AnyStrategy,
    Inbox,
    Learner,
    Need,
    Neighbourhood,
    Outbox,
    PeerId,
    Sent,
    Tag,
    Tensors,
    outbox_of,
)
from p2p_dml.wire_format import Coder

LOOKAHEAD = 8
"""Rounds whose neighbours are connected in advance; the first ones are waited for at start-up."""


class Metrics(Protocol):
    """What an evaluation found; None where the learner cannot tell."""

    @property
    def accuracy(self) -> float | None: ...
    @property
    def loss(self) -> float | None: ...


class LocalLearner(Learner, Protocol):
    """What the loop needs of a learner beyond what strategies see."""

    def seek(self, round: int) -> None:
        """Set `round`, from which the batches of the round follow."""
        ...

    @property
    def metrics(self) -> Mapping[str, float]:
        """Figures of the last local training beyond its loss."""
        ...

    def evaluate(self) -> Metrics: ...

    def state(self) -> Tensors:
        """Everything to continue from: parameters, buffers, optimiser."""
        ...

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned; other names are left aside. ConfigError: another's."""
        ...


Save = Callable[[int, Tensors, object], str]
"""(round, learner state, strategy state) -> file written, relative to the run folder."""

Keep = Callable[[int, Tensors, object], None]
"""The same of every complete round, at once; the learner's state is a copy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How long to run and what to do on the way; `every` = 0 means only after the last round.

    `duration_s` ends the run earlier, after the round in which it is over. `waits` False: only the
    dead and unreachable count where isolation is judged, not those of whom nothing came yet.
    `overlap`: messages of a round are mixed in the next one (`p2p_dml.overlap`).
    """

    rounds: int
    seed: int
    duration_s: float | None = None
    slowness: Slowness = field(default_factory=Slowness)
    waits: bool = True
    overlap: bool = False
    evaluate_every: int = 1
    checkpoint_every: int = 0
    min_neighbours: int = 1
    max_isolated_rounds: int = 10


class PeerLoop:
    """One peer's rounds. Everything it touches is handed in; it opens nothing itself.

    `start`: a checkpoint of this peer to go on from, instead of the beginning.
    """

    def __init__(
        self,
        me: PeerId,
        strategy: AnyStrategy,
        learner: LocalLearner,
        walk: Walk,
        plan: Plan,
        *,
        on_event: Callable[[Event], None],
        save: Save,
        start: Checkpoint | None = None,
        keep: Keep | None = None,
        memory: Callable[[], tuple[float, float] | None] | None = None,
        clock: Clock | None = None,
        coder: Coder | None = None,
    ) -> None:
        self.me = me
        self.round = start.round if start else 0
        self._start = start
        self._strategy = strategy
        self._learner = learner
        self._clock = clock or WallClock()
        self._meter = Meter(learner, self._clock)
        self._walk = walk
        self._plan = plan
        self._on_event = on_event
        self._save = save
        self._keep = keep
        self._memory = memory
        self._coder = coder
        self._tally = Tally()
        self._isolation = Isolation(
            me=me, least=plan.min_neighbours, most=plan.max_isolated_rounds, on_event=on_event
        )
        self._overlap = Overlap(me) if plan.overlap else None
        self._entered = False
        self._stop = False

    def enter(self, round_: int, start: Checkpoint | None) -> None:
        """Begin with `round_`, in which the others are; `start`: with this checkpoint's state."""
        self._start, self._entered = start, True
        self.round = round_ - 1

    def stop(self) -> None:
        """Leave after the round being run, with a checkpoint; a signal handler may call this."""
        self._stop = True

    def neighbours(self, round: int, rounds: int = LOOKAHEAD) -> frozenset[PeerId]:
        """Everyone this peer hears or is heard by in `rounds` rounds from `round` on.

        With overlap in the round before too, whose messages are still awaited.
        """
        first, last = max(1, round - self._plan.overlap), min(round + rounds, self._plan.rounds + 1)
        tags = [Tag(r, e) for r in range(first, last) for e in range(self._strategy.exchanges)]
        hoods = [self._walk.at(tag) for tag in tags]
        return frozenset().union(*(h.in_weights.keys() | h.out_weights.keys() for h in hoods))

    def run(self) -> Generator[Exchange | None, Delivery | None, ExitCode]:
        """Run all rounds to come; returns DONE, or STOPPED if `stop` was called.

        None is yielded where a round's mixing is over, and where a checkpoint was taken over: peers
        that are computed together can wait there for each other. Every Exchange is to be answered
        by its Delivery, None by None. Raises TrainingError, StorageError, IsolationError; and
        ConfigError if the checkpoint is another peer's or strategy's.
        """
        state = self._strategy.init(self._meter, self._plan.seed)
        if self._start is not None:
            taken, self._start = self._take_over(self._start, state), None
            yield None
            state = taken
            if isinstance(taken, UnderWay):
                state = taken.state
                if not self._entered:
                    yield self._post_again(taken.outbox)
        if not self._entered and _is_due(self.round, self._plan.evaluate_every):
            self._evaluate()
        begin = self._clock.now()
        while self.round < self._plan.rounds:
            self.round = round_ = self._next_round()
            self._tally = Tally()
            self._learner.seek(round_)
            state = yield from self._round(state)
            held = self._overlap.held(state) if self._overlap else state
            if self._keep:
                self._keep(round_, self._learner.state(), held)
            yield None
            stopping = self._stop  # read once: a signal may come between here and the end
            last = round_ == self._plan.rounds or stopping or self._is_over(begin)
            if last or _is_due(round_, self._plan.evaluate_every):
                self._evaluate()
            self._report(state)
            if last or _is_due(round_, self._plan.checkpoint_every):
                file = self._save(round_, self._learner.state(), held)
                self._on_event(Checkpointed(round_, file))
            if last:
                return ExitCode.STOPPED if stopping else ExitCode.DONE
        return ExitCode.DONE

    def _take_over(self, start: Checkpoint, fresh: object) -> object:
        """Load the learner's state; returns the strategy's, made like the `fresh` one."""
        if start.outline is None:
            raise ConfigError(f"peer {self.me}, round {start.round}: its checkpoint is too old")
        fresh = self._overlap.held(fresh) if self._overlap else fresh
        device = next((str(x.device) for x in self._learner.params.values()), "cpu")
        try:
            self._learner.load_state(start.tensors)
            state = restore(self._strategy, fresh, start.tensors, start.outline, device)
        except ConfigError as error:
            raise ConfigError(
                f"peer {self.me}, checkpoint of round {start.round}: {error}"
            ) from error
        self._learner.seek(start.round)
        return state

    def _post_again(self, sent: Outbox) -> Exchange:
        """Send once more what was under way when the checkpoint was written."""
        assert self._overlap is not None
        tag = Tag(self.round)
        hood = self._walk.at(tag)
        self._overlap.posted(tag, hood, sent)
        return Exchange(tag, sent, tuple(hood.out_weights), Tag(tag.round - 1), (), frozenset())

    def _next_round(self) -> int:
        """The one after this; or that of the neighbours, if they went on while out of reach.

        With overlap the one before theirs, whose messages they await.
        """
        last = min(self._tally.ahead, self._plan.rounds) - 1 - self._plan.overlap
        if last > self.round:
            self._on_event(Skipped(self.round + 1, last))
        return max(self.round, last) + 1

    def _is_over(self, begin: float) -> bool:
        duration_s = self._plan.duration_s
        return duration_s is not None and self._clock.now() - begin >= duration_s

    def _round(self, state: object) -> Generator[Exchange, Delivery | None, object]:
        """One round of the strategy; its state changes only when the round is complete."""
        self._walk.seek(Tag(self.round))
        steps = self._strategy.round(state, self._meter, self._walk)
        sent, state = self._advance(steps, None)
        self._pause()
        while sent is not None:
            tag, hood = self._walk.tag, self._walk.now
            upcoming = (
                self.neighbours(self.round + LOOKAHEAD, 1) if tag.exchange == 0 else frozenset()
            )
            going = self._coder.outbox(sent, self.round) if self._coder else sent
            awaited, heard = tag, hood
            if self._overlap:
                awaited, heard = self._overlap.turn(tag, hood, going)
                if self.round == self._plan.rounds:
                    going = {}  # nobody has a round to mix it in
            receivers, senders = tuple(hood.out_weights), tuple(heard.in_weights)
            delivery = yield Exchange(tag, going, receivers, awaited, senders, upcoming)
            assert delivery is not None
            begin = self._clock.now()
            inbox = self._inbox(heard, sent, delivery)
            self._tally.seconds["mix"] += self._clock.now() - begin
            self._walk.advance()
            before = reading.versions(inbox.messages)
            sent, state = self._advance(steps, inbox)
            self._check_untouched(inbox, before)
        return state

    def _check_untouched(self, inbox: Inbox, before: reading.Versions) -> None:
        """Whoever reads the same memory, its sender too, would read what was written into it."""
        if wrong := reading.changed(inbox.messages, before):
            raise ConfigError(
                f"peer {self.me}, round {self.round}: the strategy has changed {wrong} in place, "
                "which others may be reading; what it received is to be cloned before it is changed"
            )

    def _pause(self) -> None:
        """Let the time pass that a slower peer's local work would take."""
        seconds = self._plan.slowness.pause_s(self._tally.seconds["train"])
        if seconds > 0:
            begin = self._clock.now()
            self._clock.sleep(seconds)
            self._tally.seconds["train"] += self._clock.now() - begin

    def _advance(
        self, steps: Generator[Sent, Inbox, object], inbox: Inbox | None
    ) -> tuple[Sent | None, object]:
        """Run the strategy to what it sends next, or to its end (None and the new state)."""
        begin, trained_s = self._clock.now(), self._meter.seconds
        try:
            return (next(steps) if inbox is None else steps.send(inbox)), None
        except StopIteration as end:
            return None, end.value
        except FloatingPointError as error:
            raise TrainingError(
                f"peer {self.me}, round {self.round}: {error}; the training diverged: a lower "
                "learning rate may help"
            ) from error
        finally:
            trained_s = self._meter.seconds - trained_s
            self._tally.seconds["train"] += trained_s
            self._tally.seconds["mix"] += self._clock.now() - begin - trained_s

    def _inbox(self, hood: Neighbourhood, sent: Sent, delivery: Delivery) -> Inbox:
        """Keep what can be read; the rest counts as missing."""
        read, mail = reading.reader(sent, self._learner.params), delivery.mail
        if self._coder:
            read = self._coder.reader(outbox_of(sent), self._learner.params)
            mail = wire_format.read_late(mail, read, self._refuse)
        good = reading.on_time(mail, read, self._refuse)
        silent = 0 if self._plan.waits else mail.silent
        if (
            self._isolation.is_on(self.round, len(hood.in_weights), len(good), silent)
            and Need.EVERY_MESSAGE not in self._strategy.needs
        ):
            good = {}
        inbox = Inbox(hood, good, reading.late(mail, self._refuse))
        self._count(inbox, delivery)
        return inbox

    def _refuse(self, sender: PeerId, why: str) -> None:
        self._on_event(Rejected(sender, self.round, why))

    def _count(self, inbox: Inbox, delivery: Delivery) -> None:
        tally = self._tally
        tally.seconds["send"] += delivery.send_s
        tally.seconds["wait"] += delivery.wait_s
        tally.bytes_out += delivery.bytes_out
        tally.bytes_in += delivery.mail.num_bytes
        tally.expected.update(inbox.hood.in_weights)
        tally.missing.update(inbox.missing)
        tally.late += len(inbox.late)
        tally.ahead = max(tally.ahead, delivery.mail.ahead)
        tally.lost_weight += sum(inbox.hood.in_weights[j] for j in inbox.missing)
        ages = dict.fromkeys(inbox.messages, 1) if self._overlap else delivery.mail.ages
        tally.ages += [ages[j] for j in inbox.messages if j in ages]

    def _evaluate(self) -> None:
        begin = self._clock.now()
        metrics = self._learner.evaluate()
        seconds = self._clock.now() - begin
        self._tally.seconds["evaluate"] += seconds
        text = sketch.encode(sketch.sketch(self._learner.params, self._walk.seed))
        self._on_event(Evaluated(self.round, metrics.accuracy, metrics.loss, seconds, text))

    def _report(self, state: object) -> None:
        tally = self._tally
        self._on_event(
            RoundDone(
                round=self.round,
                loss=self._meter.loss,
                bytes_out=tally.bytes_out,
                bytes_in=tally.bytes_in,
                neighbours=len(tally.expected),
                missing=sorted(tally.missing),
                late=tally.late,
                lost_weight=tally.lost_weight,
                age=fmean(tally.ages) if tally.ages else None,
                seconds=tally.seconds,
                reported=self._strategy.report(state),
                metrics=self._learner.metrics,
            )
        )
        # Not after the last round: others have ended by then, and pages shared by fewer count more.
        if self._memory and self.round in (1, (self._plan.rounds + 1) // 2):
            sizes = self._memory()
            if sizes is not None:
                self._on_event(Memory(self.round, *sizes))


def _is_due(round_: int, every: int) -> bool:
    return every > 0 and round_ % every == 0
