"""`p2p-dml soak`: a run of local processes under faults at random."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from p2p_dml.console import conclude, sayer
from p2p_dml.errors import ExitCode
from p2p_dml.options import Out, Quiet

app = typer.Typer()


@app.command()
def soak(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE.toml", help="a run file; default: digits, small")
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="from the first round on")] = 10.0,
    peers: Annotated[
        int | None, typer.Option(min=2, help="how many; default: 8, or as the run file says")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the faults: equal seeds, equal plans")] = 0,
    every: Annotated[float, typer.Option(min=0.1, help="seconds between faults")] = 5.0,
    out: Out = None,
    quiet: Quiet = False,
) -> None:
    """Run peers as processes here, do them harm at random, and see whether all is as promised."""
    from p2p_dml.launchers.soak import run as soaks

    console = Console()
    config = soaks.config_of(file, peers)
    wish = soaks.Wish(config=config, duration_s=60 * minutes, every_s=every, seed=seed)
    folder, verdict = soaks.soak(wish, out, sayer(console, quiet))
    file = verdict.write(folder)
    conclude(folder, console)
    for table in verdict.tables():
        console.print(table)
    console.print(f"soak: {file}", soft_wrap=True, markup=False)
    raise typer.Exit(ExitCode.DONE if verdict.is_held else ExitCode.FAILED)
