"""Download of the data sets from their public addresses, each file against its checksum."""

from __future__ import annotations

import hashlib
import http.client
import os
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol, final

from p2p_dml import tables
from p2p_dml.data import _places
from p2p_dml.errors import ConfigError, StorageError

_TIMEOUT_S = 30.0
_CHUNK_BYTES = 1 << 20


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """A file as published: `path` below the root, `digest` as `sha256:…` or `md5:…`."""

    path: str
    num_bytes: int
    digest: str


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteSet:
    """Where a set comes from: `base_url` + file name, or members of `base_url` + `archive`."""

    description: str
    base_url: str
    files: tuple[RemoteFile, ...]
    archive: RemoteFile | None = None

    @property
    def num_bytes(self) -> int:
        """Bytes to download."""
        files = (self.archive,) if self.archive else self.files
        return sum(file.num_bytes for file in files)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Available:
    """A line of `p2p-dml data list`; `place` is None while the set is not on this machine."""

    name: str
    place: str | None
    num_bytes: int
    description: str


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


def _files(pattern: str, rows: str) -> tuple[RemoteFile, ...]:
    """One file per line of `rows`: what fills the `{}` of `pattern`, bytes, digest."""
    return tuple(
        RemoteFile(path=pattern.format(name), num_bytes=int(size), digest=digest)
        for name, size, digest in (row.split() for row in rows.strip().splitlines())
    )


SETS: Mapping[str, RemoteSet] = {
    "mnist": RemoteSet(
        description="handwritten digits, 28 x 28 grey, 60,000 + 10,000, 10 classes",
        base_url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        files=_files(
            "MNIST/raw/{}-ubyte.gz",
            """
train-images-idx3 9912422 sha256:440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609
train-labels-idx1 28881 sha256:3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c
t10k-images-idx3 1648877 sha256:8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6
t10k-labels-idx1 4542 sha256:f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6
""",
        ),
    ),
    "fashion_mnist": RemoteSet(
        description="pictures of clothes, 28 x 28 grey, 60,000 + 10,000, 10 classes",
        base_url="http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        files=_files(
            "FashionMNIST/raw/{}-ubyte.gz",
            """
train-images-idx3 26421880 md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d
train-labels-idx1 29515 md5:25c81989df183df01b3e8a0aad5dffbe
t10k-images-idx3 4422102 md5:bef4ecab320f06d8554ea6380940ec79
t10k-labels-idx1 5148 md5:bb300cfdad3c16e7a12a480ee83cd310
""",
        ),
    ),
    "cifar10": RemoteSet(
        description="colour photographs, 32 x 32, 50,000 + 10,000, 10 classes",
        base_url="https://www.cs.toronto.edu/~kriz/",
        archive=RemoteFile(
            path="cifar-10-python.tar.gz",
            num_bytes=170498071,
            digest="md5:c58f30108f718f92721af3b95e74349a",
        ),
        files=_files(
            "cifar-10-batches-py/{}",
            """
data_batch_1 31035704 sha256:54636561a3ce25bd3e19253c6b0d8538147b0ae398331ac4a2d86c6d987368cd
data_batch_2 31035320 sha256:766b2cef9fbc745cf056b3152224f7cf77163b330ea9a15f9392beb8b89bc5a8
data_batch_3 31035999 sha256:0f00d98ebfb30b3ec0ad19f9756dc2630b89003e10525f5e148445e82aa6a1f9
data_batch_4 31035696 sha256:3f7bb240661948b8f4d53e36ec720d8306f5668bd0071dcb4e6c947f78e9682b
data_batch_5 31035623 sha256:d91802434d8376bbaeeadf58a737e3a1b12ac839077e931237e0dcd43adcb154
test_batch 31035526 sha256:f53d8d457504f7cff4ea9e021afcf0e0ad8e24a91f3fc42091b8adef61157831
""",
        ),
    ),
    "shakespeare": RemoteSet(
        description="40,000 lines of Shakespeare by speaker, 1,115,394 characters, 65 classes",
        base_url="https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/",
        files=(
            RemoteFile(
                path="tinyshakespeare/input.txt",
                num_bytes=1115394,
                digest="sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            ),
        ),
    ),
}


