"""A learner whose training several ranks share, each with a copy or a shard of the model.

The first rank of the peer is its leader: its `ParallelLearner` is what strategies see, and speaks
for the peer. The others `follow` it. All build theirs at the same time, from the same arguments.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, final

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p2p_dml.data import Dataset
from p2p_dml.errors import ConfigError, TransportError
from p2p_dml.learners._metrics import EvaluateOn, Metrics, mean_loss, on_own_mix
from p2p_dml.learners._parallel_share import Share
from p2p_dml.learners._parallel_team import Order, Team, What
from p2p_dml.learners._training import Training
from p2p_dml.learners._views import copy_into, exchanged_parts, live_views, restore, saved
from p2p_dml.tensors import join, part
from p2p_dml.types import Part, Tensors

__all__ = ["ParallelLearner", "Team", "follow", "ranks_per_peer"]


@final
class ParallelLearner:
    """The leader's side: trains `module` as `SupervisedLearner` does, together with its followers.

    `module` stays whole, here only: before each order the ranks' copies or shards are filled from
    it, and after a training it has what came out. So a leader holds one model beyond its own copy
    or shard. Of BatchNorm's statistics those of the leader's slices count. A state is that of a
    `SupervisedLearner`, and either can load the other's.

    Each call that computes raises TransportError blaming the own peer if one of its ranks is gone,
    or late by the timeout of the groups. Satisfies `types.Learner`.
    """

    def __init__(
        self,
        module: nn.Module,
        dataset: Dataset,
        indices: NDArray[Any],
        training: Training,
        team: Team,
        *,
        seed: int,
        evaluate_on: EvaluateOn = "all",
    ) -> None:
        self.module = module
        self._training, self._team = training, team
        with team.united():
            self._share = Share(
                copy.deepcopy(module),
                dataset,
                indices,
                training,
                team,
                seed=seed,
                evaluate_on=evaluate_on,
            )
        self._parts = exchanged_parts(module, buffers=training.buffers == "mix")
        self._views = live_views(module, buffers=training.buffers == "mix")
        self._is_open = True
        self.seek(0)

    @property
    def params(self) -> Tensors:
        """Parameters and mixed buffers by name, in `state_dict` order, as live views."""
        return dict(self._views)

    @params.setter
    def params(self, new: Mapping[str, Tensor]) -> None:
        copy_into(self._views, new)

    @property
    def parts(self) -> Mapping[str, Part]:
        return self._parts

    @property
    def metrics(self) -> Mapping[str, float]:
        """What the last `train` reports besides the loss: nothing."""
        return {}

    @property
    def num_samples(self) -> int:
        """Size of the peer's own training shard."""
        return self._share.num_samples

    @property
    def round(self) -> int:
        return self._round

    def seek(self, round: int) -> None:
        """Go to the beginning of `round`."""
        self._round = round
        self._num_grads = 0

    def train(self) -> float:
        """Run the round's optimiser steps; returns the mean loss over them.

        Raises TrainingError naming peer, round and step if a loss is not finite.
        """
        with self._ordered(What.TRAIN):
            losses = self._share.train(self._round, self._whole)
        return mean_loss(losses, self._team.peer, self._round, self._training.lr)

    def grad(self, at: Mapping[str, Tensor]) -> Tensors:
        """Gradient of the loss at `at` on this round's next mini-batch, in the names of `params`.

        As that of `SupervisedLearner`.
        """
        with self._ordered(What.GRAD):
            found = self._share.grad(self._round, self._num_grads, {**self._whole, **at})
        self._num_grads += 1
        zeros = {name: torch.zeros_like(x) for name, x in self._views.items() if name not in found}
        return {name: (found | zeros)[name] for name in self._views}

    def evaluate(self) -> Metrics:
        """Accuracy and mean loss on the test samples, in evaluation mode."""
        with self._ordered(What.EVALUATE):
            scores = self._share.score(self._whole)
        counts = self._share.own_counts
        return on_own_mix(counts, scores) if counts else next(iter(scores.values())).metrics

    def state(self) -> Tensors:
        """A copy of module and optimiser as flat tensors; `load_state` continues bit for bit."""
        with self._ordered(What.SAVE):
            optimiser = self._share.optimiser(is_leader=True)
        return join(model=saved(self.module), optimiser=optimiser)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned; ConfigError if model or optimiser are others."""
        optimiser = part(state, "optimiser")
        self._share.check_optimiser(optimiser)
        restore(self.module, part(state, "model"))
        with self._ordered(What.LOAD):
            self._share.load_optimiser(optimiser)

    def close(self, *, is_done: bool) -> None:
        """Let the followers end, with a TransportError unless `is_done`; idempotent.

        Whatever becomes of the leader, call it before its process groups are destroyed.
        """
        if self._is_open:
            self._is_open = False
            self._team.dismiss(Order(What.END if is_done else What.GIVE_UP))

    @property
    def _whole(self) -> Tensors:
        return dict(self.module.state_dict())

    @contextmanager
    def _ordered(self, what: What) -> Iterator[None]:
        """Have the followers do what the leader does inside."""
        self._team.give(Order(what, self._round, self._num_grads))
        with self._team.united():
            yield


def ranks_per_peer(num_ranks: int, peers: int, train: Mapping[str, object]) -> int:
    """How many of `num_ranks` ranks train each peer, as the table `[train]` lets them.

    Raises ConfigError if they cannot be shared out so.
    """
    each, rest = divmod(num_ranks, peers)
    if (each, rest) == (1, 0):
        return 1
    found = f"peers: the run file has {peers} and torchrun started {num_ranks} ranks"
    advice = f"set peers={num_ranks}, or start {peers} ranks (--nproc-per-node, --nnodes)"
    if "function" in train:
        raise ConfigError(f"{found}; a training function of one's own has one rank: {advice}")
    if train.get("parallel", "none") == "none":
        also = " or let several train each: train.parallel = 'ddp' or 'fsdp'" if not rest else ""
        raise ConfigError(f"{found}; every rank is a peer: {advice},{also}".rstrip(","))
    if rest or not each:
        raise ConfigError(
            f"{found}; with train.parallel every peer has equally many: expected a multiple of "
            f"{peers} ranks"
        )
    return each


def follow(
    module: nn.Module,
    dataset: Dataset,
    indices: NDArray[Any],
    training: Training,
    team: Team,
    *,
    seed: int,
    evaluate_on: EvaluateOn = "all",
    patience_s: float,
) -> None:
    """Do what the leader orders until it is done: what a rank of a peer does that does not lead.

    `module` becomes this rank's copy or shards. The leader may take `patience_s` between two
    orders, in which it waits for other peers. Raises TransportError blaming the peer: if its leader
    is gone, silent for longer, or has failed, or another of its ranks is lost.
    """
    with team.united():
        share = Share(module, dataset, indices, training, team, seed=seed, evaluate_on=evaluate_on)
    acts: dict[What, Callable[[Order], object]] = {
        What.TRAIN: lambda order: share.train(order.round, None),
        What.GRAD: lambda order: share.grad(order.round, order.index, None),
        What.EVALUATE: lambda _: share.score(None),
        What.SAVE: lambda _: share.optimiser(is_leader=False),
        What.LOAD: lambda _: share.load_optimiser(None),
    }
    while (order := team.await_order(patience_s)).what in acts:
        with team.united():
            acts[order.what](order)
    if order.what is What.GIVE_UP:
        raise TransportError(
            f"the leader of peer {team.peer}, rank {team.leader}, failed", team.peer
        )
