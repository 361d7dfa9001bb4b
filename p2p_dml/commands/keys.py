"""`p2p-dml keys`: make the keys of a run's peers, and look at them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from p2p_dml.keys import Held

app = typer.Typer(help="Keys by which peers know each other.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="where the keys are")]


@app.command()
def new(folder: Folder, peers: Annotated[int, typer.Option(min=1, help="number of peers")]) -> None:
    """Make a key pair for every peer of a run."""
    from p2p_dml import keys

    keys.create(folder, peers)
    names = [keys.secret_file(peer) for peer in (0, peers - 1)]
    print(f"{folder / keys.PUBLIC}: the public key of every peer; all hosts need it")
    print(
        f"{folder / names[0]}{f' … {names[-1]}' * (peers > 1)}: their secret keys, mode 0600; "
        "copy each to the host of its peer, and to no other:"
    )
    print(f"  scp -p {folder / keys.PUBLIC} {folder / names[0]} HOST_OF_PEER_0:…/{folder.name}/")
    print('The run file names the folder: transport.keys, "keys" if it does not.')


@app.command()
def show(folder: Folder) -> None:
    """Print the public keys in a folder, and whose secret keys are there."""
    from p2p_dml import keys

    public = keys.read_public(folder)
    held = {each.path.name: each for each in keys.held(folder)}
    table = Table("peer", Column("public key", no_wrap=True), "secret key")
    for peer, key in sorted(public.items()):
        secret = held.pop(keys.secret_file(peer), None)
        table.add_row(str(peer), Text(key), Text(_state(secret)))
    console = Console()
    console.print(table)
    for other in held.values():
        console.print(f"{other.path}: a secret key of no peer here", soft_wrap=True, markup=False)


def _state(secret: Held | None) -> str:
    if secret is None:
        return "not here"
    if secret.is_private:
        return "here"
    return f"others may read it (mode {secret.mode:04o}): chmod 600 {secret.path}"
