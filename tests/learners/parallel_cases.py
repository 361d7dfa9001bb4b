"""A program for torchrun: what a peer of several ranks promises, case by case, held against one.

python parallel_cases.py FOLDER [cuda] writes what went wrong at each rank to FOLDER/RANK.json, by
case, None if nothing did. Every function whose name begins with `case_` is run by all ranks at
once, for "ddp" and for "fsdp". The leader's learner stands beside a `SupervisedLearner`.
"""

from __future__ import annotations

import gc
import json
import math
import os
import sys
import traceback
import warnings
import weakref
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from p2p_dml.data import Dataset
from p2p_dml.errors import ConfigError, TrainingError, TransportError
from p2p_dml.learners import SupervisedLearner, Training
from p2p_dml.learners._metrics import EvaluateOn, Metrics
from p2p_dml.learners.parallel import ParallelLearner, Team, follow
from p2p_dml.models import build_model
from p2p_dml.types import Tensors
from tests.learners.parallel_toys import Bare, Moody, Odd, images, mlp, noisy, normed, text, toy

Kind = Literal["ddp", "fsdp"]
Make = Callable[[], nn.Module]
Act = Callable[[SupervisedLearner, ParallelLearner], None]

ON_GPU = "cuda" in sys.argv[2:]
DEVICE = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if ON_GPU else torch.device("cpu")
PATIENCE_S = 60.0
PEER, SEED = 3, 1
EXACT = 1e-10 if ON_GPU else 1e-12
"""How far float64 may be from what one rank computes, relatively and absolutely."""


def close(got: Tensors, expected: Tensors, tolerance: float = EXACT) -> None:
    assert list(got) == list(expected)
    for name, x in expected.items():
        torch.testing.assert_close(got[name], x, rtol=tolerance, atol=tolerance)


def same_test(got: Metrics, expected: Metrics) -> None:
    assert (got.accuracy, got.samples) == (expected.accuracy, expected.samples)
    assert got.loss is not None and expected.loss is not None
    np.testing.assert_allclose(got.loss, expected.loss, rtol=EXACT)


def halve(learner: SupervisedLearner | ParallelLearner) -> None:
    """Change the model as strategies do: some of it in place, and all of it at once."""
    next(iter(learner.params.values())).mul_(0.5)
    learner.params = {name: x * 0.9 for name, x in learner.params.items()}


def refused(act: Callable[[], object], message: str) -> None:
    try:
        act()
    except (ConfigError, TrainingError, TransportError) as error:
        assert message in str(error), error
    else:
        raise AssertionError(f"nothing was raised about {message!r}")


@final
class Peer:
    """This rank of the only peer."""

    def __init__(self, team: Team, kind: Kind) -> None:
        self.team, self.kind = team, kind

    def beside(
        self,
        make: Make,
        act: Act,
        dataset: Dataset | None = None,
        evaluate_on: EvaluateOn = "all",
        **training: Any,
    ) -> nn.Module:
        """Run `act` at the leader on two learners alike; returns this rank's module."""
        data = dataset or toy()
        rows = np.arange(data.num_samples)[::-1].copy()
        settings = Training(**training, parallel=self.kind)
        module, team = make().to(DEVICE), self.team
        if team.place:
            follow(
                module,
                data,
                rows,
                settings,
                team,
                seed=SEED,
                evaluate_on=evaluate_on,
                patience_s=PATIENCE_S,
            )
            return module
        shared = ParallelLearner(
            module, data, rows, settings, team, seed=SEED, evaluate_on=evaluate_on
        )
        alone = SupervisedLearner(
            make().to(DEVICE), data, rows, settings, seed=SEED, peer=PEER, evaluate_on=evaluate_on
        )
        try:
            act(alone, shared)
        finally:
            shared.close(is_done=True)
            shared.close(is_done=True)  # more than once does no harm
        return module


def two_rounds(alone: SupervisedLearner, shared: ParallelLearner) -> None:
    """Training, tests and states agree, though a strategy changes the model between rounds."""
    for round_ in (1, 2):
        losses, tests = [], []
        for learner in (alone, shared):
            learner.seek(round_)
            losses.append(learner.train())
            tests.append(learner.evaluate())
            halve(learner)
        np.testing.assert_allclose(losses[1], losses[0], rtol=EXACT)
        same_test(tests[1], tests[0])
        close(shared.params, alone.params)
    close(shared.state(), alone.state())


