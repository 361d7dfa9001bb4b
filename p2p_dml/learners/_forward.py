"""In what precision a model's outputs are computed, and whether by a compiled program."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from p2p_dml.errors import ConfigError
from p2p_dml.learners._training import Training

Forward = Callable[..., Tensor]


def in_precision(forward: Forward, training: Training, like: Tensor) -> Forward:
    """`forward` in `training.precision`; outputs keep the dtype of `like`, a parameter.

    ConfigError if the precision is not for that dtype.
    """
    if training.precision == "full":
        return forward
    if like.dtype != torch.float32:
        raise ConfigError(
            f"train.precision: {training.precision!r} is for dtype = 'float32', found "
            f"{str(like.dtype).removeprefix('torch.')!r}; remove one of the two"
        )

    def in_bfloat16(*args: object) -> Tensor:
        with torch.autocast(like.device.type, torch.bfloat16):
            outputs = forward(*args)
        return outputs.to(like.dtype)

    return in_bfloat16


def compiled(forward: Forward, training: Training) -> Forward:
    """`forward` by torch.compile if `training.compile`: at the first call, for all alike at once.

    ConfigError at the first call if torch cannot.
    """
    if not training.compile:
        return forward
    from torch._dynamo.exc import BackendCompilerFailed  # a second to import, for who compiles

    program: Forward = torch.compile(forward)

    def run(*args: object) -> Tensor:
        try:
            return program(*args)
        except BackendCompilerFailed as error:
            raise ConfigError(
                f"train.compile: torch cannot compile this model here ({error.inner_exception}); "
                f"install a C++ compiler or remove compile"
            ) from error

    return run
