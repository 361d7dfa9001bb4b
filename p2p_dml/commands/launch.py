"""`p2p-dml launch` and `p2p-dml doctor`: all peers on several hosts, over ssh."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from p2p_dml.console import Watch, complain, finish, sayer
from p2p_dml.errors import ExitCode
from p2p_dml.options import Out, Override, Quiet, Resume, RunFileOrNone, settings_of

app = typer.Typer()

HostsFile = Annotated[Path, typer.Argument(metavar="HOSTS.toml", help="the hosts file")]


@app.command()
def launch(
    hosts: HostsFile,
    file: RunFileOrNone = None,
    resume: Resume = None,
    set_: Override = None,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Run all peers on several hosts: check them, install, start, collect, clean up."""
    from p2p_dml.launchers.ssh import hosts as hosts_files
    from p2p_dml.launchers.ssh import launch as launcher
    from p2p_dml.launchers.ssh.environments import Environments
    from p2p_dml.launchers.ssh.wheel import build

    console = Console()
    cluster = hosts_files.read(hosts)
    settings, past = settings_of(file, resume, set_ or [], out, "launch")
    with Watch(settings, console, quiet) as watch:
        voice = launcher.Voice(say=sayer(console, quiet), watch=watch.begin)
        quarters = Environments(cluster, build())
        outcome = launcher.launch(cluster, settings, quarters, out, voice, past)
    finish(outcome.folder, outcome.verdict, console)
    raise typer.Exit(outcome.exit_code)


@app.command()
def doctor(
    hosts: HostsFile,
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE.toml", help="a run file, for its data set")
    ] = None,
    set_: Override = None,
) -> None:
    """Say of each host what is fine, what is not and how to mend it; measure all links."""
    from p2p_dml import config
    from p2p_dml.launchers.ssh import doctor as examination
    from p2p_dml.launchers.ssh import hosts as hosts_files
    from p2p_dml.launchers.ssh import tables

    console = Console()
    cluster = hosts_files.read(hosts)
    settings = config.load(file, set_ or []) if file else None
    need, found = examination.examine(cluster, settings)
    console.print(tables.hosts_table(cluster, need, found))
    for host, remark in found.remarks:
        console.print(f"{host.name}: {remark}", soft_wrap=True, markup=False, highlight=False)
    if found.paths:
        console.print(tables.latency_table(found))
        console.print(tables.bandwidth_table(found))
    for host, problem in found.problems:
        complain(f"{host.name}: {problem}")
    raise typer.Exit(ExitCode.STARTUP if found.problems else ExitCode.DONE)
