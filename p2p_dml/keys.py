"""Who a peer is: a key pair of CURVE each, in a folder that launchers or a person hand out.

`peers.toml` holds everybody's public key and may be read by all; `peer-003.key` holds the secret
key of peer 3, in mode 0600, and goes to that peer's host only. Keys are text in Z85 (40
characters; ZeroMQ RFC 32). No secret appears in an error, a log or a `repr`.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

import tomli_w
import zmq

from p2p_dml.errors import ConfigError, StorageError
from p2p_dml.tables import read_toml
from p2p_dml.types import PeerId

PUBLIC = "peers.toml"
"""The file of all public keys."""

DIRECTORY = "directory.key"
"""The file with the secret key of a directory (`p2p-dml directory`)."""

_PRIVATE = 0o600
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_KEY_CHARACTERS = 40


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KeyPair:
    """A peer's own keys, Z85."""

    public: str
    secret: str = field(repr=False)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What a peer needs to know: all peers' public keys, a directory's, and its own pair."""

    public: Mapping[PeerId, str]
    own: KeyPair
    directory: str = ""


def secret_file(peer: PeerId) -> str:
    """Name of the file with the secret key of `peer`."""
    return f"peer-{peer:03d}.key"


def new_pair() -> KeyPair:
    """A key pair that nobody has seen. ConfigError if this libzmq has no encryption."""
    if not zmq.has("curve"):
        raise ConfigError(
            "this libzmq was built without CURVE, so it has no keys; install pyzmq from its wheels"
        )
    public, secret = zmq.curve_keypair()
    return KeyPair(public=public.decode(), secret=secret.decode())


def create(folder: Path, peers: int) -> None:
    """Make a key pair for each of `peers` peers, in `folder`, which is made if need be.

    Raises ConfigError if keys are there already, StorageError if they cannot be written.
    """
    with _storage(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if found := sorted(path.name for path in (*folder.glob("*.key"), *folder.glob(PUBLIC))):
            raise ConfigError(
                f"{folder}: there are keys already ({', '.join(found[:3])}); choose another "
                "folder, or remove them (then every peer needs the new ones)"
            )
        names = {str(peer): secret_file(peer) for peer in range(peers)}
        public = {peer: _write_pair(folder / name) for peer, name in names.items()}
        directory = _write_pair(folder / DIRECTORY)
        _write(folder / PUBLIC, tomli_w.dumps({"directory": directory, "public": public}), 0o644)


def _write_pair(path: Path) -> str:
    """Make a pair and write its secret; returns the public key."""
    pair = new_pair()
    _write(path, f"{pair.secret}\n", _PRIVATE)
    return pair.public


def _write(path: Path, text: str, mode: int) -> None:
    """Write a file that was not there before; nobody may read it who may not in the end."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w") as file:
        file.write(text)


@contextmanager
def _storage(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"cannot write keys to {folder}: {error.strerror}") from error


def read(folder: Path, me: PeerId, peers: int) -> Keys:
    """The keys that peer `me` of a run of `peers` needs: `peers.toml`, and its own secret.

    Raises ConfigError if they are missing, are not those of the run, or others may read the secret.
    """
    public = _read_all(folder, peers)
    own = _read_own(folder / secret_file(me), f"peer {me}", public[me])
    return Keys(public=public, own=own, directory=_read_directory(folder))


def read_for_directory(folder: Path, peers: int) -> Keys:
    """The keys that the directory of a run of `peers` needs: as `read`, with its own secret."""
    public, directory = _read_all(folder, peers), _read_directory(folder)
    own = _read_own(folder / DIRECTORY, "the directory", directory)
    return Keys(public=public, own=own, directory=directory)


def _read_all(folder: Path, peers: int) -> dict[PeerId, str]:
    public = read_public(folder)
    if sorted(public) != list(range(peers)):
        raise ConfigError(
            f"{folder / PUBLIC}: expected a public key for each of the {peers} peers of the run, "
            f"found {len(public)} ({', '.join(map(str, sorted(public)[:8]))}); "
            f"make new ones with: {how_to_make(folder, peers)}"
        )
    return public


def _read_directory(folder: Path) -> str:
    key = read_toml(folder / PUBLIC, "public keys").get("directory", "")
    if key and not _is_key(key):
        raise ConfigError(
            f"{folder / PUBLIC}: directory: expected a key of {_KEY_CHARACTERS} characters (Z85), "
            f"found {key!r}"
        )
    return str(key)


def how_to_make(folder: Path, peers: int) -> str:
    """The command that makes the keys of a run."""
    return f"p2p-dml keys new {folder} --peers {peers}"


def read_public(folder: Path) -> dict[PeerId, str]:
    """Everybody's public key. Raises ConfigError naming what is wrong with the file."""
    path = folder / PUBLIC
    table = read_toml(path, "public keys").get("public")
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: expected a table [public] with a line for each peer")
    for peer, key in table.items():
        if not peer.isdecimal() or not _is_key(key):
            raise ConfigError(
                f"{path}: public.{peer}: expected a peer id and a key of {_KEY_CHARACTERS} "
                f"characters (Z85), found {key!r}"
            )
    if len(set(table.values())) < len(table):
        raise ConfigError(f"{path}: two peers have the same key; each needs a pair of its own")
    return {int(peer): key for peer, key in table.items()}


def _is_key(text: object) -> bool:
    if not isinstance(text, str) or len(text) != _KEY_CHARACTERS:
        return False
    try:
        zmq.curve_public(text.encode())
    except (zmq.ZMQError, ValueError):
        return False
    return True


def _read_own(path: Path, who: str, public: str) -> KeyPair:
    try:
        with path.open(encoding="ascii") as file:
            mode = os.fstat(file.fileno()).st_mode
            secret = file.read(4096).strip()
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot read the secret key of {who}: {error.strerror}; "
            "copy it from where `p2p-dml keys new` wrote it"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a secret key") from error
    if mode & _OTHERS:
        raise ConfigError(
            f"{path}: others may read this secret key (mode {stat.S_IMODE(mode):04o}); "
            f"allow its owner only: chmod 600 {path}"
        )
    if not _is_key(secret) or zmq.curve_public(secret.encode()).decode() != public:
        raise ConfigError(f"{path}: not the secret of {who}'s public key in {PUBLIC}")
    return KeyPair(public=public, secret=secret)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A secret key that lies in a folder."""

    path: Path
    mode: int

    @property
    def is_private(self) -> bool:
        """Whether nobody but its owner may touch it."""
        return not self.mode & _OTHERS


def held(folder: Path) -> list[Held]:
    """The secret keys in `folder`, by name; they are not read."""
    return [
        Held(path=path, mode=stat.S_IMODE(path.stat().st_mode))
        for path in sorted(folder.glob("peer-*.key"))
    ]
