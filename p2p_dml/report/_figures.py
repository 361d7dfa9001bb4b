"""The key figures of a summary in words, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from p2p_dml.errors import ExitCode
from p2p_dml.events import PHASES
from p2p_dml.report._units import (
    ABSENT,
    count,
    digits,
    human_bytes,
    human_seconds,
    percent,
    plural,
)
from p2p_dml.report._values import LostPeer, Spread, Summary


def key_figures(summary: Summary) -> list[tuple[str, str, str]]:
    """(name, value, remark) of the figures that a reader wants first."""
    return [
        *_pace(summary),
        *_accuracy(summary),
        ("test loss", digits(summary.loss_mean), f"training {digits(summary.train_loss_mean)}"),
        ("consensus distance", digits(summary.consensus_distance), "peers' models to their mean"),
        (
            "wall time",
            human_seconds(summary.wall_s),
            "by virtual clocks"
            if summary.clock == "virtual"
            else f"{human_seconds(summary.startup_s)} start-up",
        ),
        ("sent", human_bytes(summary.bytes_out_total), f"{per_peer(summary)} per peer"),
        ("memory per peer", _megabytes(summary.pss_mb_median), "median proportional set size"),
        ("time by phase", phase_shares(summary.seconds), _waiting(summary)),
        ("messages missing", count(summary.missing_messages), irregularities(summary)),
        ("peers finished", f"{summary.peers_finished} of {summary.peers}", ending(summary)),
    ]


def _pace(summary: Summary) -> list[tuple[str, str, str]]:
    """The pace, if it is not that of most runs."""
    slow, remarks = len(summary.stragglers), []
    if summary.pace == "synchronous" and not slow:
        return []
    if slow:
        remarks.append(plural(slow, "straggler"))
    if summary.age_mean is not None:
        remarks.append(f"models mixed {digits(summary.age_mean)} rounds old")
    return [("pace", summary.pace, ", ".join(remarks))]


def _accuracy(summary: Summary) -> list[tuple[str, str, str]]:
    """The accuracy, and how it differs from peer to peer where each has a test of its own."""
    best = _best(summary) if summary.accuracy else ""
    figures = [(accuracy_name(summary.evaluate_on), spread(summary.accuracy), best)]
    found = summary.accuracy_quantiles
    if summary.evaluate_on == "own" and found is not None:
        values = (found.p10, found.p25, found.p50, found.p75, found.p90)
        shares = " ".join(f"{100 * value:.1f}" for value in values)
        figures.append(
            (
                "from peer to peer",
                f"{shares} %",
                f"10, 25, 50, 75, 90 % quantiles; worst peer {summary.worst_peer}",
            )
        )
    return figures


def accuracy_name(evaluate_on: str) -> str:
    """What an accuracy is called, by the samples that peers were tested on."""
    return "personal accuracy" if evaluate_on == "own" else "accuracy"


def _best(summary: Summary) -> str:
    if summary.best_accuracy is None:
        return ABSENT
    best = f"best {percent(summary.best_accuracy)}"
    if summary.best_round is None:
        return f"{best} after {human_seconds(summary.best_s)}"
    return f"{best} after round {summary.best_round}"


def _waiting(summary: Summary) -> str:
    share = summary.wait_share
    most = f"; waiting {percent(share.max)} at most" if share else ""
    return "mean over the peers" + most


def compare_row(label: str, summary: Summary) -> dict[str, str]:
    """The figures by which a run is compared with others, by column head."""
    mean, _, value_range = spread(summary.accuracy).partition(" (")
    whose = " own" if summary.evaluate_on == "own" else ""
    return {
        "run": label,
        "strategy": summary.strategy,
        "pace": summary.pace,
        "peers": str(summary.peers),
        "rounds": f"{summary.rounds_done.max}",
        "accuracy": mean + whose,
        "from – to": value_range.rstrip(")"),
        "best": percent(summary.best_accuracy),
        "loss": digits(summary.loss_mean),
        "consensus": digits(summary.consensus_distance),
        "sent": human_bytes(summary.bytes_out_total),
        "wall time": human_seconds(summary.wall_s),
        "finished": f"{summary.peers_finished}/{summary.peers}",
    }


def run_labels(folders: Sequence[Path]) -> list[str]:
    """A different name for each run: its folder's, with parents where these are equal."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        labels = ["/".join(part[-depth:]) for part in parts]
        if len(set(labels)) == len(labels):
            return labels
    return [f"{folder.name} ({place})" for place, folder in enumerate(folders, start=1)]


def spread(value: Spread | None) -> str:
    """`91.2 % ± 0.8 (90.1 – 92.6)`: mean, standard deviation, range; in percent."""
    if value is None:
        return ABSENT
    return (
        f"{percent(value.mean)} ± {100 * value.std:.1f} "
        f"({100 * value.min:.1f} – {100 * value.max:.1f})"
    )


def per_peer(summary: Summary) -> str:
    """Payload bytes that a mean peer sent."""
    return human_bytes(summary.bytes_out_total / max(1, summary.peers))


def phase_shares(seconds: Mapping[str, float]) -> str:
    """`train 61 %, wait 20 %, …`, largest first, without those below 0.5 %."""
    total = sum(seconds.values())
    if not total:
        return ABSENT
    shares = sorted(((seconds[phase] / total, phase) for phase in PHASES), reverse=True)
    return ", ".join(f"{phase} {100 * share:.0f} %" for share, phase in shares if share >= 0.005)


def irregularities(summary: Summary) -> str:
    """`2 late, 1 rejected, 3 isolated rounds`, or that there were none."""
    parts = [
        f"{number} {what}"
        for number, what in (
            (summary.late_messages, "late"),
            (summary.rejected, "rejected"),
        )
        if number
    ]
    if summary.isolated_rounds:
        parts.append(plural(summary.isolated_rounds, "isolated round"))
    return ", ".join(parts) or "none late, rejected or isolated"


def ending(summary: Summary) -> str:
    """The rounds done, how many were lost or stopped, and then the exit code."""
    done = summary.rounds_done
    rounds = f"{done.max}" if done.min == done.max else f"{done.min} to {done.max}"
    parts = [
        f"{number} {what}"
        for number, what in ((summary.peers_lost, "lost"), (summary.peers_stopped, "stopped"))
        if number
    ]
    fate = f"{', '.join(parts)}, exit code {summary.exit_code}" if parts else "none lost"
    return f"{rounds} of {plural(summary.rounds, 'round')}; {fate}"


def lost_sentence(lost: LostPeer) -> str:
    """What is known of the end of a lost peer."""
    when = "before its first round" if lost.last_round is None else f"after round {lost.last_round}"
    if lost.exit_code is None:
        return f"peer {lost.peer} was lost {when}: killed, or still running; it wrote no last line"
    names = {int(code): code.name.lower() for code in ExitCode}
    why = lost.error or "no reason given"
    name = names.get(lost.exit_code, "failed")
    return f"peer {lost.peer} ended {when} with exit code {lost.exit_code} ({name}): {why}"


def _megabytes(value: float | None) -> str:
    return ABSENT if value is None else human_bytes(value * 1e6)
