"""`p2p-dml directory`: where peers of a run whose addresses nobody knows beforehand meet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def directory(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="the run file")],
    listen: Annotated[
        str | None,
        typer.Option(help="such as tcp://*:5700; default: the port of transport.directory"),
    ] = None,
    relay: Annotated[
        bool,
        typer.Option(
            "--relay",
            help="relay peers that can only dial out (transport.reached_at = relay), by this "
            "port + 1 and, for peer I, + 2 + I",
        ),
    ] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="override a key: --set peers=8", metavar="K=V"),
    ] = None,
) -> None:
    """Tell the peers of a run each other's addresses, until Ctrl-C.

    They need it only to meet, unless it relays.
    """
    from p2p_dml import config
    from p2p_dml.launchers.directory import serve

    settings = config.load(file, set_ or [])
    serve(settings, listen, relay, lambda line: print(line, flush=True))