def case_steps_are_those_of_one_rank(peer: Peer) -> None:
    for training in (
        {"batch_size": 8, "epochs": 2, "momentum": 0.9, "weight_decay": 0.1, "clip_norm": 0.05},
        {"batch_size": 7, "optimiser": "adam", "optimiser_state": "reset"},
        {"batch_size": 10, "optimiser": "adamw", "weight_decay": 0.1, "clip_norm": 100.0},
        {"batch_size": 2, "steps": 5, "lr": 0.1},  # three ranks: one has nothing to do
        {"batch_size": 1, "steps": 5, "lr": 0.1},
    ):
        peer.beside(mlp, two_rounds, **training)


def case_built_in_models(peer: Peer) -> None:
    for name, data in (("lenet", images()), ("char_lstm", text())):

        def make(name: str = name, data: Dataset = data) -> nn.Module:
            kind, shape, tokens = {"name": name}, data.shape, data.is_tokens
            return build_model(
                kind, shape, data.num_classes, seed=3, dtype=torch.float64, is_tokens=tokens
            )

        peer.beside(make, two_rounds, data, batch_size=7, steps=2, momentum=0.9)


def case_shared_frozen_and_idle_parameters(peer: Peer) -> None:
    """What has no gradient does not decay; what is shared is stepped once."""
    training: dict[str, Any] = {"weight_decay": 0.1, "momentum": 0.9, "clip_norm": 0.05}
    peer.beside(lambda: Odd().double(), two_rounds, batch_size=8, **training)


def case_gradients(peer: Peer) -> None:
    def act(alone: SupervisedLearner, shared: ParallelLearner) -> None:
        for round_ in (1, 2, 2):
            shared.seek(round_)
            alone.seek(round_)
            before = {name: x.clone() for name, x in shared.params.items()}
            for scale in (1.0, 0.5, -1.0):
                at = {name: x * scale for name, x in alone.params.items()}
                close(shared.grad(at), alone.grad(at))
            close(shared.grad(shared.params), alone.grad(alone.params))
            close(shared.params, before, 0)
        assert shared.train() > 0
        alone.train()
        close(shared.params, alone.params)

    peer.beside(mlp, act, batch_size=8)
    peer.beside(mlp, act, batch_size=2)


def case_gradients_of_idle_and_frozen_parameters_are_zero(peer: Peer) -> None:
    def act(alone: SupervisedLearner, shared: ParallelLearner) -> None:
        found = shared.grad(shared.params)
        close(found, alone.grad(alone.params))
        zero = {name for name, x in found.items() if not x.any()}
        assert zero == {"more.0.weight", "idle.weight", "idle.bias"}

    peer.beside(lambda: Odd().double(), act, batch_size=8)


def case_batch_norm_has_the_leader_s_statistics(peer: Peer) -> None:
    def act(alone: SupervisedLearner, shared: ParallelLearner) -> None:
        seen: list[Tensor] = []
        alone.module.get_submodule("1").register_forward_pre_hook(
            lambda _, inputs: seen.append(inputs[0])
        )
        alone.train()
        shared.train()
        own = np.array_split(np.arange(len(seen[0])), peer.team.size)[0]
        running = shared.state()["model/1.running_mean"]
        torch.testing.assert_close(running, 0.1 * seen[0][own].mean(0), rtol=EXACT, atol=EXACT)
        assert int(shared.state()["model/1.num_batches_tracked"]) == 1
        kept = {name: x.clone() for name, x in shared.state().items()}
        shared.grad(shared.params)  # leaves no trace
        close(shared.state(), kept, 0)
        # All ranks test with those: the same as one rank that has them.
        alone.load_state(kept)
        same_test(shared.evaluate(), alone.evaluate())

    for buffers in ("mix", "local"):
        peer.beside(normed, act, batch_size=23, buffers=buffers)


def case_noise_is_the_same_every_time(peer: Peer) -> None:
    losses: list[float] = []

    def act(alone: SupervisedLearner, shared: ParallelLearner) -> None:
        shared.seek(4)
        losses.append(shared.train())
        losses.append(float(shared.grad(shared.params)["0.weight"].sum()))

    for _ in range(2):
        peer.beside(noisy, act, batch_size=8)
    assert losses[:2] == losses[2:]


