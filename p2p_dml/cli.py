"""The command line: `p2p-dml` and its commands; some are in `p2p_dml.commands`."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from p2p_dml import __version__
from p2p_dml.commands import bench, directory, join, keys, launch, soak, up
from p2p_dml.console import Watch, complain, conclude, finish, sayer
from p2p_dml.errors import ExitCode, P2PError
from p2p_dml.options import Out, Override, Quiet, Resume, RunFile, RunFileOrNone, settings_of

if TYPE_CHECKING:
    from p2p_dml.config import RunConfig
    from p2p_dml.launchers.ranks import Ranks

app = typer.Typer(
    help="Peer-to-peer training without a server, over links that come and go.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
topology_app = typer.Typer(help="Link schedules.", no_args_is_help=True)
data_app = typer.Typer(help="Data sets.", no_args_is_help=True)
rank_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.add_typer(topology_app, name="topology")
app.add_typer(data_app, name="data")
app.add_typer(keys.app, name="keys")
app.add_typer(bench.app, name="bench")
app.add_typer(launch.app)
app.add_typer(up.app)
app.add_typer(directory.app)
app.add_typer(join.app)
app.add_typer(soak.app)


class _Interrupted(BaseException):
    """A signal. No Exception, lest somebody handle it; no KeyboardInterrupt, which click would."""


def main() -> NoReturn:
    """Run the command; every known error is one message and its documented exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        app()
    except P2PError as error:
        complain(error)
        sys.exit(error.exit_code)
    except _Interrupted:
        sys.exit(ExitCode.STOPPED)
    sys.exit(ExitCode.DONE)


def rank_main(ranks: Ranks) -> NoReturn:
    """`torchrun … -m p2p_dml FILE.toml`: run the peer of this rank; its documented exit code."""
    from p2p_dml.launchers.stopping import Stopping

    stopping = Stopping()
    with stopping.listening():  # before torch is imported: another rank may have died by then
        try:
            rank_app(obj=(ranks, stopping))
        except SystemExit as end:
            if not isinstance(end.code, int) or end.code == ExitCode.DONE:
                raise
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)  # what is left of a broken group may block a usual exit
    sys.exit(ExitCode.DONE)


def _interrupt(number: int, frame: object) -> NoReturn:
    raise _Interrupted


@app.callback(invoke_without_command=True)
def _top(
    version: Annotated[bool, typer.Option("--version", help="print the version")] = False,
) -> None:
    if version:
        print(__version__)
        raise typer.Exit


