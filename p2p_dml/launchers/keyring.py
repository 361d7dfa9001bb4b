"""Which keys a peer runs with: those that its launcher lends it, or those of the run file."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

from p2p_dml import keys
from p2p_dml.addresses import is_here
from p2p_dml.config import RunConfig
from p2p_dml.errors import ConfigError
from p2p_dml.keys import Keys
from p2p_dml.types import PeerId

LENT = "keys"
"""The folder with keys in that of a launcher: all public ones, the secrets of its own peers."""


def is_encrypted(config: RunConfig, addresses: Collection[str]) -> bool:
    """Whether a run at these addresses is encrypted, as `transport.encryption` has it."""
    wish = config.transport.encryption
    return wish == "curve" or (wish == "auto" and not all(map(is_here, addresses)))


def lend(config: RunConfig, scratch: Path) -> None:
    """Make keys for a run on this machine, if it wants them, that live as long as `scratch`."""
    if is_encrypted(config, ()):
        keys.create(scratch / LENT, config.peers)


def keys_of(
    config: RunConfig, me: PeerId, addresses: Collection[str], scratch: Path | None = None
) -> Keys | None:
    """The keys of peer `me`, lent in `scratch` or named by the run file; None: not encrypted.

    A run that others can read is told on standard error. Raises ConfigError if there are no keys,
    with the commands that make them, or if they cannot be used.
    """
    if not is_encrypted(config, addresses):
        if foreign := [address for address in addresses if not is_here(address)]:
            print(
                f"peer {me}: not encrypted, and open to whoever reaches {foreign[0]}: the run "
                'file says transport.encryption = "none"',
                file=sys.stderr,
            )
        return None
    lent = scratch / LENT if scratch else None
    folder = lent if lent and lent.is_dir() else config.folder / config.transport.keys
    if not folder.is_dir():
        raise ConfigError(_no_keys(folder, config, me))
    return keys.read(folder, me, config.peers)


def _no_keys(folder: Path, config: RunConfig, me: PeerId) -> str:
    secret = keys.secret_file(me)
    return (
        f"transport.keys: {folder}: there are no keys, and the run is encrypted because "
        f"{_reason(config)}. Make them once, on one machine:\n"
        f"  {keys.how_to_make(folder, config.peers)}\n"
        f"then copy {keys.PUBLIC} and {secret} to {folder} on the host of peer {me}, and so for "
        "the others. On a network that you trust with the models, "
        'transport.encryption = "none" does without'
    )


def _reason(config: RunConfig) -> str:
    if config.transport.encryption == "curve":
        return 'transport.encryption = "curve"'
    return "its addresses are not all on this machine"
