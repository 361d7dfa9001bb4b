"""All peers of one process as one computation: their local training and their evaluations.

The peers' parameters are rows of stacked tensors. The first peer that trains in a round has all
peers' training computed at once, on copies; each takes over its own row when it trains itself. What
was computed ahead holds only if the row is still the one it was computed from, which torch's
version counters tell; otherwise (a strategy that mixes before it trains) that peer is computed
alone. So a peer never sees more than its own training, in whatever order a driver runs the peers.
Likewise the gradients with which a strategy opens a round, at the peers' own parameters. Those that
it asks for later are computed alone: what comes before them, the other peers have yet to do.

Batches and steps are those of `SupervisedLearner`; sums are taken in another order, so results
agree to rounding, not bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p2p_dml.data import Dataset
from p2p_dml.errors import ConfigError
from p2p_dml.learners._ahead import Ahead
from p2p_dml.learners._batched import BatchedModule, activations
from p2p_dml.learners._draws import RoundDraws
from p2p_dml.learners._metrics import EvaluateOn, Metrics, Score, mean_loss, on_own_mix
from p2p_dml.learners._samples import Samples, own_counts, test_samples, train_samples
from p2p_dml.learners._stacks import clip, descend, stacks_of
from p2p_dml.learners._training import Training
from p2p_dml.learners._views import copy_into, exchanged_parts
from p2p_dml.tensors import clone, join, mismatch, part
from p2p_dml.types import Part, PeerId, Tensors

_ELEMENTS_AT_ONCE = 1 << 22
"""Activations of the peers that are computed together: more of them leave the cache."""


@final
class Fleet:
    """The learners of all peers, `members`, around stacked copies of `module`.

    `shards[i]` are the training samples of peer i. The module's device and dtype decide where and
    in what precision they compute. `obstacle` must have found nothing against it. `evaluate_on` as
    for `SupervisedLearner`.
    """

    def __init__(
        self,
        module: nn.Module,
        dataset: Dataset,
        shards: Sequence[NDArray[Any]],
        training: Training,
        *,
        seed: int,
        evaluate_on: EvaluateOn = "all",
    ) -> None:
        first = next(module.parameters())
        self._training = training
        self.parts: Mapping[str, Part] = exchanged_parts(module, buffers=False)
        self._batched = BatchedModule(module, training)
        self._seed = seed
        self._train = train_samples(
            dataset, np.arange(dataset.num_samples), first.device, first.dtype
        )
        self._test = test_samples(dataset, first.device, first.dtype)
        self._activations = activations(module, self._train.batch(np.arange(1))[0])
        # Peers with many steps come first, so that those still training are always a prefix.
        order = sorted((-training.num_steps(len(rows)), peer) for peer, rows in enumerate(shards))
        self._peers = [peer for _, peer in order]
        self._num_steps = [-steps for steps, _ in order]
        self._shards = [shards[peer] for peer in self._peers]
        self._own = [own_counts(dataset, rows) for rows in self._shards if evaluate_on == "own"]
        self._own_tests = {
            label: test_samples(dataset, first.device, first.dtype, label)
            for label in sorted({label for counts in self._own for label in counts})
        }
        named = dict(module.named_parameters())
        self._trained = {name: p for name, p in named.items() if p.requires_grad}
        params = {name: named[name] for name in self.parts}
        self._now = stacks_of(params, self._trained, len(shards), training)
        self._later = stacks_of(params, self._trained, len(shards), training)
        # .data gives every row version counters of its own; views would share the stacks'.
        self._views = [
            {name: x[row].data for name, x in self._now.params.items()}
            for row in range(len(shards))
        ]
        self._num_trained = [0] * len(shards)
        self._losses_ahead: Ahead[list[float]] = Ahead()
        self._grads_ahead: Ahead[Tensors] = Ahead()
        self._tested: dict[int, tuple[int, Metrics]] = {}
        self._tested_round = -1

    @property
    def members(self) -> list[Member]:
        """A learner for each peer, in the order of the shards."""
        rows = {peer: row for row, peer in enumerate(self._peers)}
        return [Member(self, peer, rows[peer]) for peer in range(len(rows))]

    @property
    def lr(self) -> float:
        return self._training.lr

    def params(self, row: int) -> Tensors:
        """One peer's parameters by name, as live views of its row."""
        return self._views[row]

    def num_samples(self, row: int) -> int:
        """Size of one peer's training shard."""
        return len(self._shards[row])

    def version(self, row: int) -> int:
        """A number that grows whenever the row is changed, by training or through its views."""
        return self._num_trained[row] + sum(view._version for view in self._views[row].values())

    def train(self, row: int, round_: int, *, as_it_began: bool) -> list[float]:
        """Change one row by its peer's local training; returns the loss of each step.

        `as_it_began`: the row is still what it was when the round began, and so the others may be.
        """
        own = slice(row, row + 1)
        if as_it_began and self._losses_ahead.round != round_:
            self._losses_ahead.round, rows = round_, self._all_rows
            self._losses_ahead.keep(rows, round_, self._versions(rows), self._compute(rows, round_))
        losses = self._losses_ahead.take(row, round_, self.version(row))
        if losses is None:
            (losses,) = self._compute(own, round_)
        self._now.rows(own).copy_(self._later.rows(own))
        self._num_trained[row] += 1
        return losses

    def batches(self, row: int, round_: int) -> Iterator[NDArray[Any]]:
        """The samples of one batch after another, as `SupervisedLearner` draws them; no end."""
        shard = self._shards[row]
        draws = RoundDraws(self._seed, self._peers[row], round_)
        for positions in draws.batches(len(shard), self._training.batch_size):
            yield shard[positions]

    def grad(self, at: Mapping[str, Tensor], samples: NDArray[Any]) -> Tensors:
        """Gradient of the loss at one peer's parameters `at` on some training samples."""
        stacked = {name: at[name].detach()[None] for name in self.parts}
        return self._grads_of(stacked, [samples])[0]

    def first_grad(self, row: int, round_: int) -> Tensors:
        """Gradient of a row, unchanged since its round began, on the first batch of the round."""
        if self._grads_ahead.round != round_:
            self._grads_ahead.round, rows = round_, self._all_rows
            found = [
                grads
                for group in self._groups(rows, self._training.batch_size)
                for grads in self._grads_of_rows(group, round_)
            ]
            self._grads_ahead.keep(rows, round_, self._versions(rows), found)
        own = self._grads_ahead.take(row, round_, self.version(row))
        return self._grads_of_rows(slice(row, row + 1), round_)[0] if own is None else own

    def evaluate(self, row: int, round_: int) -> Metrics:
        """Test one row's model; the first peer to ask in a round has all of them tested."""
        found = self._tested.get(row)
        if found is None or found[0] != self.version(row):
            alone = self._tested_round == round_
            self._test_rows(slice(row, row + 1) if alone else self._all_rows)
            self._tested_round = round_
        return self._tested[row][1]

    def optimiser(self, row: int) -> Tensors:
        """A copy of one peer's optimiser state, named as its own torch.optim would."""
        return self._now.of_peer(row)

    def load_optimiser(self, row: int, state: Mapping[str, Tensor]) -> None:
        """Take over what `optimiser` returned; ConfigError if it is of another optimiser."""
        self._now.load_peer(row, state)

    @property
    def _all_rows(self) -> slice:
        return slice(0, len(self._peers))

    def _versions(self, rows: slice) -> list[int]:
        return [self.version(row) for row in range(rows.start, rows.stop)]

    def _compute(self, rows: slice, round_: int) -> list[list[float]]:
        """Train copies of some rows; returns the losses of each."""
        later = self._later.rows(rows)
        later.copy_(self._now.rows(rows))
        if self._training.optimiser_state == "reset":
            later.forget()
        self._batched.module.train()
        losses: list[list[float]] = []
        for group in self._groups(rows, self._training.batch_size):
            losses += self._train_group(group, round_)
        return losses

    def _train_group(self, rows: slice, round_: int) -> list[list[float]]:
        """Run all steps of some rows; returns the losses of each."""
        batches = [
            list(islice(self.batches(row, round_), self._num_steps[row]))
            for row in range(rows.start, rows.stop)
        ]
        losses = []
        for step in range(len(batches[0])):
            picked = [own[step] for own in batches if step < len(own)]
            losses.append(self._step(slice(rows.start, rows.start + len(picked)), picked))
        on_host = [values.tolist() for values in losses]  # the group's only wait for the device
        return [
            [values[place] for values in on_host if place < len(values)]
            for place in range(len(batches))
        ]

    def _step(self, rows: slice, samples: Sequence[NDArray[Any]]) -> Tensor:
        later = self._later.rows(rows)
        losses, grads = self._gradients(later.params, samples)
        if self._training.clip_norm is not None:
            clip(grads, self._training.clip_norm)
        descend(later, grads, self._training)
        return losses

    def _grads_of_rows(self, rows: slice, round_: int) -> list[Tensors]:
        """The gradient of each of some rows on its peer's first batch of a round."""
        batches = [next(self.batches(row, round_)) for row in range(rows.start, rows.stop)]
        return self._grads_of(self._now.rows(rows).params, batches)

    def _grads_of(self, params: Tensors, samples: Sequence[NDArray[Any]]) -> list[Tensors]:
        """The gradient of each of g peers with stacked parameters, 0 where there is none."""
        self._batched.module.train()
        _, found = self._gradients(params, samples)
        whole = {
            name: found[name] if name in found else torch.zeros_like(x)
            for name, x in params.items()
        }
        return [{name: x[place] for name, x in whole.items()} for place in range(len(samples))]

    def _gradients(
        self, params: Tensors, samples: Sequence[NDArray[Any]]
    ) -> tuple[Tensor, Tensors]:
        """Mean losses [g] and gradients [g, *shape] of g peers, each on samples of its own.

        Shorter batches are filled up with samples of weight 0.
        """
        size = max(map(len, samples))
        positions = np.stack([np.pad(own, (0, size - len(own)), mode="edge") for own in samples])
        lengths = torch.tensor([len(own) for own in samples], dtype=torch.float64)
        weights = (torch.arange(size) < lengths[:, None]) / lengths[:, None]
        x, y = self._train.batch(positions.reshape(-1))
        leaves = {name: params[name].detach().requires_grad_() for name in self._trained}
        logits = self._batched.each({**params, **leaves}, x.reshape(*positions.shape, *x.shape[1:]))
        losses = (_losses(logits, y) * weights.to(logits.device, logits.dtype)).sum(1)
        found = torch.autograd.grad(losses.sum(), list(leaves.values()), allow_unused=True)
        grads = {name: g for name, g in zip(leaves, found, strict=True) if g is not None}
        return losses.detach(), grads

    def _test_rows(self, rows: slice) -> None:
        """Test some rows' models and keep what was found."""
        self._batched.module.eval()
        if self._own:
            found = self._on_own_mixes(range(rows.start, rows.stop))
        else:
            scores = self._scores(self._now.rows(rows).params, self._test)
            found = [score.metrics for score in scores]
        for row, metrics in zip(range(rows.start, rows.stop), found, strict=True):
            self._tested[row] = self.version(row), metrics

    def _on_own_mixes(self, rows: range) -> list[Metrics]:
        """What rows do on their peers' own mixes: class by class, those together that hold it."""
        scores: dict[int, dict[int, Score]] = {row: {} for row in rows}
        for label, test in self._own_tests.items():
            holders = [row for row in rows if label in self._own[row]]
            if holders:
                params = {name: x[holders] for name, x in self._now.params.items()}
                for row, score in zip(holders, self._scores(params, test), strict=True):
                    scores[row][label] = score
        return [on_own_mix(self._own[row], mine) for row, mine in scores.items()]

    def _scores(self, params: Tensors, test: Samples) -> list[Score]:
        """Test stacked models [g, *shape] on the same samples."""
        num_rows, count = len(next(iter(params.values()))), 0
        right, loss = torch.zeros(2, num_rows, dtype=torch.float64)
        with torch.inference_mode():
            for x, y in test.chunks():
                for group in self._groups(slice(0, num_rows), len(x)):
                    logits = self._batched.same({n: p[group] for n, p in params.items()}, x)
                    # argmax takes ten times as long as max where classes are not next to each other
                    right[group] += (logits.max(-1).indices == y).flatten(1).sum(1).cpu()
                    every = _losses(logits, y.expand(len(logits), *y.shape).flatten(0, 1))
                    loss[group] += every.sum(1).cpu() * (y.numel() / len(y))
                count += y.numel()
        return [Score(r, t, count) for r, t in zip(right.tolist(), loss.tolist(), strict=True)]

    def _groups(self, rows: slice, batch_size: int) -> Iterator[slice]:
        """Cut rows into groups that are computed together."""
        size = max(1, _ELEMENTS_AT_ONCE // (self._activations * batch_size))
        for start in range(rows.start, rows.stop, size):
            yield slice(start, min(start + size, rows.stop))


@final
class Member:
    """The learner of one peer of a fleet. Satisfies `types.Learner`."""

    def __init__(self, fleet: Fleet, peer: PeerId, row: int) -> None:
        self._fleet, self._peer, self._row = fleet, peer, row
        self.seek(0)

    @property
    def params(self) -> Tensors:
        """Parameters by name, in `state_dict` order, as live views."""
        return dict(self._fleet.params(self._row))

    @params.setter
    def params(self, new: Mapping[str, Tensor]) -> None:
        copy_into(self._fleet.params(self._row), new)

    @property
    def parts(self) -> Mapping[str, Part]:
        return self._fleet.parts

    @property
    def metrics(self) -> Mapping[str, float]:
        """What the last `train` reports besides the loss: nothing."""
        return {}

    @property
    def num_samples(self) -> int:
        """Size of the peer's own training shard."""
        return self._fleet.num_samples(self._row)

    @property
    def round(self) -> int:
        return self._round

    def seek(self, round: int) -> None:
        """Go to the beginning of `round`."""
        self._round = round
        self._began = self._fleet.version(self._row)
        self._grad_batches: Iterator[NDArray[Any]] | None = None

    def train(self) -> float:
        """Run the round's optimiser steps; returns the mean loss over them.

        Raises TrainingError naming peer, round and step if a loss is not finite.
        """
        losses = self._fleet.train(self._row, self._round, as_it_began=self._is_as_it_began)
        return mean_loss(losses, self._peer, self._round, self._fleet.lr)

    def grad(self, at: Mapping[str, Tensor]) -> Tensors:
        """Gradient of the loss at `at` on this round's next mini-batch, in the names of `params`.

        As `SupervisedLearner.grad`.
        """
        batches = self._grad_batches or self._fleet.batches(self._row, self._round)
        if self._grad_batches is None and self._is_as_it_began and self._is_own(at):
            self._grad_batches = islice(batches, 1, None)
            return self._fleet.first_grad(self._row, self._round)
        self._grad_batches = batches
        return self._fleet.grad(at, next(batches))

    def evaluate(self) -> Metrics:
        """Accuracy and mean loss on the test samples, in evaluation mode."""
        return self._fleet.evaluate(self._row, self._round)

    def state(self) -> Tensors:
        """A copy of model and optimiser, as `SupervisedLearner.state` has it."""
        return join(model=clone(self.params), optimiser=self._fleet.optimiser(self._row))

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned; ConfigError if model or optimiser are others."""
        model = part(state, "model")
        if difference := mismatch(model, self.params):
            raise ConfigError(f"the checkpoint does not fit the model: {difference}")
        self._fleet.load_optimiser(self._row, part(state, "optimiser"))
        self.params = model

    @property
    def _is_as_it_began(self) -> bool:
        """Whether the parameters are what they were when the round began."""
        return self._fleet.version(self._row) == self._began

    def _is_own(self, at: Mapping[str, Tensor]) -> bool:
        """Whether `at` are the peer's own parameters, live."""
        return all(at[name] is own for name, own in self._fleet.params(self._row).items())


def _losses(logits: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy [g, B] of logits [g, B, …, classes] and labels [g B, …], mean over …

    By logsumexp, which takes a fifth of the time of F.cross_entropy on many rows of few classes.
    """
    places = y.reshape(*logits.shape[:-1], 1)
    found = logits.logsumexp(-1) - logits.gather(-1, places).squeeze(-1)
    return found.reshape(*logits.shape[:2], -1).mean(2)
