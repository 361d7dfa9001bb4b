"""All peers as processes of this machine: `p2p-dml run`."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from p2p_dml.config import RunConfig
from p2p_dml.launchers.crew import hired
from p2p_dml.launchers.outcome import Outcome
from p2p_dml.launchers.temporary import temporary_folder

if TYPE_CHECKING:
    from p2p_dml.launchers.resuming import Past


def run(
    config: RunConfig,
    out: Path | None,
    watch: Callable[[Path, float], Callable[[], None]],
    past: Past | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Outcome:
    """Run all peers to their end; `watch(folder, started)` gives a function called meanwhile.

    `past`: the run to go on with, in its folder; `config` is its own then. `say` is told where it
    does. The first SIGINT or SIGTERM lets peers finish a round, the same for all, and save; the
    second kills them. Raises ConfigError before anything is written, StorageError if the folder
    cannot be, StartupError if peers do not come up.
    """
    started = time.time()
    with temporary_folder() as scratch, hired(config.threads) as crew:
        from p2p_dml.launchers.leading import lead  # imports torch, while the crew does

        return lead(crew, scratch, config, out, watch, past, say, started)
