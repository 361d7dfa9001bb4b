"""Data laid out once for all processes of a machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from p2p_dml import config
from p2p_dml.assemble import load_data
from p2p_dml.errors import StorageError
from p2p_dml.launchers.scratch import laid_out, lay_out
from p2p_dml.launchers.temporary import temporary_folder

RUN = {"peers": 3, "rounds": 1, "strategy": "dpsgd", "links": "ring"}


def test_every_peer_finds_the_set_and_its_own_shard(tmp_path: Path) -> None:
    run = config.parse(RUN, Path())
    dataset, shards = load_data(run)
    assert dataset is not None
    lay_out(dataset, shards, tmp_path)
    for peer, shard in shards.items():
        parts = laid_out(run, tmp_path, peer)
        assert parts.dataset is not None
        assert np.array_equal(parts.dataset.train_x, dataset.train_x)
        assert list(parts.shards) == [peer]
        assert np.array_equal(parts.shards[peer], shard)


def test_a_training_of_ones_own_has_nothing_to_lay_out(tmp_path: Path) -> None:
    lay_out(None, {}, tmp_path)
    assert not any(tmp_path.iterdir())
    parts = laid_out(config.parse(RUN, Path()), tmp_path, 0)
    assert (parts.dataset, parts.shards) == (None, {})


def test_the_folder_is_gone_at_the_end_whatever_happens() -> None:
    with pytest.raises(KeyError), temporary_folder() as folder:
        (folder / "file").write_text("x")
        raise KeyError
    assert not folder.exists()


def test_an_error_of_the_run_is_not_one_of_the_folder() -> None:
    with pytest.raises(ConnectionResetError), temporary_folder() as folder:
        raise ConnectionResetError
    assert not folder.exists()


def _fail(*arguments: object, **more: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("where", "what"),
    [(tempfile, "mkdtemp"), (Path, "open"), (shutil, "rmtree")],
)
def test_a_folder_that_cannot_be_made_or_removed_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, where: object, what: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda *_: False)  # to /dev/shm, where others' folders are
    with (
        monkeypatch.context() as patch,
        pytest.raises(StorageError, match=r"cannot use a temporary folder: .*No space left"),
    ):
        patch.setattr(where, what, _fail)
        with temporary_folder():
            pass
    assert any(tmp_path.iterdir()) is (what == "rmtree")


def test_what_a_killed_process_left_goes_with_the_next_folder_and_nothing_else() -> None:
    program = """if True:
        import os, signal
        from p2p_dml.launchers.temporary import temporary_folder
        with temporary_folder() as folder:
            (folder / "data").mkdir()
            print(folder, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
    """
    with temporary_folder() as kept:
        killed = subprocess.run(
            [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=False
        )
        left = Path(killed.stdout.strip())
        assert (left / "data").is_dir()
        assert kept.is_dir()  # though another one was made meanwhile
        with temporary_folder() as folder:
            assert folder.is_dir()
            assert kept.is_dir()
            assert not left.exists()
