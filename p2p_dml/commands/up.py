"""`p2p-dml up`: all peers in containers, of this machine or of several hosts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from p2p_dml.config import RunConfig
from p2p_dml.console import Watch, finish, sayer
from p2p_dml.errors import ConfigError
from p2p_dml.options import Out, Override, Quiet, Resume, RunFileOrNone, settings_of

app = typer.Typer()


@app.command()
def up(
    file: RunFileOrNone = None,
    hosts_file: Annotated[
        Path | None,
        typer.Option(
            help="run on these hosts, over ssh, in the engine of each; default: on this machine",
            metavar="HOSTS.toml",
        ),
    ] = None,
    resume: Resume = None,
    peers: Annotated[
        int | None, typer.Option(min=1, help="how many; default: as the run file says")
    ] = None,
    set_: Override = None,
    out: Out = None,
    build: Annotated[
        bool, typer.Option("--build", help="build the image anew, even if it is there")
    ] = False,
    image: Annotated[
        str | None, typer.Option(help="another image than that of this version", metavar="NAME")
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(
            help="only write a compose file to run by hand, with its keys and run folder",
            metavar="compose.yml",
        ),
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Run all peers in containers: of this machine, by docker compose, or of several hosts."""
    from p2p_dml.launchers.containers import on_hosts
    from p2p_dml.launchers.containers import up as containers
    from p2p_dml.launchers.ssh import hosts
    from p2p_dml.launchers.ssh.launch import Voice

    _check_options(hosts_file, resume, write)
    overrides = [*(set_ or []), *([f"peers={peers}"] if peers else [])]
    cluster = hosts.read(hosts_file) if hosts_file else None
    settings, past = settings_of(file, resume, overrides, out, "launch" if resume else "up")
    console = Console()
    if write is not None:
        _write(settings, out, write, image, console)
        return
    with Watch(settings, console, quiet) as watch:
        say = sayer(console, quiet)
        if cluster is None:
            outcome = containers.run(settings, out, watch.begin, say, image=image, build=build)
        else:
            voice = Voice(say=say, watch=watch.begin)
            outcome = on_hosts.run(
                cluster, settings, out, voice, image=image, build=build, past=past
            )
    finish(outcome.folder, outcome.verdict, console)
    raise typer.Exit(outcome.exit_code)


def _check_options(hosts_file: Path | None, resume: Path | None, write: Path | None) -> None:
    if hosts_file and write:
        raise ConfigError(
            f"--write {write}: a compose file is for one machine; leave --hosts-file out"
        )
    if resume and not hosts_file:
        raise ConfigError(
            f"--resume {resume}: runs of this machine's containers go on as processes, by "
            f"`p2p-dml run --resume {resume}`; with --hosts-file those on hosts go on in containers"
        )


def _write(
    settings: RunConfig, out: Path | None, write: Path, image: str | None, console: Console
) -> None:
    from p2p_dml.launchers.containers import up as containers

    folder = containers.write(settings, out, write, image)
    console.print(f"start it:  docker compose -f {write} up", soft_wrap=True, markup=False)
    console.print(f"report:    p2p-dml report {folder}", soft_wrap=True, markup=False)
