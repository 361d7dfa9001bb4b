"""How a peer trains in a round: the table `[train]` of a run file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, final

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8
"""Adam's, as torch has them; a run file cannot change them."""


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Settings of the local training.

    `steps` optimiser steps per round, or `epochs` passes over the peer's own samples (1 if
    neither is given). `momentum` is SGD's. `clip_norm` bounds the norm of the whole gradient.
    `optimiser_state`: keep momenta between rounds or start each round without. `buffers`: mix
    BatchNorm's running statistics with the parameters, or leave them local. `precision`: in
    "bfloat16" the model's products are computed so (torch's autocast), in training and tests, while
    parameters, losses and what is sent keep their dtype. `compile`: by torch.compile. `parallel`:
    how several ranks of torchrun train one peer, each with a copy of the model ("ddp") or with a
    shard of it ("fsdp"); where a peer has one rank or process, it makes no difference.

    Raises ValueError for a value out of range or both `steps` and `epochs`.
    """

    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: float = 0.01
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 32
    steps: int | None = None
    epochs: int | None = None
    clip_norm: float | None = None
    optimiser_state: Literal["keep", "reset"] = "keep"
    buffers: Literal["mix", "local"] = "mix"
    precision: Literal["full", "bfloat16"] = "full"
    compile: bool = False
    parallel: Literal["none", "ddp", "fsdp"] = "none"

    def __post_init__(self) -> None:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("steps, epochs: expected one of them, found both")
        for field, value in (
            ("lr", self.lr),
            ("batch_size", self.batch_size),
            ("steps", self.steps),
            ("epochs", self.epochs),
            ("clip_norm", self.clip_norm),
        ):
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{field}: expected a positive number, found {value}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum: expected 0 to below 1, found {self.momentum}")
        if self.momentum and self.optimiser != "sgd":
            raise ValueError(f"momentum: is for sgd, not {self.optimiser}; remove it")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay: expected 0 or more, found {self.weight_decay}")
        if self.compile and self.parallel != "none":
            raise ValueError(f"compile: does not go with parallel = {self.parallel!r}; remove one")

    def num_steps(self, num_samples: int) -> int:
        """Optimiser steps in a round of a peer with `num_samples` samples."""
        if self.steps is not None:
            return self.steps
        return (self.epochs or 1) * -(-num_samples // self.batch_size)
