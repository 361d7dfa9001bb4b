"""What torchrun says in the environment, and which transport follows from it."""

from __future__ import annotations

import pytest

from p2p_dml.config import TransportConfig
from p2p_dml.errors import ConfigError
from p2p_dml.launchers.ranks import Ranks, choose, ranks_of

ENVIRONMENT = {
    "RANK": "5",
    "WORLD_SIZE": "8",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "4",
    "GROUP_RANK": "1",
    "MASTER_ADDR": "10.0.0.7",
    "MASTER_PORT": "29500",
}

NO_GPU = "there is no CUDA device"
BETWEEN = " within a host, ZeroMQ between hosts"


def _ranks(local_size: int = 4, size: int = 4) -> Ranks:
    return Ranks(rank=0, size=size, local_rank=0, local_size=local_size)


def test_ranks_are_read_from_the_environment() -> None:
    found = ranks_of(ENVIRONMENT)
    assert found == Ranks(
        rank=5, size=8, local_rank=1, local_size=4, node=1, master=("10.0.0.7", 29500)
    )
    assert found is not None and not found.is_one_host
    assert found.here == range(4, 8)
    assert _ranks().is_one_host


@pytest.mark.parametrize("name", [name for name in ENVIRONMENT if name != "GROUP_RANK"])
def test_without_torchrun_there_are_no_ranks(name: str) -> None:
    assert ranks_of({key: x for key, x in ENVIRONMENT.items() if key != name}) is None


@pytest.mark.parametrize(
    ("wanted", "local_size", "num_gpus", "obstacle", "name", "why"),
    [
        ({}, 4, 0, None, "torch.distributed (gloo)", NO_GPU),
        ({}, 4, 4, None, "torch.distributed (nccl)", "4 ranks here and 4 GPUs"),
        ({}, 1, 8, None, "torch.distributed (nccl)", "1 ranks here and 8 GPUs"),
        ({}, 8, 1, None, "ZeroMQ", "8 ranks here share 1 GPUs, and NCCL wants one for each"),
        ({}, 4, 0, "it is Monday", "ZeroMQ", "it is Monday"),
        ({"kind": "zeromq"}, 4, 4, None, "ZeroMQ", "transport.kind says so"),
        ({"kind": "torchdist"}, 4, 0, None, "torch.distributed (gloo)", NO_GPU),
        ({"backend": "gloo"}, 8, 1, None, "torch.distributed (gloo)", "transport.backend says so"),
        ({"backend": "nccl"}, 2, 2, None, "torch.distributed (nccl)", "2 ranks here and 2 GPUs"),
        ({"kind": "hybrid"}, 4, 0, None, f"torch.distributed (gloo){BETWEEN}", NO_GPU),
        (
            {"kind": "hybrid"},
            2,
            2,
            None,
            f"torch.distributed (nccl){BETWEEN}",
            "2 ranks here and 2 GPUs",
        ),
    ],
)
def test_the_choice_and_its_reason(
    wanted: dict[str, object],
    local_size: int,
    num_gpus: int,
    obstacle: str | None,
    name: str,
    why: str,
) -> None:
    choice = choose(TransportConfig.model_validate(wanted), _ranks(local_size), num_gpus, obstacle)
    assert (choice.name, choice.why) == (name, why)
    assert (choice.transport == "zeromq") == (choice.backend is None)
    assert (choice.transport == "hybrid") == (wanted.get("kind") == "hybrid")


@pytest.mark.parametrize(
    ("wanted", "num_gpus", "obstacle", "message"),
    [
        ({"kind": "torchdist"}, 1, None, "transport.backend: 4 ranks here share 1 GPUs"),
        ({"backend": "nccl"}, 0, None, "transport.backend: 4 ranks here share 0 GPUs"),
        ({"kind": "torchdist"}, 0, "it is Monday", "transport.kind: torchdist .* it is Monday"),
        ({"kind": "hybrid"}, 0, "it is Monday", "transport.kind: hybrid .* because it is Monday"),
    ],
)
def test_what_cannot_be_had_is_refused(
    wanted: dict[str, object], num_gpus: int, obstacle: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(TransportConfig.model_validate(wanted), _ranks(), num_gpus, obstacle)
