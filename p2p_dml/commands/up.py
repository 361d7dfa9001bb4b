"""`p2p-dml up`: all peers in containers of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from p2p_dml.console import Watch, finish, sayer
from p2p_dml.options import Out, Override, Quiet, RunFile

app = typer.Typer()


@app.command()
def up(
    file: RunFile,
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
    """Run all peers in containers of this machine, by docker compose."""
    from p2p_dml import config
    from p2p_dml.launchers.containers import up as containers

    overrides = [*(set_ or []), *([f"peers={peers}"] if peers else [])]
    settings, console = config.load(file, overrides), Console()
    if write is not None:
        folder = containers.write(settings, out, write, image)
        console.print(f"start it:  docker compose -f {write} up", soft_wrap=True, markup=False)
        console.print(f"report:    p2p-dml report {folder}", soft_wrap=True, markup=False)
        return
    with Watch(settings, console, quiet) as watch:
        outcome = containers.run(
            settings, out, watch.begin, sayer(console, quiet), image=image, build=build
        )
    finish(outcome.folder, outcome.verdict, console)
    raise typer.Exit(outcome.exit_code)
