"""The directory of a run, as a program: `p2p-dml directory`."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import ExitStack

from p2p_dml import keys
from p2p_dml.config import RunConfig
from p2p_dml.errors import ConfigError
from p2p_dml.launchers.keyring import is_encrypted
from p2p_dml.launchers.process import on_stop_signals
from p2p_dml.transports.directory import Directory
from p2p_dml.transports.relay import Relay

_TURN_S = 0.2


def serve(config: RunConfig, listen: str | None, relays: bool, say: Callable[[str], None]) -> None:
    """Answer the peers of a run until SIGINT or SIGTERM; `say` is told what happens.

    `relays`: peers that can only dial out are reached by ports above that of the directory.
    Raises ConfigError if the run file names no directory and `listen` is None, or keys are missing;
    StartupError if nobody can listen there.
    """
    address = config.transport.directory
    place = listen or (address and f"tcp://*:{address.rpartition(':')[2]}")
    if not place:
        raise ConfigError(
            "transport.directory: missing; expected where peers find this directory, such as "
            "tcp://10.0.0.1:5700"
        )
    own = None
    if is_encrypted(config, [address or place]):
        own = keys.read_for_directory(config.folder / config.transport.keys, config.peers)
    told = threading.Event()
    begin = time.monotonic()

    def tell(what: str) -> None:
        say(f"{time.monotonic() - begin:7.1f} s  {what}")

    with ExitStack() as stack:
        relay = Relay(place, address or place) if relays else None
        if relay is not None:
            stack.callback(relay.close)
        directory = Directory(place, config.peers, own, tell, relay and relay.admit)
        stack.callback(directory.close)
        state = "encrypted" if own else "not encrypted"
        tell(f"directory of {config.peers} peers at {directory.endpoint}, {state}")
        with on_stop_signals(told.set):
            while not told.is_set():
                directory.attend(_TURN_S)
