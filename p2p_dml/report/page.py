"""One HTML page of a run, or of several side by side, complete in a single file."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.resources import files
from typing import final

from jinja2 import Environment, StrictUndefined

from p2p_dml.report._figures import accuracy_name, compare_row, key_figures
from p2p_dml.report._notices import notices
from p2p_dml.report._units import ABSENT, count, digits, human_bytes, human_seconds, percent, plural
from p2p_dml.report._values import PeerRecord, Picture, Run, Summary


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """What `page.html` shows, in its order; empty parts are left out."""

    title: str
    subtitle: str
    figures: Sequence[tuple[str, str, str]] = ()
    pictures: Sequence[Picture] = ()
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    table_title: str = ""
    notices: Sequence[str] = ()
    commands: Sequence[str] = ()
    config: str = ""


def run_page(run: Run, summary: Summary, pictures: Sequence[Picture]) -> str:
    """The HTML of one run's report."""
    heads, rows = _peer_table(run)
    meta = run.meta
    return _render(
        Page(
            title=f"{meta.name}: {meta.strategy} on {plural(meta.peers, 'peer')}",
            subtitle=_subtitle(run),
            figures=key_figures(summary),
            pictures=pictures,
            table_title="Peers",
            heads=heads,
            rows=rows,
            notices=notices(run, summary)
            or ["nothing: no peer was lost, slow or isolated, no message rejected"],
            commands=[meta.command] if meta.command else [],
            config=run.config,
        )
    )


def compare_page(runs: Mapping[str, tuple[Run, Summary]], pictures: Sequence[Picture]) -> str:
    """The HTML of several runs side by side; the keys are their labels."""
    rows = [compare_row(label, summary) for label, (_, summary) in runs.items()]
    return _render(
        Page(
            title=f"Comparison of {len(runs)} runs",
            subtitle=", ".join(runs),
            pictures=pictures,
            table_title="Figures",
            heads=list(rows[0]),
            rows=[list(row.values()) for row in rows],
            commands=[run.meta.command for run, _ in runs.values() if run.meta.command],
        )
    )


def _render(page: Page) -> str:
    # autoescape: errors and names come from other peers and from users.
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["data_uri"] = _data_uri
    source = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return environment.from_string(source).render(page=page)


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def _subtitle(run: Run) -> str:
    meta = run.meta
    started = datetime.fromtimestamp(meta.started, tz=timezone.utc)
    parts = [
        f"{meta.rounds} rounds",
        f"seed {meta.seed}",
        f"{count(meta.params)} parameters" if meta.params else "",
        f"{started:%Y-%m-%d %H:%M} UTC",
        f"on {meta.host}" if meta.host else "",
        "simulated in one process" if meta.mode == "simulate" else "",
        f"p2p_dml {meta.version}" if meta.version else "",
        f"digest {meta.digest}" if meta.digest else "",
    ]
    return " · ".join(part for part in parts if part)


def _peer_table(run: Run) -> tuple[list[str], list[list[str]]]:
    heads = [
        "peer", "state", "rounds", accuracy_name(run.meta.evaluate_on), "loss", "samples", "sent",
        "received", "missing", "training", "waiting", "memory",
    ]  # fmt: skip
    return heads, [_peer_row(peer) for peer in run.peers]


def _peer_row(peer: PeerRecord) -> list[str]:
    rounds, evaluations = peer.rounds, peer.evaluations
    train_s, _, wait_s, _, _ = rounds.seconds.sum(axis=0)
    return [
        str(peer.peer),
        peer.fate,
        str(len(set(rounds.round.tolist()))),
        percent(evaluations.accuracy[-1] if len(evaluations.round) else None),
        digits(evaluations.loss[-1] if len(evaluations.round) else None),
        ABSENT if peer.samples is None else count(peer.samples),
        human_bytes(int(rounds.bytes_out.sum())),
        human_bytes(int(rounds.bytes_in.sum())),
        count(int(rounds.missing.sum())),
        human_seconds(train_s),
        human_seconds(wait_s),
        human_bytes(peer.pss_mb[-1] * 1e6 if peer.pss_mb.size else None),
    ]
