"""Checkpoints: whole or not at all, and a state of any nesting by path."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from torch import Tensor

from p2p_dml import checkpoint
from p2p_dml.checkpoint import Checkpoint, leaves
from p2p_dml.errors import ConfigError, StorageError

FLAT = torch.arange(10.0)
WHOLE = Checkpoint(
    peer=3,
    round=12,
    digest="ab12",
    version="0.1.0",
    tensors={
        "model/w": FLAT[:6].view(2, 3),  # views of one vector, as a learner keeps them
        "model/b": FLAT[6:],
        "model/half": torch.ones(3, dtype=torch.bfloat16),
        "strategy/mask": torch.tensor([True, False]),
        "strategy/round": torch.tensor(5),
        "strategy/none": torch.zeros(0, 2),
    },
)
NAME = "checkpoints/peer-003/round-000012.safetensors"


@dataclass
class Inner:
    """A part of a strategy's state."""

    y: dict[str, Tensor]
    degree: float


@dataclass(frozen=True)
class State:
    """A strategy's state as strategies keep it."""

    inner: Inner
    count: int
    done: bool
    nothing: None = None


def test_saved_is_loaded(tmp_path: Path) -> None:
    assert checkpoint.save(tmp_path, WHOLE) == NAME
    loaded = checkpoint.load(tmp_path / NAME)
    assert replace(loaded, tensors={}) == replace(WHOLE, tensors={})
    assert loaded.tensors.keys() == WHOLE.tensors.keys()
    for name, x in WHOLE.tensors.items():
        assert loaded.tensors[name].dtype == x.dtype
        assert torch.equal(loaded.tensors[name], x)


def test_only_the_checkpoint_is_left_in_its_folder(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, WHOLE)
    checkpoint.save(tmp_path, WHOLE)
    assert [each.name for each in (tmp_path / NAME).parent.iterdir()] == [Path(NAME).name]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, WHOLE)
    # A folder stands where the new file would be written, as good as a full disk.
    (tmp_path / NAME).with_suffix(".part").mkdir()
    later = replace(WHOLE, tensors={"model/w": torch.zeros(1)})
    with pytest.raises(StorageError, match=f"peer 3, round 12: cannot write .*{NAME}"):
        checkpoint.save(tmp_path, later)
    assert checkpoint.load(tmp_path / NAME).tensors.keys() == WHOLE.tensors.keys()


def test_a_failed_replacement_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint.save(tmp_path, WHOLE)

    def fail(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("p2p_dml.checkpoint.os.replace", fail)
    with pytest.raises(StorageError, match="No space left on device"):
        checkpoint.save(tmp_path, replace(WHOLE, digest="new"))
    assert [each.name for each in (tmp_path / NAME).parent.iterdir()] == [Path(NAME).name]
    assert checkpoint.load(tmp_path / NAME).digest == "ab12"


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(StorageError, match="peer 3, round 12: cannot write"):
        checkpoint.save(tmp_path, WHOLE)


@pytest.mark.parametrize("kept", [0, 4, 100, -1])
def test_a_torn_file_is_refused(tmp_path: Path, kept: int) -> None:
    path = tmp_path / checkpoint.save(tmp_path, WHOLE)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ConfigError, match=f"{NAME}: not a checkpoint of this runtime: "):
        checkpoint.load(path)


@pytest.mark.parametrize("metadata", [None, {}, {"peer": "3"}, {"peer": "x", "round": "1"}])
def test_a_file_of_another_kind_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(2)}, tmp_path / "own.safetensors", metadata)
    with pytest.raises(ConfigError, match="not a checkpoint of this runtime"):
        checkpoint.load(tmp_path / "own.safetensors")


@pytest.mark.parametrize("name", ["absent.safetensors", "."])
def test_no_file_at_all(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="not a checkpoint of this runtime"):
        checkpoint.load(tmp_path / name)


def test_leaves_of_a_nested_state() -> None:
    state = State(Inner({"w": FLAT.view(2, 5).T, "b": FLAT[:1]}, 2.5), 7, True)
    found = leaves(state, "strategy")
    assert list(found) == [
        "strategy/inner/y/w",
        "strategy/inner/y/b",
        "strategy/inner/degree",
        "strategy/count",
        "strategy/done",
    ]
    assert found["strategy/inner/y/w"].is_contiguous()
    assert torch.equal(found["strategy/inner/y/w"], FLAT.view(2, 5).T)


@pytest.mark.parametrize(
    ("number", "dtype"), [(0.1, torch.float64), (2**40, torch.int64), (True, torch.bool)]
)
def test_numbers_keep_their_value(number: float, dtype: torch.dtype) -> None:
    (leaf,) = leaves(number, "x").values()
    assert (leaf.shape, leaf.dtype, leaf.item()) == ((), dtype, number)


def test_leaves_of_mappings_with_other_keys_and_of_nothing() -> None:
    assert list(leaves(MappingProxyType({3: FLAT, "a": {}}), "s")) == ["s/3"]
    assert leaves(None, "s") == {}


def test_leaves_are_no_part_of_a_graph() -> None:
    assert not leaves(torch.ones(2, requires_grad=True), "x")["x"].requires_grad


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": "text"}}, "s/a/b: a state cannot hold a str"),
        ([FLAT], "s: a state cannot hold a list"),
        (Inner({"w": (FLAT,)}, 1.0), "s/y/w: a state cannot hold a tuple"),  # type: ignore[dict-item]
    ],
)
def test_what_a_state_cannot_hold_is_named(state: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        leaves(state, "s")


def test_leaves_of_a_state_can_be_saved(tmp_path: Path) -> None:
    state = leaves(State(Inner({"w": FLAT.view(2, 5).T}, 2.5), 7, True), "strategy")
    path = tmp_path / checkpoint.save(tmp_path, replace(WHOLE, tensors=state))
    loaded = checkpoint.load(path).tensors
    assert loaded["strategy/inner/degree"].item() == 2.5
    assert torch.equal(loaded["strategy/inner/y/w"], FLAT.view(2, 5).T)
