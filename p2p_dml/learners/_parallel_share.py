"""What each rank of a peer does of its training: it sees a slice of every batch.

All ranks make the same calls in the same order, the leader with whole tensors, by name, the others
with None. Between calls only the leader's tensors count: what the ranks compute with is filled from
them anew, as a strategy may have changed any.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, Literal, Protocol, final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from p2p_dml.data import Dataset
from p2p_dml.errors import ConfigError
from p2p_dml.learners._draws import RoundDraws, seeded
from p2p_dml.learners._forward import Forward, in_precision
from p2p_dml.learners._metrics import EvaluateOn, Score, cross_entropy
from p2p_dml.learners._optimiser import Optimiser
from p2p_dml.learners._parallel_copies import Copies
from p2p_dml.learners._parallel_team import Team
from p2p_dml.learners._samples import Samples, own_counts, test_samples, train_samples
from p2p_dml.learners._training import Training
from p2p_dml.types import Tensors

_ALL = -1
"""The label under which all test samples are scored at once."""


class Placement(Protocol):
    """Where the ranks of a peer keep its tensors; see `Copies` and `Shards`."""

    def wrap(self, module: nn.Module, x: Tensor) -> Forward: ...

    def spread(self, own: Tensor, whole: Tensor | None) -> None: ...

    def collect(self, own: Tensor, whole: Tensor | None) -> None: ...


@final
class Share:
    """One rank's part in the training of peer `team.peer`; `module` becomes its copy or shards.

    Gradients are means over the whole batch, so the steps are those of `SupervisedLearner` to
    rounding. BatchNorm is not: each rank has the statistics of its slices. Noise differs by rank.
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
        check_slices(module, len(indices), training.batch_size, team.size)
        self._team, self._training, self._seed = team, training, seed
        first = next(module.parameters())
        self._device, dtype = first.device, first.dtype
        del first  # of shards nobody may keep the whole
        self._shard = train_samples(dataset, indices, self._device, dtype)
        self._own = own_counts(dataset, indices) if evaluate_on == "own" else None
        self._tests = {
            label: test_samples(dataset, self._device, dtype, None if label == _ALL else label)
            for label in (self._own or (_ALL,))
        }
        self._module = module
        self._placement = placement_of(training.parallel, team)
        sample, _ = self._shard.batch(np.arange(1))
        forward = _wrapped(self._placement, module, sample, training.parallel)
        self._params = dict(module.named_parameters())
        self._trainable = {name: p for name, p in self._params.items() if p.requires_grad}
        self._optimiser = Optimiser(self._trainable.values(), training)
        like = next(iter(self._params.values()))
        self._trained = in_precision(forward, training, like)
        tested = module if training.parallel == "ddp" else forward  # DDP itself only trains
        self._tested = in_precision(tested, training, like)
        self._grad_batches: Iterator[NDArray[Any]] | None = None

    @property
    def own_counts(self) -> Mapping[int, int] | None:
        """Training samples of each class if the peer is tested on its own mix, else None."""
        return self._own

    @property
    def num_samples(self) -> int:
        """Size of the peer's training shard, all ranks' together."""
        return len(self._shard)

    def train(self, round_: int, whole: Tensors | None) -> list[float]:
        """Run the steps of a round on `whole`, in place; returns the loss of each, at all ranks."""
        self._spread(whole)
        if self._training.optimiser_state == "reset":
            self._optimiser.state.clear()
        draws = RoundDraws(self._seed, self._team.peer, round_)
        batches = draws.batches(len(self._shard), self._training.batch_size)
        num_steps = self._training.num_steps(len(self._shard))
        with seeded(noise_seed(draws.noise_seed, self._team.place), self._device):
            losses = [self._step(positions) for positions in islice(batches, num_steps)]
        with torch.no_grad():
            for name, own in self._tensors().items():
                self._placement.collect(own, _of(whole, name))
        values: list[float] = self._team.add_up(torch.stack(losses)).tolist()
        return values

    def grad(self, round_: int, index: int, at: Tensors | None) -> Tensors:
        """Gradient at `at` on batch `index` of a round, called with 0, 1, …; empty at followers.

        Parameters that a batch does without, and frozen ones, are not in it. Torch's wrappers
        compute with the parameters of their module only, so those become `at`, at all ranks.
        """
        self._spread(at)
        draws = RoundDraws(self._seed, self._team.peer, round_)
        if index == 0 or self._grad_batches is None:
            self._grad_batches = draws.batches(len(self._shard), self._training.batch_size)
        with seeded(noise_seed(draws.noise_seed + index, self._team.place), self._device):
            self._backward(next(self._grad_batches))
        grads = {name: p.grad for name, p in self._trainable.items() if p.grad is not None}
        found = self._collected(grads, is_leader=at is not None)
        self._optimiser.zero_grad()
        return found

    def score(self, whole: Tensors | None) -> dict[int, Score]:
        """Scores of `whole` on the test samples: by label, or all under -1; at all ranks."""
        self._spread(whole)
        self._module.eval()
        with torch.no_grad():
            sums = torch.stack([self._sums(test) for test in self._tests.values()])
            found = self._team.add_up(sums).tolist()
        return {
            label: Score(right, loss, int(count))
            for label, (right, loss, count) in zip(self._tests, found, strict=True)
        }

    def optimiser(self, *, is_leader: bool) -> Tensors:
        """A copy of the optimiser's state as `SupervisedLearner.state` names it; only there."""
        return self._collected(self._optimiser.named_state(), is_leader=is_leader)

    def check_optimiser(self, state: Mapping[str, Tensor]) -> None:
        """Whether `load_optimiser` can take `state`; ConfigError if it is of another one."""
        shapes = {index: p.shape for index, p in enumerate(self._trainable.values())}
        for index, entry in self._optimiser.entries(state).items():
            for key, value in entry.items():
                if value.shape != (torch.Size() if key == "step" else shapes[index]):
                    raise ConfigError(
                        f"the checkpoint does not fit the model: 'optimiser/{index}/{key}' has "
                        f"shape {list(value.shape)}"
                    )

    def load_optimiser(self, state: Mapping[str, Tensor] | None) -> None:
        """Take over what `optimiser` returned at the leader; None at followers."""
        keys = self._optimiser.keys
        names = [[f"{index}/{key}" for key in keys] for index in range(len(self._trainable))]
        present = torch.zeros(len(names), len(keys), dtype=torch.int64)
        if state is not None:
            present += torch.tensor([[name in state for name in row] for row in names])
        present = self._team.add_up(present)
        entries: dict[int, Tensors] = {}
        with torch.no_grad():
            for index, p in enumerate(self._trainable.values()):
                for column, key in enumerate(keys):
                    if present[index, column]:
                        own = torch.zeros(()) if key == "step" else torch.zeros_like(p)
                        self._placement.spread(own, _of(state, f"{index}/{key}"))
                        entries.setdefault(index, {})[key] = own
        self._optimiser.state = entries

    def _slice_of(self, positions: NDArray[Any]) -> NDArray[Any]:
        return slice_of(positions, self._team.place, self._team.size)

    def _tensors(self) -> Tensors:
        """Parameters and buffers that a checkpoint has; of shared ones the first name."""
        kept = self._module.state_dict().keys()
        buffers = {name: x for name, x in self._module.named_buffers() if name in kept}
        return {**self._params, **buffers}

    def _spread(self, whole: Tensors | None) -> None:
        with torch.no_grad():
            for name, own in self._tensors().items():
                self._placement.spread(own, _of(whole, name))

    def _collected(self, tensors: Mapping[str, Tensor], *, is_leader: bool) -> Tensors:
        """Whole copies of all ranks' `tensors` at the leader; nothing elsewhere."""
        found: Tensors = {}
        with torch.no_grad():
            for name, own in tensors.items():
                whole = None
                if is_leader:
                    whole = torch.empty(own.shape, dtype=own.dtype, device=own.device)
                    found[name] = whole
                self._placement.collect(own, whole)
        return found

    def _step(self, positions: NDArray[Any]) -> Tensor:
        loss = self._backward(positions)
        if self._training.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._trainable.values(), self._training.clip_norm)
        self._optimiser.step()
        return loss

    def _backward(self, positions: NDArray[Any]) -> Tensor:
        """Leave the gradient on a batch; returns this rank's part of its loss, float64."""
        own = self._slice_of(positions)
        # A rank without samples must take part all the same: its gradients count nothing.
        x, y = self._shard.batch(own if len(own) else positions)
        weight = len(own) / len(positions)
        self._module.train()
        self._optimiser.zero_grad()
        loss = cross_entropy(self._outputs(x), y)
        torch.autograd.backward(loss * (weight * self._team.size))  # they take the ranks' mean
        return loss.detach().double() * weight

    def _outputs(self, x: Tensor) -> Tensor:
        """ConfigError if the model uses some parameters in some batches only."""
        try:
            return self._trained(x)
        except RuntimeError as error:
            if "finished reduction" not in str(error):
                raise
            raise ConfigError(
                f"train.parallel: {self._training.parallel!r} is for models that use the same "
                "parameters in every batch, and this one does not; have one rank per peer"
            ) from error

    def _sums(self, test: Samples) -> Tensor:
        """Right labels, losses and labels [3] on this rank's slices of all chunks, float64."""
        total = torch.zeros(3, dtype=torch.float64, device=self._device)
        for positions in test.pieces():
            own = self._slice_of(positions)
            x, y = test.batch(own if len(own) else positions)
            logits = self._tested(x)
            if len(own):
                right = (logits.argmax(-1) == y).sum()
                loss = cross_entropy(logits, y).double() * y.numel()
                total += torch.stack([right.double(), loss, torch.full_like(loss, y.numel())])
        return total


