"""How messages are cut for the way they go."""

from __future__ import annotations

import pytest
import zmq

from p2p_dml import wire
from p2p_dml.keys import Keys, new_pair
from p2p_dml.transports._outgoing import Outgoing
from p2p_dml.transports._sockets import Limits, router

PAIRS = {peer: new_pair() for peer in (0, 1)}
KEYS = Keys(public={peer: pair.public for peer, pair in PAIRS.items()}, own=PAIRS[0])


@pytest.mark.parametrize(
    ("address", "keys", "most"),
    [
        ("tcp://127.0.0.1:5801", None, wire.MAX_NEAR_FRAME_BYTES),
        ("ipc:///tmp/p2p-dml-nobody.sock", None, wire.MAX_NEAR_FRAME_BYTES),
        ("tcp://127.0.0.1:5801", KEYS, wire.MAX_FRAME_BYTES),
        ("tcp://192.0.2.1:5801", None, wire.MAX_FRAME_BYTES),
    ],
)
def test_frames_are_long_within_a_machine_and_in_the_clear(
    address: str, keys: Keys | None, most: int
) -> None:
    with (
        zmq.Context() as context,
        router(context, Limits()) as line,
        router(context, Limits()) as pulse,
    ):
        out = Outgoing(line, pulse, 4, keys)
        out.connect(1, address)
        assert out.frame_bytes(1) == most
