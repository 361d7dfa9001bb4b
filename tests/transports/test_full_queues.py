"""Whoever reads nothing for a while outlives the end of those that have filled its queue."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HANGS = """
import sys, time, zmq
from p2p_dml.transports.zeromq import Limits, ZeroMQTransport

limits = Limits(heartbeat_s=0.3, queue_messages=1, linger_s=0.0)
peer = ZeroMQTransport(0, sys.argv[1], b"d" * 16, 1, limits, lambda event: None)
context = zmq.Context()
sender = context.socket(zmq.DEALER)
sender.setsockopt(zmq.SNDTIMEO, 300)
sender.setsockopt(zmq.SNDHWM, 1)
sender.connect(peer.endpoint)
try:
    while True:
        sender.send_multipart([b"h" * 100_000])
except zmq.Again:
    print("full", flush=True)
context.destroy(linger=0)
time.sleep(0.6)  # several heartbeats
peer.close()
print("closed", flush=True)
"""


def test_a_peer_that_hangs_is_not_aborted_when_a_sender_goes(tmp_path: Path) -> None:
    """libzmq 4.3.5 aborts the process if a socket whose queue is full has heartbeats to send."""
    done = subprocess.run(
        [sys.executable, "-c", HANGS, f"ipc://{tmp_path}/0.sock"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout.split()) == (0, ["full", "closed"]), done.stderr