@app.command()
def run(
    file: RunFileOrNone = None,
    resume: Resume = None,
    set_: Override = None,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Run all peers as processes of this machine."""
    from p2p_dml.launchers import local

    console = Console()
    settings, past = settings_of(file, resume, set_ or [], out, "run")
    with Watch(settings, console, quiet) as watch:
        outcome = local.run(settings, out, watch.begin, past, sayer(console, quiet))
    finish(outcome.folder, outcome.verdict, console)
    raise typer.Exit(outcome.exit_code)


@app.command()
def simulate(
    file: RunFileOrNone = None,
    resume: Resume = None,
    set_: Override = None,
    out: Out = None,
    quiet: Quiet = False,
    batched: Annotated[
        bool | None,
        typer.Option(
            "--batched/--lockstep",
            help="train all peers as one batch, or one after another, which has every bit of a "
            "run on processes; default: batched where the model allows it",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="where to compute: cpu (default), cuda, cuda:1, …")
    ] = None,
) -> None:
    """Run all peers in one process: the same results and files, faster, easier to debug."""
    from p2p_dml.launchers import simulated

    console = Console()
    settings, past = settings_of(file, resume, set_ or [], out, "simulate")
    before = past.facts if past else {}
    with Watch(settings, console, quiet) as watch:
        outcome = simulated.simulate(
            settings,
            out,
            watch.begin,
            batched=before.get("batched") if batched is None else batched,
            device=device or before.get("device", "cpu"),
            say=sayer(console, quiet),
            past=past,
        )
    conclude(outcome.folder, console)
    raise typer.Exit(outcome.exit_code)


@rank_app.command()
def _rank(
    context: typer.Context,
    file: RunFileOrNone = None,
    resume: Resume = None,
    set_: Override = None,
    out: Out = None,
    quiet: Quiet = False,
    transport: Annotated[
        str | None,
        typer.Option(help="auto, torchdist, zeromq or hybrid; short for transport.kind"),
    ] = None,
) -> None:
    """Run the peer of this rank, or help to; torchrun has started one or more for each peer."""
    from p2p_dml.launchers import torchrun
    from p2p_dml.launchers.arriving import Wish

    ranks, stopping = context.obj
    console = Console()
    overrides = [*(set_ or []), *([f"transport.kind={transport}"] if transport else [])]

    def load() -> Wish:
        settings, past = settings_of(file, resume, overrides, out, "torchrun")
        return Wish(config=settings, out=out, past=past)

    with ExitStack() as views:

        def watch(settings: RunConfig, folder: Path, started: float) -> Callable[[], None]:
            return views.enter_context(Watch(settings, console, quiet)).begin(folder, started)

        def close_views(folder: Path) -> None:
            views.close()
            conclude(folder, console)

        voice = torchrun.Voice(
            say=sayer(console, quiet),
            complain=complain,
            watch=watch,
            conclude=close_views,
        )
        code = torchrun.run(load, ranks, stopping, voice)
    raise typer.Exit(code)


@app.command()
def sweep(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="the sweep file")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="override a key of the base", metavar="K=V")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder; default: runs/ and its name")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="cases at a time; default: as cores allow")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(
            help="run the cases with this label of an axis, or seed", metavar="AXIS=LABEL"
        ),
    ] = None,
    reports: Annotated[
        bool, typer.Option("--reports", help="give each case a report page and pictures")
    ] = False,
    device: Annotated[
        str, typer.Option(help="where simulations compute: cpu, cuda, cuda:1, …")
    ] = "cpu",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check and list the cases")] = False,
    quiet: Quiet = False,
) -> None:
    """Run a grid of runs and tabulate them; run again, it goes on where it was stopped."""
    from p2p_dml import sweep as sweeps

    console = Console()
    plan = sweeps.read(file, set_ or [], only or [])
    folder = out or Path("runs", plan.name)
    sweeps.check(plan)
    if dry_run:
        print(sweeps.listing(plan, folder))
        return
    outcome = sweeps.run(
        plan, folder, jobs, console, quiet=quiet, with_reports=reports, device=device
    )
    print(outcome.tables)
    console.print(f"sweep: {folder / 'tables.md'}", soft_wrap=True)
    if outcome.verdict:
        complain(outcome.verdict)
    raise typer.Exit(outcome.exit_code)


@app.command()
def peer(
    file: RunFile,
    me: Annotated[int, typer.Option(help="this peer's id, 0 to peers - 1")],
    set_: Override = None,
    out: Out = None,
) -> None:
    """Run one peer here; the others run elsewhere, at the addresses of the run file."""
    from p2p_dml import config
    from p2p_dml.launchers.single import run_alone

    settings = config.load(file, set_ or [])
    raise typer.Exit(run_alone(settings, me, out or Path("runs", settings.name)))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="run folders")],
    out: Annotated[Path, typer.Option(help="where the comparison of several runs goes")] = Path(
        "runs/compare"
    ),
) -> None:
    """Write the report of a run again, or compare several."""
    from p2p_dml.report import compare, compare_table

    console = Console()
    if len(runs) == 1:
        conclude(runs[0], console)
        return
    console.print(compare_table(runs))
    console.print(f"comparison: {compare(runs, out)}", soft_wrap=True)


@app.command()
def export(
    run_: Annotated[Path, typer.Argument(metavar="RUN", help="run folder")],
    me: Annotated[int, typer.Option("--peer", help="whose model")],
    round_: Annotated[
        int | None, typer.Option("--round", help="of a checkpoint; default: the last")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="folder; default: in RUN/export")] = None,
) -> None:
    """Write a peer's model without its zeros: a small dense one, and values with a bitmap."""
    from p2p_dml.export.peers import export_peer, table

    console = Console()
    exported = export_peer(run_, me, round_, out)
    console.print(table(exported))
    console.print(f"export: {exported.folder}", soft_wrap=True, markup=False)
    if exported.small is not None and not exported.small.is_equal:
        complain("the small model's outputs are not those of the whole model; do not use it")
        raise typer.Exit(ExitCode.FAILED)


@topology_app.command("show")
def topology_show(
    what: Annotated[str, typer.Argument(metavar="FILE_OR_KIND", help="topology file or kind")],
    peers: Annotated[int | None, typer.Option(min=1, help="number of peers")] = None,
    ticks: Annotated[int, typer.Option(min=1, help="how many ticks to look at")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="of random kinds")] = 0,
    mixing: Annotated[
        str | None,
        typer.Option(
            help="rule for the spectral gap: metropolis, neighbour_mean if links are one-way"
        ),
    ] = None,
    set_: Override = None,
    out: Annotated[Path, typer.Option(help="picture to write")] = Path("topology.png"),
) -> None:
    """Draw a link schedule and print degrees, connectivity and spectral gap over its ticks."""
    from p2p_dml import links, tables
    from p2p_dml.config import overrides_table
    from p2p_dml.kernels.mixing import RULES
    from p2p_dml.report import survey_table
    from p2p_dml.report.topology import draw_file

    if what in links.KINDS:
        table = {"kind": what, **overrides_table(set_ or [])}
        schedule = links.build(table, peers or 16, seed, Path())
    else:
        schedule = links.load(Path(what), peers, seed)
    both_ways = all(schedule(tick).is_symmetric for tick in range(ticks))
    default = "metropolis" if both_ways else "neighbour_mean"
    rule = tables.choose(RULES, mixing or default, "--mixing")
    console = Console()
    console.print(survey_table(links.survey(schedule, rule, ticks)))
    draw_file(schedule, schedule(0).num_peers, ticks, out)
    console.print(f"picture: {out}", soft_wrap=True)


@data_app.command("list")
def data_list() -> None:
    """List the data sets this package can read and where they were found."""
    from p2p_dml.data.fetch import available

    table = Table("name", "found at", "download", "what")
    for row in available():
        size = f"{row.num_bytes / 1e6:.1f} MB" if row.num_bytes else "none needed"
        table.add_row(row.name, row.place or "not found", size, row.description)
    Console().print(table)


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="data set, see `p2p-dml data list`")],
    to: Annotated[Path | None, typer.Option(help="folder; default: $P2P_DML_DATA")] = None,
) -> None:
    """Download a data set, checked against known checksums."""
    from p2p_dml.data.fetch import fetch

    for path in fetch(name, to):
        print(path)