def available(sets: Mapping[str, RemoteSet] = SETS) -> list[Available]:
    """Every built-in data set, whether it is on this machine and where."""
    rows = [
        Available(
            name="digits",
            place="scikit-learn's wheel",
            num_bytes=0,
            description="handwritten digits, 8 x 8 grey, 1,437 + 360, 10 classes",
        )
    ]
    for name, remote in sets.items():
        root = _places.holder(file.path.removesuffix(".gz") for file in remote.files)
        rows.append(
            Available(
                name=name,
                place=str(root) if root else None,
                num_bytes=remote.num_bytes,
                description=remote.description,
            )
        )
    return rows


def fetch(name: str, root: Path | None = None, sets: Mapping[str, RemoteSet] = SETS) -> list[Path]:
    """Put the files of a data set below `root` and return those that were written.

    A file that is there with the right checksum is kept, any other is replaced. `root` is the
    first place searched if None. Raises ConfigError without internet or for a checksum that does
    not fit, StorageError if `root` cannot be written.
    """
    if name == "digits":
        return []
    remote = tables.choose(sets, name, "data fetch")
    into = root or _places.roots()[0]
    absent = [file for file in remote.files if not _is_good(into / file.path, file)]
    if absent and remote.archive:
        _fetch_archive(remote.base_url, remote.archive, absent, into)
    elif absent:
        for file in absent:
            _fetch_file(remote.base_url, file, into)
    return [into / file.path for file in absent]


def _fetch_file(base_url: str, file: RemoteFile, root: Path) -> None:
    with _new_file(root / file.path) as target:
        _download(base_url + Path(file.path).name, file, target)


def _fetch_archive(
    base_url: str, archive: RemoteFile, members: list[RemoteFile], root: Path
) -> None:
    """Download an archive to a nameless file and take `members` out of it, nothing else."""
    with _storage(root), tempfile.TemporaryFile() as packed:
        _download(base_url + archive.path, archive, packed)
        packed.seek(0)
        with tarfile.open(fileobj=packed, mode="r:gz") as tar:
            for member in members:
                _extract(tar, member, root)


def _extract(tar: tarfile.TarFile, member: RemoteFile, root: Path) -> None:
    # extractfile reads one member by name: no path, link or mode of the archive is used
    source = tar.extractfile(member.path) if member.path in tar.getnames() else None
    if source is None:
        raise ConfigError(f"data fetch: the archive has no file {member.path!r}")
    with _new_file(root / member.path) as target:
        _copy(_chunks(source), member, target, f"{member.path} in the archive")


def _download(url: str, file: RemoteFile, target: IO[bytes]) -> None:
    _copy(_remote_chunks(url, file), file, target, url)


def _chunks(source: _Readable) -> Iterator[bytes]:
    while chunk := source.read(_CHUNK_BYTES):
        yield chunk


def _remote_chunks(url: str, file: RemoteFile) -> Iterator[bytes]:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as source:
            yield from _chunks(source)
    except (OSError, http.client.HTTPException) as error:
        raise ConfigError(
            f"data fetch: cannot download {url} ({error}); on a machine without internet, copy "
            f"{file.path} from elsewhere below the folder that {_places.VARIABLE} names"
        ) from error


def _copy(chunks: Iterator[bytes], file: RemoteFile, target: IO[bytes], where: str) -> None:
    """Copy no more than the expected bytes and check them; ConfigError if they are not `file`."""
    algorithm, _, expected = file.digest.partition(":")
    digest, size = hashlib.new(algorithm, usedforsecurity=False), 0
    for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
        if size > file.num_bytes:
            break
        target.write(chunk)
    if size != file.num_bytes or digest.hexdigest() != expected:
        raise ConfigError(
            f"data fetch: {where} is not the published file: expected {file.num_bytes} bytes with "
            f"{algorithm} {expected}, got {size} bytes with {digest.hexdigest()}"
        )


@contextmanager
def _new_file(path: Path) -> Iterator[IO[bytes]]:
    """A temporary file beside `path` that takes its name once the block is done."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with _storage(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as target:
                yield target
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def _storage(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error}") from error


def _is_good(path: Path, file: RemoteFile) -> bool:
    """Whether `path` holds exactly the published file."""
    if not path.is_file() or path.stat().st_size != file.num_bytes:
        return False
    algorithm, _, expected = file.digest.partition(":")
    digest = hashlib.new(algorithm, path.read_bytes(), usedforsecurity=False)
    return digest.hexdigest() == expected