def case_checkpoints_are_exchangeable(peer: Peer) -> None:
    """A state of either learner continues in the other."""

    def act(alone: SupervisedLearner, shared: ParallelLearner) -> None:
        alone.train()
        shared.load_state(alone.state())
        close(shared.state(), alone.state(), 0)
        two_rounds(alone, shared)
        shared.train()
        alone.load_state(shared.state())
        two_rounds(alone, shared)
        wrong = alone.state()
        index, key = "2", "exp_avg" if "optimiser/2/exp_avg" in wrong else "momentum_buffer"
        refused(
            lambda: shared.load_state({**wrong, f"optimiser/{index}/{key}": torch.zeros(2)}),
            f"'optimiser/{index}/{key}' has shape [2]",
        )
        refused(lambda: shared.load_state({**wrong, "optimiser/0/x": torch.zeros(2)}), "has 'x'")
        refused(lambda: shared.load_state({"model/x": torch.zeros(2)}), "does not fit the model")
        two_rounds(alone, shared)  # nobody is out of step

    peer.beside(mlp, act, batch_size=8, momentum=0.9)
    peer.beside(mlp, act, batch_size=8, optimiser="adam")


def case_the_own_mix_of_classes(peer: Peer) -> None:
    peer.beside(mlp, two_rounds, toy(num_tests=17), "own", batch_size=8)


def case_bfloat16_is_for_products_only(peer: Peer) -> None:
    def act(alone: SupervisedLearner, shared: ParallelLearner) -> None:
        alone.train()
        shared.train()
        assert {x.dtype for x in shared.state().values()} == {torch.float32}
        close(shared.params, alone.params, 1e-3)
        assert abs((shared.evaluate().loss or 0) - (alone.evaluate().loss or 0)) < 1e-2
        found = shared.grad(alone.params)
        assert {x.dtype for x in found.values()} == {torch.float32}

    peer.beside(lambda: mlp().float(), act, batch_size=8, precision="bfloat16")


def case_a_follower_keeps_its_shards_only(peer: Peer) -> None:
    whole: list[weakref.ref[nn.Parameter]] = []

    def make() -> nn.Module:
        module = mlp()
        whole.extend(weakref.ref(p) for p in module.parameters())
        return module

    module = peer.beside(make, two_rounds, batch_size=8)
    gc.collect()
    if peer.team.place and peer.kind == "fsdp":
        assert [ref() for ref in whole] == [None] * 4
        rows = {name: -(-len(x) // peer.team.size) for name, x in mlp().named_parameters()}
        for name, x in module.named_parameters():
            assert isinstance(x, DTensor)
            held = x.to_local().untyped_storage().nbytes()
            assert held == rows[name] * math.prod(x.shape[1:]) * 8


def case_a_loss_that_is_not_finite(peer: Peer) -> None:
    def act(alone: SupervisedLearner, shared: ParallelLearner) -> None:
        shared.seek(7)
        shared.params = {name: x * torch.inf for name, x in shared.params.items()}
        refused(shared.train, "peer 3, round 7: loss is nan after step 0 of 3")

    peer.beside(mlp, act, batch_size=8)


def case_models_that_cannot_be_taken_apart(peer: Peer) -> None:
    """Every rank says so, before the first round."""
    scalar = mlp()
    scalar.register_parameter("scale", nn.Parameter(torch.tensor(1.0, dtype=torch.float64)))
    if peer.kind == "fsdp":
        refused(lambda: peer.beside(lambda: Bare().double(), two_rounds), "without calling")
        refused(lambda: peer.beside(lambda: scalar, two_rounds), "scalar parameters")
    if peer.team.size > 1:
        refused(lambda: peer.beside(normed, two_rounds, batch_size=2), "BatchNorm1d needs two")


def case_parameters_that_come_and_go(peer: Peer) -> None:
    """FSDP goes along; DDP cannot, and says so at every rank."""
    if peer.kind == "fsdp":
        peer.beside(lambda: Moody().double(), two_rounds, batch_size=8, momentum=0.9)
    elif not ON_GPU:
        act = lambda alone, shared: shared.train()  # noqa: E731
        refused(lambda: peer.beside(lambda: Moody().double(), act, batch_size=8), "same parameters")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    if ON_GPU:
        torch.cuda.set_device(DEVICE)
    dist.init_process_group("gloo")
    ranks, limit = list(range(dist.get_world_size())), timedelta(seconds=PATIENCE_S)
    cases = {name: act for name, act in globals().items() if name.startswith("case_")}
    outcome: dict[str, str | None] = {}
    warnings.simplefilter("error")
    for kind in ("ddp", "fsdp"):
        for name, act in cases.items():
            control = dist.new_group(ranks, limit, "gloo")
            compute = dist.new_group(ranks, limit, "nccl" if ON_GPU else "gloo")
            try:
                act(Peer(Team(peer=PEER, control=control, compute=compute), kind))
                outcome[f"{kind} {name}"] = None
            except BaseException:
                outcome[f"{kind} {name}"] = traceback.format_exc()
    (folder / f"{dist.get_rank()}.json").write_text(json.dumps(outcome), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
