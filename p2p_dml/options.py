"""Arguments and options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

RunFile = Annotated[Path, typer.Argument(metavar="FILE.toml", help="the run file")]
Override = Annotated[
    list[str] | None, typer.Option("--set", help="override a key: --set rounds=50", metavar="K=V")
]
Out = Annotated[Path | None, typer.Option(help="run folder; default: a new one below runs/")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no live view, only the final lines")]
