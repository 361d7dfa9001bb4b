"""The usual learner: a module, a peer's own labelled samples, an optimiser, cross-entropy."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, cast, final

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from p2p_dml.data import Dataset
from p2p_dml.learners._draws import RoundDraws, seeded
from p2p_dml.learners._forward import compiled, in_precision
from p2p_dml.learners._metrics import (
    EvaluateOn,
    Metrics,
    Score,
    cross_entropy,
    mean_loss,
    on_own_mix,
)
from p2p_dml.learners._optimiser import Optimiser
from p2p_dml.learners._samples import Samples, own_counts, test_samples, train_samples
from p2p_dml.learners._training import Training
from p2p_dml.learners._views import copy_into, exchanged_parts, live_views, restore, saved
from p2p_dml.tensors import clone, join, part
from p2p_dml.types import Part, PeerId, Tensors


@final
class SupervisedLearner:
    """Trains `module` on the training samples `indices`; tests it on all test samples.

    `evaluate_on="own"`: tests it on the mix of classes among `indices` (see `on_own_mix`), and on
    no other class; ConfigError if that cannot be.

    The module's device and dtype, and `training.precision`, decide where and in what precision it
    computes. Everything random follows from (seed, peer, round), so there is no generator state to
    keep: `state` is the module and the optimiser. Satisfies `types.Learner`.
    """

    def __init__(
        self,
        module: nn.Module,
        dataset: Dataset,
        indices: NDArray[Any],
        training: Training,
        *,
        seed: int,
        peer: PeerId,
        evaluate_on: EvaluateOn = "all",
    ) -> None:
        self.module = module
        self._training = training
        self._seed, self._peer = seed, peer
        first = next(module.parameters())
        self._device = first.device
        self._tested = in_precision(module, training, first)
        self._trained = in_precision(compiled(module, training), training, first)
        self._trained_at = in_precision(compiled(_call, training), training, first)
        self._shard = train_samples(dataset, indices, first.device, first.dtype)
        self._test = test_samples(dataset, first.device, first.dtype)
        self._own = own_counts(dataset, indices) if evaluate_on == "own" else None
        self._own_tests = {
            label: test_samples(dataset, first.device, first.dtype, label)
            for label in self._own or ()
        }
        self._parts = exchanged_parts(module, buffers=training.buffers == "mix")
        self._views = live_views(module, buffers=training.buffers == "mix")
        self._trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._optimiser = Optimiser(self._trainable.values(), training)
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
        return len(self._shard)

    @property
    def round(self) -> int:
        return self._round

    def seek(self, round: int) -> None:
        """Go to the beginning of `round`."""
        self._round = round
        self._num_grads = 0
        self._grad_batches: Iterator[NDArray[Any]] | None = None

    def train(self) -> float:
        """Run the round's optimiser steps; returns the mean loss over them.

        Raises TrainingError naming peer, round and step if a loss is not finite.
        """
        if self._training.optimiser_state == "reset":
            self._optimiser.state.clear()
        self.module.train()
        draws = self._draws()
        batches = draws.batches(len(self._shard), self._training.batch_size)
        num_steps = self._training.num_steps(len(self._shard))
        with seeded(draws.noise_seed, self._device):
            losses = [self._step(positions) for positions in islice(batches, num_steps)]
        values = torch.stack(losses).tolist()  # the round's only wait for the device
        return mean_loss(values, self._peer, self._round, self._training.lr)

    def grad(self, at: Mapping[str, Tensor]) -> Tensors:
        """Gradient of the loss at `at` on this round's next mini-batch, in the names of `params`.

        Calls in one round walk through the batches that `train` would use, from the first one.
        Weight decay and clipping are not in it; buffers and frozen parameters have gradient 0.
        """
        draws = self._draws()
        if self._grad_batches is None:
            self._grad_batches = draws.batches(len(self._shard), self._training.batch_size)
        x, y = self._shard.batch(next(self._grad_batches))
        leaves = {name: at[name].detach().requires_grad_() for name in self._trainable}
        self.module.train()
        with seeded(draws.noise_seed + self._num_grads, self._device):
            loss = cross_entropy(self._trained_at(self.module, self._at(at) | leaves, x), y)
        self._num_grads += 1
        grads = torch.autograd.grad(
            loss, list(leaves.values()), allow_unused=True, materialize_grads=True
        )
        zeros = {name: torch.zeros_like(x) for name, x in self._views.items() if name not in leaves}
        found = dict(zip(leaves, grads, strict=True)) | zeros
        return {name: found[name] for name in self._views}

    def evaluate(self) -> Metrics:
        """Accuracy and mean loss on the test samples, in evaluation mode."""
        self.module.eval()
        if self._own is None:
            return self._score(self._test).metrics
        scores = {label: self._score(test) for label, test in self._own_tests.items()}
        return on_own_mix(self._own, scores)

    def state(self) -> Tensors:
        """A copy of module and optimiser as flat tensors; `load_state` continues bit for bit."""
        return join(model=saved(self.module), optimiser=clone(self._optimiser.named_state()))

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned; ConfigError if model or optimiser are others."""
        entries = self._optimiser.entries(part(state, "optimiser"))
        restore(self.module, part(state, "model"))
        self._optimiser.state = entries

    def _draws(self) -> RoundDraws:
        return RoundDraws(self._seed, self._peer, self._round)

    def _step(self, positions: NDArray[Any]) -> Tensor:
        x, y = self._shard.batch(positions)
        self._optimiser.zero_grad()
        loss = cross_entropy(self._trained(x), y)
        torch.autograd.backward(loss)
        if self._training.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._trainable.values(), self._training.clip_norm)
        self._optimiser.step()
        return loss.detach()

    def _score(self, test: Samples) -> Score:
        right, loss, count = 0.0, 0.0, 0
        with torch.inference_mode():
            for x, y in test.chunks():
                logits = self._tested(x)
                right += float((logits.argmax(-1) == y).sum())
                loss += float(cross_entropy(logits, y)) * y.numel()
                count += y.numel()
        return Score(right, loss, count)

    def _at(self, at: Mapping[str, Tensor]) -> Tensors:
        """Copies of all buffers, from `at` where it has them: a forward may write into them."""
        buffers = {name: at.get(name, own) for name, own in self.module.named_buffers()}
        given = {name: at[name] for name in self._views if name not in buffers}
        return given | {name: buffer.detach().clone() for name, buffer in buffers.items()}


def _call(module: nn.Module, params: Mapping[str, Tensor], x: Tensor) -> Tensor:
    return cast(Tensor, functional_call(module, dict(params), (x,)))
