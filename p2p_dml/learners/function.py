"""A learner around the user's own training function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import final

from torch import Tensor, nn

from p2p_dml.errors import TrainingError
from p2p_dml.learners._metrics import Metrics
from p2p_dml.learners._views import copy_into, exchanged_parts, live_views, restore, saved
from p2p_dml.plugins import last_frame
from p2p_dml.tensors import join, part
from p2p_dml.types import Part, PeerId, Tensors

TrainFunction = Callable[[nn.Module, int], object]
EvaluateFunction = Callable[[nn.Module], object]


@final
class FunctionLearner:
    """Trains `module` by `train(module, round)`, tests it by `evaluate(module)` if there is one.

    `train` changes the module in place and returns the loss, or a mapping with "loss" whose other
    numbers are kept in `metrics`. `evaluate` returns a mapping with "accuracy", "loss" and
    "samples", any of them. Whatever they raise becomes a TrainingError. Data, optimiser and
    randomness are the user's; a checkpoint holds the module only. Satisfies `types.Learner`.
    """

    def __init__(
        self,
        module: nn.Module,
        train: TrainFunction,
        evaluate: EvaluateFunction | None = None,
        *,
        peer: PeerId,
        mix_buffers: bool = True,
    ) -> None:
        self.module = module
        self._train, self._evaluate, self._peer = train, evaluate, peer
        self._parts = exchanged_parts(module, buffers=mix_buffers)
        self._views = live_views(module, buffers=mix_buffers)
        self._metrics: dict[str, float] = {}
        self._round = 0

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
        """The numbers that the last `train` returned besides the loss."""
        return self._metrics

    @property
    def num_samples(self) -> int:
        """0: the user's function keeps its data to itself."""
        return 0

    @property
    def round(self) -> int:
        return self._round

    def seek(self, round: int) -> None:
        """Go to the beginning of `round`."""
        self._round = round

    def train(self) -> float:
        """Call the user's function; TrainingError if it raises or its loss is not finite."""
        try:
            returned = self._train(self.module, self._round)
        except Exception as error:  # the user's code may raise anything
            raise self._failed("train", error) from error
        table = returned if isinstance(returned, Mapping) else {"loss": returned}
        numbers = self._numbers("train", table)
        if "loss" not in numbers:
            raise TrainingError(f"{self._at('train')} must return a mapping with 'loss'")
        loss = numbers.pop("loss")
        if not math.isfinite(loss):
            raise TrainingError(f"{self._at('train')} returned the loss {loss}")
        self._metrics = numbers
        return loss

    def grad(self, at: Mapping[str, Tensor]) -> Tensors:
        """Raise TrainingError: a training function of the user's gives no gradients."""
        raise TrainingError(
            f"peer {self._peer}, round {self._round}: this strategy asks for gradients, which a "
            "train function of one's own cannot give; choose a strategy that calls train, such as "
            "dpsgd, or leave the training to [train]"
        )

    def evaluate(self) -> Metrics:
        """Call the user's function; all unknown if there is none."""
        if self._evaluate is None:
            return Metrics(None, None, 0)
        try:
            returned = self._evaluate(self.module)
        except Exception as error:  # the user's code may raise anything
            raise self._failed("evaluate", error) from error
        if not isinstance(returned, Mapping):
            raise TrainingError(
                f"{self._at('evaluate')} must return a mapping such as {{'accuracy': 0.9}}, "
                f"found {type(returned).__name__}"
            )
        numbers = self._numbers("evaluate", returned)
        return Metrics(numbers.get("accuracy"), numbers.get("loss"), int(numbers.get("samples", 0)))

    def state(self) -> Tensors:
        """A copy of the module as flat tensors."""
        return join(model=saved(self.module))

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` returned; ConfigError if the model is another."""
        restore(self.module, part(state, "model"))

    def _at(self, function: str) -> str:
        return f"peer {self._peer}, round {self._round}: the {function} function"

    def _failed(self, function: str, error: Exception) -> TrainingError:
        return TrainingError(
            f"{self._at(function)} raised {type(error).__name__}: {error} ({last_frame(error)})"
        )

    def _numbers(self, function: str, table: Mapping[str, object]) -> dict[str, float]:
        """Every value as a float; TrainingError naming one that is not a number."""
        numbers = {}
        for key, value in table.items():
            try:
                numbers[str(key)] = float(value)  # type: ignore[arg-type]
            except (TypeError, ValueError) as error:
                raise TrainingError(
                    f"{self._at(function)} returned {key!r} = {value!r}, which is not a number"
                ) from error
        return numbers
