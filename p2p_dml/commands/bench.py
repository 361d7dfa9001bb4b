"""`p2p-dml bench`: what rounds cost on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from p2p_dml.console import sayer
from p2p_dml.options import Override, Quiet

app = typer.Typer(help="What rounds cost on this machine.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Commands of their own name, even if there is one only."""


@app.command()
def rounds(
    peers: Annotated[list[str], typer.Option(help="how many", metavar="N,…")],
    topology: Annotated[
        list[str],
        typer.Option(
            help="ring, or with parameters 'k_regular degree=4', or a file", metavar="T,…"
        ),
    ],
    params: Annotated[list[str], typer.Option(help="of the model: 500k, 11M", metavar="P,…")],
    rounds_: Annotated[int, typer.Option("--rounds", min=2, help="that are timed")] = 100,
    transport: Annotated[
        list[str] | None,
        typer.Option(help="keys of the table transport, such as scheme=tcp", metavar="T,…"),
    ] = None,
    dtype: Annotated[
        list[str] | None, typer.Option(help="of the parameters: float32", metavar="D,…")
    ] = None,
    repeat: Annotated[int, typer.Option(min=1, help="runs of each case")] = 5,
    limits: Annotated[
        bool, typer.Option("--limits", help="measure bare loops over the same links as well")
    ] = False,
    set_: Override = None,
    out: Annotated[Path | None, typer.Option(help="file to add the lines to as well")] = None,
    quiet: Quiet = False,
) -> None:
    """Time rounds without training; one line of JSON per case, every value may be several."""
    from p2p_dml.launchers.bench import cases
    from p2p_dml.launchers.bench import rounds as measuring

    grid = cases.grid(
        peers=peers,
        topologies=topology,
        params=params,
        rounds=rounds_,
        dtypes=dtype or ["float32"],
        transports=transport or [],
        settings=set_ or [],
    )
    measuring.check(grid)
    say = sayer(Console(stderr=True), quiet)
    try:
        for line in measuring.measure(grid, repeat, with_limits=limits, say=say):
            text = measuring.as_text(line)
            print(text, flush=True)
            if out is not None:
                measuring.append(out, text)
    except measuring.RunFailed as failure:
        raise typer.Exit(failure.exit_code) from failure
