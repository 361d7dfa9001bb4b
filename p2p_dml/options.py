"""Arguments and options that several commands have, and the run that they ask for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from p2p_dml.errors import ConfigError

if TYPE_CHECKING:
    from p2p_dml.config import RunConfig
    from p2p_dml.launchers.resuming import Past

RunFile = Annotated[Path, typer.Argument(metavar="FILE.toml", help="the run file")]
Override = Annotated[
    list[str] | None, typer.Option("--set", help="override a key: --set rounds=50", metavar="K=V")
]
Out = Annotated[Path | None, typer.Option(help="run folder; default: a new one below runs/")]
Quiet = Annotated[bool, typer.Option("--quiet", help="no live view, only the final lines")]

RunFileOrNone = Annotated[
    Path | None, typer.Argument(metavar="FILE.toml", help="the run file, or none with --resume")
]
Resume = Annotated[
    Path | None,
    typer.Option(
        help="go on with the run in this folder from its checkpoints; --set rounds=… makes it "
        "longer",
        metavar="RUN",
    ),
]


def settings_of(
    file: Path | None, resume: Path | None, overrides: list[str], out: Path | None, mode: str
) -> tuple[RunConfig, Past | None]:
    """The run that is asked for: of a run file, or one to go on with, as FILE or --resume says.

    Raises ConfigError if both or none are given.
    """
    from p2p_dml import config

    if (file is None) == (resume is None):
        found = "none" if file is None else "both"
        raise ConfigError(
            f"{mode}: expected a run file, or --resume and the folder of a run to go on with, "
            f"found {found}"
        )
    if resume is None:
        assert file is not None
        return config.load(file, overrides), None
    if out is not None:
        raise ConfigError(f"--out {out}: a resumed run goes on in its own folder; leave it out")
    from p2p_dml.launchers import resuming

    past = resuming.read(resume, overrides, mode)
    return past.config, past
