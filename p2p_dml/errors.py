"""Every error a user can meet, and the exit code of the process that meets it.

    P2PError                    1   base; never raised itself
    ├── ConfigError             2   the run file, a topology file, data or model cannot be used
    ├── StartupError            3   a neighbour is missing, an address is taken, runs do not match
    ├── IsolationError          4   too few live neighbours for too long
    ├── TrainingError           1   the local training went wrong (NaN loss, user function raised)
    ├── StorageError            1   the run folder cannot be written
    ├── TransportError          6   a peer of a group that fails together was lost or out of step
    └── WireError               -   a message breaks the format; never leaves the transport

Exit code 0 is success and 5 a run stopped by a signal after its checkpoint. The launcher's exit
code is the worst peer's, in the order of `WORST_FIRST`.
"""

from __future__ import annotations

from enum import IntEnum
from typing import ClassVar


class ExitCode(IntEnum):
    """Exit codes of `p2p-dml` and of each peer; part of the public interface."""

    DONE = 0
    FAILED = 1
    CONFIG = 2
    STARTUP = 3
    ISOLATED = 4
    STOPPED = 5
    BROKEN = 6
    STUCK = 7


WORST_FIRST = (
    ExitCode.FAILED,
    ExitCode.CONFIG,
    ExitCode.STARTUP,
    ExitCode.ISOLATED,
    ExitCode.BROKEN,
    ExitCode.STUCK,
    ExitCode.STOPPED,
    ExitCode.DONE,
)


class P2PError(Exception):
    """Base of the tree above; `exit_code` is what a process that ends with it returns."""

    exit_code: ClassVar[ExitCode] = ExitCode.FAILED


class ConfigError(P2PError):
    """A run file, topology file, data set or model cannot be used as given."""

    exit_code = ExitCode.CONFIG


class StartupError(P2PError):
    """The peers could not come together: someone is missing, foreign, or has our address."""

    exit_code = ExitCode.STARTUP


class IsolationError(P2PError):
    """A peer had fewer live neighbours than `min_neighbours` for too many rounds."""

    exit_code = ExitCode.ISOLATED


class TrainingError(P2PError):
    """Training failed: a loss is not finite, numbers are too large, or a user function raised."""


class StorageError(P2PError):
    """The run folder cannot be written (disk full, read-only, permission)."""


class TransportError(P2PError):
    """A group of peers that fails together is broken; `peer` is whom this peer blames, if any.

    `is_late`: it did not answer in time, and may only be slow.
    """

    exit_code = ExitCode.BROKEN

    def __init__(self, why: str, peer: int | None = None, *, is_late: bool = False) -> None:
        super().__init__(why)
        self.peer = peer
        self.is_late = is_late


class WireError(P2PError):
    """Bytes from the network are not a message of this run; the message is dropped."""


def exit_code_of(error: BaseException) -> ExitCode:
    """What a process that ends with `error` returns; anything outside the tree is a bug."""
    return error.exit_code if isinstance(error, P2PError) else ExitCode.FAILED
