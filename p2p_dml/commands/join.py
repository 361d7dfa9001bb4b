"""`p2p-dml join`: one more peer for a run that goes on, if it is elastic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def join(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run that is going on")],
) -> None:
    """Let one more peer take part in an elastic run on processes of this machine.

    Elsewhere a peer joins by `p2p-dml peer`.
    """
    from p2p_dml.launchers import joining

    print(f"peer {joining.ask(run)} joins {run}")
