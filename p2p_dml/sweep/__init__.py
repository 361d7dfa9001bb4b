"""Sweeps: many runs that differ in what a grid says, and tables of what came out.

`read` a sweep file, `check` all its cases, `run` those that are not finished.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import final

from rich.console import Console

from p2p_dml.errors import ConfigError, ExitCode
from p2p_dml.launchers.simulated import device_of
from p2p_dml.report import plural
from p2p_dml.sweep._folder import is_finished, opened
from p2p_dml.sweep._processes import Nursery
from p2p_dml.sweep._values import Case, Plan
from p2p_dml.sweep.execute import execute, ordering
from p2p_dml.sweep.plan import check, read
from p2p_dml.sweep.view import View

__all__ = ["Outcome", "Plan", "check", "listing", "read", "run"]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a sweep ended: the text of its tables, and a sentence about the failed cases."""

    exit_code: ExitCode
    tables: str
    verdict: str | None


def run(
    plan: Plan,
    out: Path,
    jobs: int | None,
    console: Console,
    *,
    quiet: bool,
    with_reports: bool = False,
    device: str = "cpu",
) -> Outcome:
    """Run the chosen cases that are not finished; write tables and pictures of all that are.

    `jobs` at a time; by default the plan's number, or as many as there are cores for.
    `with_reports` gives each case a page and pictures of its own. Simulations compute on `device`,
    which makes no case another: what is finished is not run again. Raises ConfigError if `out`
    holds something else or the device cannot be used, StorageError if `out` cannot be written.
    """
    from p2p_dml.sweep.results import write  # matplotlib takes a second to import

    _check_device(plan, device)
    todo = _todo(plan, out)
    at_once = jobs or plan.jobs or _default_jobs(plan)
    with opened(out, plan.text):
        view = View(len(todo), at_once, console, time.monotonic, quiet=quiet)
        order_of = ordering(plan.mode, with_reports=with_reports, device=device)
        try:
            with Nursery() as nursery:
                ending = execute(todo, out, at_once, order_of, nursery, view)
        finally:
            view.close()
        tables = write(plan, out, ending.errors)
    return Outcome(
        exit_code=_exit_code(failed=bool(ending.errors), stopped=ending.is_stopped),
        tables=tables,
        verdict=_verdict([case for case in todo if case.digest in ending.errors], len(todo)),
    )


def listing(plan: Plan, out: Path) -> str:
    """The chosen cases with what became of them so far in `out`, a line each."""
    states = ["finished" if is_finished(out, case) else "to do" for case in plan.chosen]
    lines = [
        f"{case.digest}  {state:8}  {case.title}"
        for case, state in zip(plan.chosen, states, strict=True)
    ]
    total = f"{plural(len(lines), 'case')}, {states.count('finished')} finished"
    return "\n".join([*lines, total])


def _check_device(plan: Plan, device: str) -> None:
    """Raise ConfigError unless the cases can compute there."""
    if device == "cpu":
        return
    if plan.mode == "run":
        raise ConfigError(
            f'--device {device}: is for simulations, and this sweep has mode = "run"; leave the '
            'option out or set mode = "simulate"'
        )
    device_of(device)


def _todo(plan: Plan, out: Path) -> list[Case]:
    """The chosen cases without a result; of those that are the same run, the first."""
    different = {case.digest: case for case in reversed(plan.chosen)}
    open_ = {digest for digest, case in different.items() if not is_finished(out, case)}
    return [case for case in plan.chosen if different[case.digest] is case and case.digest in open_]


def _default_jobs(plan: Plan) -> int:
    """As many simulations as the cores have room for; one run on processes, which takes all."""
    if plan.mode == "run":
        return 1
    threads = max(case.config.threads for case in plan.chosen)
    return max(1, len(os.sched_getaffinity(0)) // threads)


def _exit_code(*, failed: bool, stopped: bool) -> ExitCode:
    if failed:
        return ExitCode.FAILED
    return ExitCode.STOPPED if stopped else ExitCode.DONE


def _verdict(failed: list[Case], num_cases: int) -> str | None:
    if not failed:
        return None
    names = "; ".join(case.title for case in failed[:3])
    more = f" and {len(failed) - 3} more" if len(failed) > 3 else ""
    return f"{len(failed)} of {plural(num_cases, 'case')} failed: {names}{more}; see tables.md"
