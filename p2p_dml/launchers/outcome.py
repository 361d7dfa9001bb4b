"""How a run ended, for whoever started it."""

from __future__ import annotations

import signal
from dataclasses import dataclass, field
from pathlib import Path

from p2p_dml.errors import WORST_FIRST, ExitCode
from p2p_dml.graph import PeerId


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended: each peer's exit status, and what the failed ones said."""

    folder: Path
    exit_codes: dict[PeerId, int]
    errors: dict[PeerId, str] = field(default_factory=dict)

    @property
    def exit_code(self) -> ExitCode:
        """The worst peer's; a peer ended by a signal, or in a way of its own, has failed."""
        codes = {_known(code) for code in self.exit_codes.values()}
        return next(code for code in WORST_FIRST if code in codes)

    @property
    def verdict(self) -> str | None:
        """One message for the run: what ended the worst peer, and how many others failed.

        None if none failed.
        """
        fine = (ExitCode.DONE, ExitCode.STOPPED)
        failed = {peer: code for peer, code in self.exit_codes.items() if code not in fine}
        if not failed:
            return None
        # Of equals, the peer that ended first.
        worst = min(failed, key=lambda peer: WORST_FIRST.index(_known(failed[peer])))
        others = f"; {len(failed) - 1} more peers failed, see the report" if len(failed) > 1 else ""
        return (self.errors.get(worst) or _fate(worst, failed[worst])) + others


def _known(code: int) -> ExitCode:
    return ExitCode(code) if code in tuple(ExitCode) else ExitCode.FAILED


def _fate(peer: PeerId, code: int) -> str:
    """How a peer ended that left no message."""
    if code < 0:
        return f"peer {peer} was ended by signal {-code} ({signal.strsignal(-code)})"
    return f"peer {peer} ended with exit code {code}; see its log in the run folder"
