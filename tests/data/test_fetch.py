"""Downloads from a server on loopback, and what happens when they go wrong."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from p2p_dml.data import DATASETS, _places, cifar, idx, text
from p2p_dml.data.fetch import SETS, RemoteFile, RemoteSet, available, fetch
from p2p_dml.errors import ConfigError, StorageError

CONTENT = {"one.bin": b"first file" * 1000, "two.bin": b"second"}


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without writing to stderr."""

    def log_message(self, format: str, *args: object) -> None:
        return None


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The folder that the server shows."""
    folder = tmp_path / "published"
    folder.mkdir()
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def base_url(published: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(published))) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


def remote_file(path: str, content: bytes, algorithm: str = "sha256") -> RemoteFile:
    digest = hashlib.new(algorithm, content, usedforsecurity=False).hexdigest()
    return RemoteFile(path=path, num_bytes=len(content), digest=f"{algorithm}:{digest}")


def plain_set(base_url: str) -> dict[str, RemoteSet]:
    files = tuple(remote_file(f"toy/raw/{name}", content) for name, content in CONTENT.items())
    return {"toy": RemoteSet(description="a toy", base_url=base_url, files=files)}


def tar_set(base_url: str, folder: Path, members: dict[str, bytes]) -> dict[str, RemoteSet]:
    """A set inside an archive that holds `members`; its files are those of CONTENT."""
    with tarfile.open(folder / "toy.tar.gz", "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    packed = (folder / "toy.tar.gz").read_bytes()
    files = tuple(remote_file(f"toy/{name}", content) for name, content in CONTENT.items())
    archive = remote_file("toy.tar.gz", packed, "md5")
    return {"toy": RemoteSet(description="", base_url=base_url, files=files, archive=archive)}


def below(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def test_fetches_what_is_absent_or_damaged(tmp_path: Path, base_url: str) -> None:
    root, sets = tmp_path / "root", plain_set(base_url)
    one, two = root / "toy/raw/one.bin", root / "toy/raw/two.bin"
    assert fetch("toy", root, sets) == [one, two]
    assert below(root) == {f"toy/raw/{name}": content for name, content in CONTENT.items()}
    assert fetch("toy", root, sets) == []
    two.write_bytes(b"Second")
    assert fetch("toy", root, sets) == [two]
    assert two.read_bytes() == b"second"


def test_default_root_is_the_first_place(
    tmp_path: Path, base_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(_places.VARIABLE, str(tmp_path / "named"))
    assert len(fetch("toy", sets=plain_set(base_url))) == 2
    row = next(row for row in available(plain_set(base_url)) if row.name == "toy")
    assert (row.place, row.num_bytes) == (str(tmp_path / "named"), 10_006)


@pytest.mark.parametrize("changed", [b"Second", b"second, and more", b""])
def test_wrong_content_leaves_nothing(
    tmp_path: Path, published: Path, base_url: str, changed: bytes
) -> None:
    (published / "two.bin").write_bytes(changed)
    with pytest.raises(ConfigError, match=r"two\.bin is not the published file: expected 6 bytes"):
        fetch("toy", tmp_path / "root", plain_set(base_url))
    assert list(below(tmp_path / "root")) == ["toy/raw/one.bin"]


def test_takes_only_its_files_out_of_an_archive(
    tmp_path: Path, published: Path, base_url: str
) -> None:
    members = {f"toy/{name}": content for name, content in CONTENT.items()}
    sets = tar_set(base_url, published, members | {"../evil": b"x", "toy/more": b"x"})
    assert len(fetch("toy", tmp_path / "root", sets)) == 2
    assert below(tmp_path / "root") == members
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("members", "message"),
    [({"toy/one.bin": b"other"}, "in the archive is not the published"), ({}, "has no file")],
)
def test_archive_without_the_right_files(
    tmp_path: Path, published: Path, base_url: str, members: dict[str, bytes], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        fetch("toy", tmp_path / "root", tar_set(base_url, published, members))
    assert below(tmp_path / "root") == {}


def test_file_that_is_not_there(tmp_path: Path, published: Path, base_url: str) -> None:
    (published / "two.bin").unlink()
    with pytest.raises(ConfigError, match=r"404.*copy toy/raw/two\.bin from elsewhere"):
        fetch("toy", tmp_path / "root", plain_set(base_url))


def test_no_internet(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"cannot download.*{_places.VARIABLE}"):
        fetch("toy", tmp_path, plain_set("http://127.0.0.1:1/"))
    assert below(tmp_path) == {}


def test_root_that_cannot_be_written(tmp_path: Path, base_url: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        fetch("toy", tmp_path / "file", plain_set(base_url))


def test_names() -> None:
    assert fetch("digits") == []
    with pytest.raises(ConfigError, match="did you mean 'mnist'"):
        fetch("mnits")
    assert [row.name for row in available()] == list(DATASETS)


def test_the_table_has_the_files_that_the_readers_want() -> None:
    wanted = {
        "mnist": [f"MNIST/raw/{file}.gz" for file in idx.FILES],
        "fashion_mnist": [f"FashionMNIST/raw/{file}.gz" for file in idx.FILES],
        "cifar10": [f"{cifar.FOLDER}/{file}" for file in (*cifar.TRAIN_FILES, cifar.TEST_FILE)],
        "shakespeare": [text.FILE],
    }
    assert {name: [f.path for f in remote.files] for name, remote in SETS.items()} == wanted


@pytest.mark.parametrize("name", ["mnist", "shakespeare"])
def test_checksums_are_those_of_the_real_files(name: str) -> None:
    """Files with the published checksums are kept: nothing is downloaded."""
    root = _places.holder(file.path for file in SETS[name].files)
    if root is None or not os.access(root, os.R_OK):
        pytest.skip(f"{name} is not on this machine")
    assert fetch(name, root) == []
