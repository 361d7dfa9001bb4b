"""`p2p-dml directory`: where peers of a run whose addresses nobody knows beforehand meet."""

from __future__ import annotations

from typing import Annotated

import typer

from p2p_dml.options import Override, RunFile

app = typer.Typer()


@app.command()
def directory(
    file: RunFile,
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
    set_: Override = None,
) -> None:
    """Tell the peers of a run each other's addresses, until Ctrl-C.

    They need it only to meet, unless it relays.
    """
    from p2p_dml import config
    from p2p_dml.launchers.directory import serve

    settings = config.load(file, set_ or [])
    serve(settings, listen, relay, lambda line: print(line, flush=True))
