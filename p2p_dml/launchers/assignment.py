"""What a launcher hands the nursery for each peer that it forks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from p2p_dml.config import RunConfig
from p2p_dml.graph import PeerId


@dataclass(frozen=True, slots=True)
class Assignment:
    """What the local launcher hands a forked peer: plain text and numbers, so it can be JSON.

    `shared` is the launcher's folder with data set, shards and sockets; relative paths of the run
    file begin at `folder`. `starts`: the round that each peer of a resumed run goes on after.
    `listen`: where each peer listens, those of other hosts too; None: where the system likes.
    `again`: the peer was lost, and the others are past the beginning.
    """

    run: str
    shared: str
    folder: str
    me: PeerId
    starts: Sequence[int] | None = None
    listen: Sequence[str] | None = None
    again: bool = False


def assignment_of(
    config: RunConfig,
    run: Path,
    scratch: Path,
    *,
    starts: Mapping[PeerId, int] | None = None,
    listen: Sequence[str] | None = None,
) -> dict[str, Any]:
    """An `Assignment` as JSON, for everyone: all but `me`.

    `starts`: the round that each peer of a resumed run goes on after.
    """
    home = str(config.folder.resolve())
    rounds = [starts[peer] for peer in range(config.peers)] if starts is not None else None
    everyone = Assignment(
        str(run.resolve()), str(scratch), home, me=0, starts=rounds, listen=listen
    )
    own = {"me", "again"}
    return {key: value for key, value in asdict(everyone).items() if key not in own}
