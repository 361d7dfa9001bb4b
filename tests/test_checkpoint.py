"""Checkpoints: whole or not at all, and damage is noticed."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from p2p_dml import checkpoint
from p2p_dml.checkpoint import Checkpoint
from p2p_dml.errors import ConfigError, StorageError
from p2p_dml.types import Tensors

FLAT = torch.arange(10.0)
WHOLE = Checkpoint(
    peer=3,
    round=12,
    digest="ab12",
    version="0.1.0",
    outline='["map"]',
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


def test_saved_is_loaded(tmp_path: Path) -> None:
    assert checkpoint.save(tmp_path, WHOLE) == NAME
    loaded = checkpoint.load(tmp_path / NAME)
    assert replace(loaded, tensors={}) == replace(WHOLE, tensors={})
    assert loaded.tensors.keys() == WHOLE.tensors.keys()
    for name, x in WHOLE.tensors.items():
        assert loaded.tensors[name].dtype == x.dtype
        assert torch.equal(loaded.tensors[name], x)


def test_tensors_that_share_memory_are_saved_one_by_one(tmp_path: Path) -> None:
    shared = {"strategy/y": FLAT, "strategy/g": FLAT, "strategy/part": FLAT[2:5]}
    path = tmp_path / checkpoint.save(tmp_path, replace(WHOLE, tensors=shared))
    loaded = checkpoint.load(path).tensors
    assert all(torch.equal(loaded[name], x) for name, x in shared.items())


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
    save_file({"w": torch.zeros(2)}, tmp_path / "own.safetensors", metadata)
    with pytest.raises(ConfigError, match="not a checkpoint of this runtime"):
        checkpoint.load(tmp_path / "own.safetensors")


@pytest.mark.parametrize("name", ["absent.safetensors", "."])
def test_no_file_at_all(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="not a checkpoint of this runtime"):
        checkpoint.load(tmp_path / name)


def test_equal_checkpoints_are_equal_files(tmp_path: Path) -> None:
    """Also of another process, where safetensors would put several entries in another order."""
    content = (tmp_path / checkpoint.save(tmp_path, WHOLE)).read_bytes()
    text = "import sys; from pathlib import Path; from p2p_dml import checkpoint as c\n"
    text += "c.save(Path(sys.argv[2]), c.load(Path(sys.argv[1])))"
    (tmp_path / "other").mkdir()
    arguments = [sys.executable, "-c", text, str(tmp_path / NAME), str(tmp_path / "other")]
    subprocess.run(arguments, check=True)
    assert (tmp_path / "other" / NAME).read_bytes() == content


def _places(path: Path) -> list[int]:
    """Some places of a file: of its header's length, its header, and each kind of tensor."""
    size = path.stat().st_size
    return [0, 9, 60, *range(size // 2, size, 3), size - 1]


def test_whatever_byte_is_damaged_it_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / checkpoint.save(tmp_path, WHOLE)
    content = path.read_bytes()
    for place in _places(path):
        damaged = bytearray(content)
        damaged[place] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(ConfigError, match="not a checkpoint of this runtime"):
            checkpoint.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"peer": 4},
        {"round": 13},
        {"digest": "ab13"},
        {"outline": '"int"'},
        {"tensors": {**WHOLE.tensors, "model/b": FLAT[6:].view(2, 2)}},
        {"tensors": {**WHOLE.tensors, "model/b": FLAT[6:].view(torch.int32)}},
        {"tensors": {**WHOLE.tensors, "more": torch.ones(1)}},
    ],
)
def test_the_checksum_is_over_everything(tmp_path: Path, changes: dict[str, object]) -> None:
    def facts(each: Checkpoint) -> dict[str, object]:
        with safe_open(tmp_path / checkpoint.save(tmp_path, each), framework="pt") as file:
            found: dict[str, object] = json.loads(file.metadata()["checkpoint"])
        return found

    other: Checkpoint = replace(WHOLE, **changes)  # type: ignore[arg-type]
    assert facts(other)["checksum"] != facts(WHOLE)["checksum"]


def test_files_without_a_checksum_are_read(tmp_path: Path) -> None:
    metadata = {"peer": "3", "round": "12", "digest": "ab12", "version": "0.1.0"}
    save_file({"model/w": FLAT}, tmp_path / "old.safetensors", metadata)
    loaded = checkpoint.load(tmp_path / "old.safetensors")
    assert (loaded.peer, loaded.round, loaded.digest, loaded.outline) == (3, 12, "ab12", None)
    assert torch.equal(loaded.tensors["model/w"], FLAT)


def test_rounds_of_a_peer_newest_first(tmp_path: Path) -> None:
    for round in (2, 1_000_000, 10):
        checkpoint.save(tmp_path, replace(WHOLE, round=round))
    folder = (tmp_path / NAME).parent
    for stray in ("round-000003.part", "round-x.safetensors", "notes.txt"):
        (folder / stray).touch()
    assert checkpoint.saved_rounds(tmp_path, 3) == [1_000_000, 10, 2]
    assert checkpoint.saved_rounds(tmp_path, 4) == []


# ---- as bytes, for a peer that comes in ----------------------------------------------------------


def test_bytes_hold_what_a_file_holds() -> None:
    found = checkpoint.decode(checkpoint.encode(WHOLE))
    assert replace(found, tensors={}) == replace(WHOLE, tensors={})
    for name, x in WHOLE.tensors.items():
        assert torch.equal(found.tensors[name], x)


def test_bytes_are_those_of_the_file(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, WHOLE)
    assert (tmp_path / NAME).read_bytes() == checkpoint.encode(WHOLE)


GOOD = checkpoint.encode(WHOLE)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff" * 8,
        GOOD[:7],
        GOOD[:-1],
        GOOD + b"x",
        GOOD.replace(b"ab12", b"ab13"),
        GOOD[:-4] + b"\x01\x02\x03\x04",
        (2).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"null",
        (100_000).to_bytes(8, "little") + b"[" * 100_000,
    ],
    ids=lambda data: f"{len(data)} bytes, {data[8:14]!r}",
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(ConfigError, match="not a checkpoint of this runtime"):
        checkpoint.decode(data)


def test_the_newest_whole_one_of_a_run_counts(tmp_path: Path) -> None:
    for round_ in (10, 20, 30, 40):
        checkpoint.save(tmp_path, replace(WHOLE, round=round_))
    checkpoint.save(tmp_path, replace(WHOLE, round=50, digest="of another run"))
    torn = tmp_path / checkpoint.checkpoint_file(3, 40)
    torn.write_bytes(torn.read_bytes()[:100])
    found = checkpoint.newest(tmp_path, 3, {"ab12", "of no checkpoint"})
    assert found is not None
    assert found.round == 30
    assert checkpoint.newest(tmp_path, 4, {"ab12"}) is None


def test_whatever_fails_no_half_of_a_file_stays(tmp_path: Path) -> None:
    def starve(tensors: Tensors, path: Path, metadata: dict[str, str]) -> None:
        path.write_bytes(b"half")
        raise MemoryError

    with pytest.raises(MemoryError):
        checkpoint.save(tmp_path, WHOLE, starve)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