def slice_of(positions: NDArray[Any], place: int, size: int) -> NDArray[Any]:
    """A rank's part of a batch: contiguous, sizes differ by one at most, the first are larger."""
    return np.array_split(positions, size)[place]


def noise_seed(seed: int, place: int) -> int:
    """A seed for dropout that differs by rank; the leader's is that of a peer of one rank."""
    return (seed ^ (place * 0x9E3779B97F4A7C15)) & ((1 << 63) - 1)


def check_slices(module: nn.Module, num_samples: int, batch_size: int, ranks: int) -> None:
    """Whether BatchNorm gets the two samples it needs; ConfigError if a rank has fewer."""
    smallest = num_samples // -(-num_samples // batch_size)
    has_norm = any(isinstance(layer, nn.BatchNorm1d) for layer in module.modules())
    if has_norm and smallest < 2 * ranks:
        raise ConfigError(
            f"train.batch_size: BatchNorm1d needs two samples, and a batch of {smallest} among "
            f"{ranks} ranks leaves one of them fewer; expected batches of {2 * ranks} or more, or "
            "fewer ranks per peer"
        )


def placement_of(kind: Literal["none", "ddp", "fsdp"], team: Team) -> Placement:
    """How `train.parallel` places tensors; ConfigError if this torch cannot."""
    if kind == "none":
        raise ConfigError(
            "train.parallel: expected 'ddp' or 'fsdp' where peers have several ranks, found 'none'"
        )
    if kind == "ddp":
        return Copies(team)
    try:
        from p2p_dml.learners._parallel_shards import Shards  # a second to import, for who shards
    except ImportError as error:
        raise ConfigError(
            f"train.parallel: 'fsdp' needs torch 2.6 or newer, found {torch.__version__}; "
            "set parallel = 'ddp'"
        ) from error
    return Shards(team)


def _wrapped(placement: Placement, module: nn.Module, x: Tensor, kind: str) -> Forward:
    """What calls the model; ConfigError if torch does not take it."""
    try:
        return placement.wrap(module, x)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError(
            f"train.parallel: torch has no {kind!r} for this model: {error}; choose the other way, "
            "or have one rank per peer"
        ) from error


def _of(tensors: Mapping[str, Tensor] | None, name: str) -> Tensor | None:
    return None if tensors is None else tensors[name]
