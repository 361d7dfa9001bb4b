"""p2p_dml: peer-to-peer training on real processes, over links that come and go."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from p2p_dml.launchers.single import Peer

__all__ = ["Peer", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    """Import `Peer` when it is asked for: most modules need only a few of its imports."""
    if name == "Peer":
        from p2p_dml.launchers.single import Peer

        return Peer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
