"""Whether the invariants of a soak that is over hold."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from p2p_dml import checkpoint
from p2p_dml.checkpoint import checkpoint_file, saved_rounds
from p2p_dml.errors import ConfigError, ExitCode
from p2p_dml.launchers.outcome import Outcome
from p2p_dml.launchers.soak import usage
from p2p_dml.launchers.soak.usage import TOLERANCE, Ledger, Life, life_of
from p2p_dml.launchers.soak.verdict import Findings
from p2p_dml.launchers.soak.watch import Watch, told
from p2p_dml.types import PeerId

KEPT = 0.9
"""The share of the best mean accuracy that must be there in the end."""


def endings(findings: Findings, outcome: Outcome, watch: Watch, *, is_early: bool) -> None:
    """That all peers ended when and as they were told to."""
    invariant = "no peer ends but by a fault"
    if is_early:
        findings.broken(invariant, f"the run ended before its time: {outcome.verdict}")
    for peer, code in outcome.exit_codes.items():
        if code not in (ExitCode.DONE, ExitCode.STOPPED):
            why = outcome.errors.get(peer, f"exit code {code}")
            findings.broken(invariant, told(peer, why))
    starts = sum(view.starts for view in watch.views.values())
    findings.note(invariant, f"{starts} processes for {len(watch.views)} peers")


def progress(findings: Findings, watch: Watch, bound_s: float) -> None:
    """What there was of rounds and events; what was broken has been said meanwhile."""
    views = watch.views.values()
    worst = max(view.worst_gap_s for view in views)
    findings.note(
        "no unfaulted peer is without progress",
        f"longest time between two rounds {worst:.2f} s, allowed {bound_s:g} s",
    )
    findings.note("rounds only go up", f"{sum(len(view.done) for view in views)} rounds")
    findings.note("event files parse", f"{watch.num_lines} lines")


def healing(findings: Findings, watch: Watch, since: float, until: float) -> None:
    """That everybody heard everybody they should some time after the last fault."""
    invariant = "who is back is heard"
    for peer, view in watch.views.items():
        late = [each for each in view.lonely if since < each.at < until]
        if late:
            missing = sorted(set().union(*(each.missing for each in late)))
            findings.broken(
                invariant,
                f"peer {peer} did not hear peers {missing} in {len(late)} rounds, the last of them "
                f"round {late[-1].round}",
            )
    lonely = sum(len(view.lonely) for view in watch.views.values())
    findings.note(invariant, f"rounds in which a peer did not hear some neighbour: {lonely}")


def leaks(findings: Findings, watch: Watch, ledger: Ledger, files: Sequence[int]) -> None:
    """That who was never killed holds in the end what it held after warm-up, and so do folders."""
    invariant, words = "nobody keeps more and more", []
    for peer, view in watch.views.items():
        levels = ledger.levels(view.life) if view.life and view.starts == 1 else None
        if levels is None:
            continue
        first, last = levels
        words.append(
            f"peer {peer}: {first.rss_mb:.1f} to {last.rss_mb:.1f} MB, unshared {first.own_mb:.1f} "
            f"to {last.own_mb:.1f} MB; descriptors {first.descriptors:g} to {last.descriptors:g}; "
            f"threads {first.threads:g} to {last.threads:g}"
        )
        for name, (before, after) in usage.leaks(first, last, len(watch.views)).items():
            findings.broken(invariant, f"peer {peer}: {name} {before:g} to {after:g}")
    if files:
        words.append(f"shared and temporary files {files[0]} to {files[-1]}")
        if files[-1] > files[0] * (1 + TOLERANCE):
            findings.broken(invariant, words[-1])
    findings.note(invariant, "\n".join(words) or "nobody lived for long enough")


def what_is_left(findings: Findings, lives: Collection[Life], folders: Collection[Path]) -> None:
    """That no process runs any more, and no temporary folder is there."""
    invariant = "nothing is left"
    running = [f"process {life.pid}" for life in lives if life_of(life.pid) == life]
    for what in (*running, *(str(path) for path in folders if path.exists())):
        findings.broken(invariant, what)
    findings.note(invariant, f"there were {len(lives)} processes and {len(folders)} folders")


def models(findings: Findings, watch: Watch, run: Path) -> None:
    """That the models saved last are finite, and as good as they were."""
    for peer in watch.views:
        if (why := fault_of_model(run, peer)) is not None:
            findings.broken("every model is finite", f"peer {peer}: {why}")
    best, last = watch.best_accuracy, watch.accuracy
    words = f"best mean {best:.1%}, in the end {last:.1%}" if last else "never evaluated"
    findings.note("the accuracy is kept", words)
    if last is None or not last >= KEPT * best:
        findings.broken("the accuracy is kept", words)


def fault_of_model(run: Path, peer: PeerId) -> str | None:
    """What is wrong with a peer's newest checkpoint, if anything is."""
    rounds = saved_rounds(run, peer)
    if not rounds:
        return "no checkpoint"
    try:
        found = checkpoint.load(run / checkpoint_file(peer, rounds[0]))
    except ConfigError as error:
        return str(error)
    for name, x in found.tensors.items():
        if x.is_floating_point() and not math.isfinite(float(torch.sum(x.abs()))):
            return f"{name} is not finite after round {rounds[0]}"
    return None
