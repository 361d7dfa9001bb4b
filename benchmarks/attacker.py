"""An attacker of `benchmarks.attacks`, which starts and ends it: ATTACK ENDPOINT …"""

from __future__ import annotations

import itertools
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import zmq

from p2p_dml.keys import new_pair

CROWD = 1000
GREETING = (b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0")).ljust(64, b"\0")
TEN_GB = b"\x06" + struct.pack(">Q", 10 << 30)


def _line(endpoint: str) -> socket.socket:
    host, _, port = endpoint.removeprefix("tcp://").partition(":")
    return socket.create_connection((host, int(port)), source_address=("127.0.0.2", 0))


def strangers(endpoints: Sequence[str]) -> None:
    """A thousand connections, half of them silent, and as many again when they are ended."""
    while True:
        lines = [_line(endpoint) for _, endpoint in zip(range(CROWD), itertools.cycle(endpoints))]
        for each in lines[::2]:
            with suppress(OSError):
                each.sendall(b"GET / HTTP/1.1\r\n\r\n" * 100)
        time.sleep(3.0)
        for each in lines:
            each.close()


def headers(endpoints: Sequence[str]) -> None:
    """Frames of ten gigabytes, announced a hundred times a second."""
    for endpoint in itertools.cycle(endpoints):
        with _line(endpoint) as line, suppress(OSError):
            line.sendall(GREETING + TEN_GB + bytes(1 << 16))
        time.sleep(0.01)


def other_keys(endpoints: Sequence[str]) -> None:
    """Fifty who have keys, but not those of the run; refused, they try again ten times a second."""
    context = zmq.Context()
    kept = []
    for _, endpoint in zip(range(50), itertools.cycle(endpoints)):
        line, own = context.socket(zmq.DEALER), new_pair()
        line.setsockopt(zmq.CURVE_PUBLICKEY, own.public.encode())
        line.setsockopt(zmq.CURVE_SECRETKEY, own.secret.encode())
        line.setsockopt(zmq.CURVE_SERVERKEY, own.public.encode())
        line.connect(f"tcp://127.0.0.2:0;{endpoint.removeprefix('tcp://')}")
        kept.append(line)
    while True:
        time.sleep(1.0)


ATTACKS: dict[str, Callable[[Sequence[str]], None]] = {
    "strangers": strangers,
    "headers": headers,
    "other keys": other_keys,
}

if __name__ == "__main__":
    ATTACKS[sys.argv[1]](sys.argv[2:])
