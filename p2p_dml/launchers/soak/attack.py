"""A stranger at a peer's door: `python -m p2p_dml.launchers.soak.attack KIND SECONDS ENDPOINT`."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import zmq

_GARBAGE = b"\xff\x00\x01\x7fnot ZMTP\r\n" * 4096
_FRAMES = (b"\x92\xc1garbage", bytes(1 << 16))
_ELSEWHERE = "127.0.0.2"
"""Where strangers come from: another address than the peers', as it would be on a network."""


def garbage(endpoint: str, until: float) -> None:
    """Connections that say what no peer says, some of which stay silent afterwards."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    kept: list[socket.socket] = []
    while time.monotonic() < until:
        with suppress(OSError):
            line = socket.create_connection((host, int(port)), 1.0, (_ELSEWHERE, 0))
            kept.append(line)
            line.sendall(_GARBAGE[len(kept) % 64 :])
        time.sleep(0.02)
    for line in kept:
        line.close()


def flood(endpoint: str, until: float) -> None:
    """Frames of no message, as fast as the peer takes them."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as line:
        line.setsockopt(zmq.LINGER, 0)
        line.setsockopt(zmq.SNDTIMEO, 100)
        line.connect(f"tcp://{_ELSEWHERE}:0;{endpoint.removeprefix('tcp://')}")
        while time.monotonic() < until:
            with suppress(zmq.Again):
                line.send_multipart(_FRAMES)


ATTACKS: dict[str, Callable[[str, float], None]] = {"garbage": garbage, "flood": flood}

if __name__ == "__main__":
    ATTACKS[sys.argv[1]](sys.argv[3], time.monotonic() + float(sys.argv[2]))
