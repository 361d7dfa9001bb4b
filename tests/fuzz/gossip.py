"""A peer's loop with hostile neighbours: what the strategy itself sends, changed at will."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor

from p2p_dml.exchange import Delivery, Exchange
from p2p_dml.kernels.mixing import metropolis, push_uniform
from p2p_dml.links import Walk
from p2p_dml.links.static import Complete
from p2p_dml.peer import Metrics, PeerLoop, Plan
from p2p_dml.strategies import STRATEGIES as CLASSES
from p2p_dml.tables import build
from p2p_dml.tensors import clone
from p2p_dml.types import (
    AnyStrategy,
    Mail,
    Message,
    Need,
    Part,
    Payload,
    Tag,
    Tensors,
    outbox_of,
)
from p2p_dml.wire_format import Coder
from tests.fuzz.feed import Feed

STRATEGIES: Mapping[str, tuple[str, Mapping[str, object]]] = MappingProxyType(
    {
        "dpsgd": ("dpsgd", {}),
        "allreduce": ("allreduce", {}),
        "sgp": ("sgp", {}),
        "sgp-sums": ("sgp", {"running_sums": True}),
        "hyperprism": ("hyperprism", {}),
        "hyperprism-sender": ("hyperprism", {"degree_at": "sender", "shared": True}),
        "tracking": ("gradient_tracking", {}),
        "swarm": ("swarm", {"bits": 8}),
        "dfedavgm": ("dfedavgm", {"bits": 16}),
        "mudag": ("mudag", {}),
        "adom": ("adom", {}),
        "adom-plus": ("adom_plus", {}),
        "mcepl": ("mcepl", {}),
        "mcepl-eager": ("mcepl", {"coding": "eager"}),
        "fedpm": ("fedpm", {}),
        "dispfl": ("dispfl", {}),
        "magnitude": ("magnitude", {}),
        "dpsgd-int8": ("dpsgd", {}),
        "sgp-float16": ("sgp", {}),
    }
)
"""Name and parameters of what is attacked."""

WIRE_FORMATS: Mapping[str, str] = MappingProxyType({"dpsgd-int8": "int8", "sgp-float16": "float16"})
"""How the messages of some of them travel."""

PEERS = 3
DTYPES = (torch.float32, torch.float64, torch.uint8, torch.int16, torch.bool, torch.bfloat16)


@final
class Model:
    """A learner of six weights whose training halves them; nothing depends on data."""

    def __init__(self) -> None:
        values = torch.linspace(-1, 1, 15)
        self._x = {"body": values[:12].reshape(3, 4).clone(), "head": values[9:].reshape(2, 3)}
        self.round = 0
        self.metrics: Mapping[str, float] = {}
        self.accuracy: float | None = None
        self.loss: float | None = None

    @property
    def params(self) -> Tensors:
        return dict(self._x)

    @params.setter
    def params(self, new: Mapping[str, Tensor]) -> None:
        for name, x in new.items():
            self._x[name].copy_(x)

    @property
    def parts(self) -> Mapping[str, Part]:
        return {"body": "representation", "head": "decision"}

    def seek(self, round: int) -> None:
        self.round = round

    def train(self) -> float:
        for x in self._x.values():
            x.mul_(0.5)
        return 0.0

    def grad(self, at: Mapping[str, Tensor]) -> Tensors:
        return {name: 0.1 * x.detach() for name, x in at.items()}

    def evaluate(self) -> Metrics:
        return self

    def state(self) -> Tensors:
        return clone(self._x)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        self.params = dict(state)


def make(name: str, params: Mapping[str, object]) -> AnyStrategy:
    strategy: AnyStrategy = build(CLASSES[name], params, "strategy")
    return strategy


@final
class Attacked:
    """Peer 0 of three, whose neighbours send it whatever the fuzzer makes of its own messages."""

    def __init__(self, name: str) -> None:
        strategy = make(*STRATEGIES[name])
        coded = WIRE_FORMATS.get(name)
        rule = push_uniform if Need.COLUMN_STOCHASTIC in strategy.needs else metropolis
        walk = Walk(Complete(num_peers=PEERS), rule, 0, 1, strategy.exchanges)
        plan = Plan(rounds=1 << 30, seed=3, evaluate_every=0, max_isolated_rounds=1 << 30)
        self._loop = PeerLoop(
            0,
            strategy,
            Model(),
            walk,
            plan,
            on_event=lambda event: None,
            save=lambda round, model, state: "",
            coder=Coder(0, name, coded) if coded else None,
        )
        self._going = self._loop.run()
        self._step: Exchange | None = self._next(None)

    def _next(self, delivery: Delivery | None) -> Exchange | None:
        step = self._going.send(delivery)
        while step is None:
            step = self._going.send(None)
        return step

    def hear(self, data: bytes) -> None:
        """Let it hear messages that `data` describes, in the exchange it is in."""
        assert self._step is not None
        feed = Feed(data)
        own = [*outbox_of(self._step.sent).values()] or [Payload(Model().params)]
        on_time = {j: changed(feed, own[j % len(own)]) for j in range(1, PEERS)}
        tag = Tag(max(0, self._step.tag.round - 1))
        late = [Message(1, tag, changed(feed, own[0]))] * (feed.byte() % 2)
        self._step = self._next(Delivery(Mail(on_time, late), 0))


def changed(feed: Feed, payload: Payload) -> Payload:
    """The payload with some bytes, numbers, names, shapes or dtypes changed."""
    tensors, scalars = clone(payload.tensors), dict(payload.scalars)
    for _ in range(feed.byte() % 4):
        if scalars and feed.byte() % 2:
            _change_scalar(feed, scalars)
        elif tensors:
            _change_tensor(feed, tensors)
    return Payload(tensors, scalars)


def _change_scalar(feed: Feed, scalars: dict[str, float]) -> None:
    name, act = feed.pick(sorted(scalars)), feed.byte() % 8
    if act == 0:
        del scalars[name]
    elif act == 1:
        scalars[feed.text()] = feed.number()
    else:
        scalars[name] = feed.number()


def _change_tensor(feed: Feed, tensors: Tensors) -> None:
    name, act = feed.pick(sorted(tensors)), feed.byte() % 16
    x = tensors[name]
    if act == 0:
        del tensors[name]
    elif act == 1:
        tensors[feed.text()] = x
    elif act == 2:
        tensors[name] = x.to(feed.pick(DTYPES))
    elif act == 3:
        tensors[name] = x.reshape(-1)[: feed.byte()]
    else:
        flat = x.contiguous().view(-1).view(torch.uint8) if x.dtype != torch.bool else x.view(-1)
        place = feed.natural() % max(1, flat.numel())
        new = torch.frombuffer(bytearray(feed.take(8)), dtype=torch.uint8)[: flat.numel() - place]
        flat[place : place + len(new)] = new
        tensors[name] = x if x.is_contiguous() else x.contiguous()
