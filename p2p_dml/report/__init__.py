"""Reports: everything a run folder holds beyond what the peers wrote, and the view while it runs.

All of it is made from `run.json`, `run.toml` and the event files, and can be made again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.table import Table

from p2p_dml.errors import ConfigError
from p2p_dml.files import write_whole
from p2p_dml.report._figures import run_labels
from p2p_dml.report._reported import reported_csv
from p2p_dml.report._timeline import measure_timeline
from p2p_dml.report._units import clock, digits, human_bytes, plural
from p2p_dml.report._values import Curve, Picture, Run, Summary, Timeline
from p2p_dml.report.live import LiveView
from p2p_dml.report.load import load
from p2p_dml.report.summary import curve_csv, measure_curve, summarise, summary_json
from p2p_dml.report.terminal import summaries_table, summary_table, survey_table
from p2p_dml.types import LinkSchedule

__all__ = [
    "Curve",
    "LiveView",
    "Picture",
    "Run",
    "Summary",
    "Timeline",
    "clock",
    "compare",
    "compare_table",
    "digits",
    "final_table",
    "human_bytes",
    "load",
    "plural",
    "survey_table",
    "write",
    "write_figures",
]

# A schedule can be longer than a picture of it needs.
_MAX_DRAWN_TICKS = 100


def write(run: Path, schedule: LinkSchedule | None = None) -> Path:
    """Write summary.json, the curves, plots/*.png and report.html; returns the page's path.

    `schedule` adds the picture of the graph. Raises ConfigError if `run` is not a run folder and
    StorageError if it cannot be written; no file is ever left half written.
    """
    # matplotlib and jinja2 take a second to import, which a run need not wait for at its start.
    from p2p_dml.report.page import run_page
    from p2p_dml.report.plots import run_pictures

    recorded, summary, curve, timeline = write_figures(run)
    pictures = run_pictures(recorded, curve, timeline)
    if schedule is not None:
        pictures.append(_graph_picture(schedule, recorded))
    _write_pictures(run / "plots", pictures)
    page = run / "report.html"
    write_whole(page, run_page(recorded, summary, pictures).encode())
    return page


def write_figures(run: Path) -> tuple[Run, Summary, Curve, Timeline]:
    """Write summary.json, curve.csv, timeline.csv and reported.csv: all but pictures and page.

    Returns what they hold. Raises as `write` does.
    """
    recorded = load(run)
    curve, timeline = measure_curve(recorded), measure_timeline(recorded)
    summary = summarise(recorded, curve)
    write_whole(run / "summary.json", summary_json(summary).encode())
    write_whole(run / "curve.csv", curve_csv(curve).encode())
    write_whole(run / "timeline.csv", curve_csv(timeline).encode())
    write_whole(run / "reported.csv", reported_csv(recorded).encode())
    return recorded, summary, curve, timeline


def compare(runs: Sequence[Path], out: Path) -> Path:
    """Write the folder `out`: compare.html and plots/*.png with a line for each run.

    Returns the page's path. Raises ConfigError if a folder is no run folder, StorageError if
    `out` cannot be written.
    """
    import numpy as np

    from p2p_dml.events import PHASES
    from p2p_dml.report.page import compare_page
    from p2p_dml.report.plots import curve_pictures, phase_pictures

    recorded = _load_all(runs)
    curves = {label: measure_curve(run) for label, run in recorded.items()}
    summaries = {label: summarise(run, curves[label]) for label, run in recorded.items()}
    seconds = {
        label: np.array([summary.seconds[phase] for phase in PHASES])
        for label, summary in summaries.items()
    }
    timelines = {label: measure_timeline(run) for label, run in recorded.items()}
    is_personal = all(run.meta.evaluate_on == "own" for run in recorded.values())
    drawn = curve_pictures(curves, timelines, is_personal=is_personal)
    pictures = [*drawn, *phase_pictures(seconds, "run")]
    _write_pictures(out / "plots", pictures)
    page = out / "compare.html"
    together = {label: (recorded[label], summaries[label]) for label in recorded}
    write_whole(page, compare_page(together, pictures).encode())
    return page


def final_table(run: Run) -> RenderableType:
    """The key figures of a run for the terminal."""
    return summary_table(summarise(run, measure_curve(run)))


def compare_table(runs: Sequence[Path]) -> Table:
    """Several runs for the terminal, a row each; ConfigError if one is no run folder."""
    recorded = _load_all(runs)
    return summaries_table(
        {label: summarise(run, measure_curve(run)) for label, run in recorded.items()}
    )


def _load_all(runs: Sequence[Path]) -> Mapping[str, Run]:
    if not runs:
        raise ConfigError("nothing to compare: expected at least one run folder, found none")
    return dict(zip(run_labels(runs), map(load, runs), strict=True))


def _graph_picture(schedule: LinkSchedule, run: Run) -> Picture:
    from p2p_dml.report._style import to_png
    from p2p_dml.report.topology import draw

    ticks = max(1, min(run.meta.rounds, _MAX_DRAWN_TICKS))
    return Picture(
        name="graph",
        title="Links",
        caption=f"Who hears whom, and in which share of the first {ticks} ticks.",
        png=to_png(draw(schedule, run.meta.peers, ticks)),
    )


def _write_pictures(folder: Path, pictures: Sequence[Picture]) -> None:
    for picture in pictures:
        write_whole(folder / f"{picture.name}.png", picture.png)
