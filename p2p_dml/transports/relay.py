"""A relay: how others reach a peer that can only dial out, behind a NAT or a firewall.

The peer keeps a few connections to the relay open. Whoever connects to the peer's port at the relay
is joined with one of them, and the peer joins that with the socket it listens on. Nobody else
notices: to the others the relay's port is the peer's address. What passes is what the peers say,
encrypted between them where the run is; the relay holds no key to it.
"""

from __future__ import annotations

import asyncio
import functools
import secrets
import socket
import threading
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from typing import Any, final

from p2p_dml.addresses import host_and_port, is_wildcard
from p2p_dml.errors import StartupError
from p2p_dml.types import PeerId

_TOKEN_BYTES = 32
_SPARE = 2
"""Connections that a peer keeps open for whoever comes next."""

_CHUNK_BYTES = 1 << 18
_PATIENCE_S = 10.0
_AGAIN_S = 1.0

_GO = b"\x01"
_GONE = (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError)
_KEEP_ALIVE = {socket.TCP_KEEPIDLE: 15, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}

Place = tuple[str, int]
"""Host and port."""

Ends = tuple[StreamReader, StreamWriter]
Act = Callable[[Ends], Coroutine[Any, Any, None]]


class _Loop:
    """An event loop in a thread of its own, with everything that runs on it."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._held: list[Future[None]] = []
        self._listeners: list[socket.socket] = []
        self._writers: set[StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def start(self, act: Coroutine[Any, Any, None]) -> None:
        """Run beside this thread."""
        # The loop itself forgets tasks that nobody holds.
        self._held.append(asyncio.run_coroutine_threadsafe(act, self._loop))

    def listen(self, listener: socket.socket, act: Act) -> None:
        """Have `act` see to each connection that is made."""
        self._listeners.append(listener)
        self._loop.call_soon_threadsafe(
            self._loop.add_reader, listener, self._accept, listener, act
        )

    def _accept(self, listener: socket.socket, act: Act) -> None:
        # By hand: what asyncio's own servers accept while they are being closed is never closed.
        with suppress(OSError):  # gone already, or no descriptors left
            connection, _ = listener.accept()
            task = self._loop.create_task(self._see_to(connection, act))
            self._tasks.add(task)
            task.add_done_callback(functools.partial(self._seen_to, connection))

    def _seen_to(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():  # perhaps before it began
            connection.close()

    async def _see_to(self, connection: socket.socket, act: Act) -> None:
        ends = await asyncio.open_connection(sock=connection)
        self.opened(ends[1])
        await act(ends)

    def opened(self, writer: StreamWriter) -> None:
        """A connection to be closed in the end, if it is not before."""
        self._writers = {each for each in self._writers if not each.is_closing()} | {writer}

    def close(self) -> None:
        """End all that runs; idempotent."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        for listener in self._listeners:
            self._loop.remove_reader(listener)
            listener.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        await _settle()


async def _settle() -> None:
    """Let the loop finish with connections that are being closed, which takes a few turns."""
    for _ in range(5):
        await asyncio.sleep(0)


@final
class Relay:
    """The end that others connect to, next to a directory at port p.

    The relayed connect to port p + 1, who wants to peer i to p + 2 + i.
    """

    def __init__(self, listen: str, address: str) -> None:
        """`listen`: where the directory listens; `address`: as peers know it.

        Raises StartupError if the port is taken.
        """
        host, port = host_and_port(listen)
        self._host = "" if is_wildcard(listen) else host
        self._name = host_and_port(address)[0]
        self.port = port + 1
        self._tokens: dict[PeerId, str] = {}
        self._waiting: dict[bytes, asyncio.Queue[Ends]] = {}
        self._loop = _Loop("relay")
        self._listen(self._on_relayed, self.port)

    def admit(self, peer: PeerId) -> tuple[str, str]:
        """Where others reach `peer` from now on, and the ticket with which it is relayed.

        Asked again, the same. Raises StartupError if the port is taken.
        """
        port = self.port + 1 + peer
        if peer not in self._tokens:
            token = secrets.token_bytes(_TOKEN_BYTES)
            queue: asyncio.Queue[Ends] = asyncio.Queue()
            self._listen(functools.partial(self._on_visitor, queue), port)
            self._waiting[token] = queue
            self._tokens[peer] = token.hex()
        host = f"[{self._name}]" if ":" in self._name else self._name
        return f"tcp://{host}:{port}", f"{self.port} {self._tokens[peer]}"

    def _listen(self, act: Act, port: int) -> None:
        try:
            listener = _listener(self._host, port)
        except OSError as error:
            self.close()
            raise StartupError(f"relay: cannot listen on port {port}: {error.strerror}") from error
        self._loop.listen(listener, act)

    async def _on_relayed(self, ends: Ends) -> None:
        """A relayed peer has opened a connection for whoever comes next."""
        reader, writer = ends
        with suppress(KeyError, *_GONE), _closing(writer):
            token = await asyncio.wait_for(reader.readexactly(_TOKEN_BYTES), _PATIENCE_S)
            self._waiting[token].put_nowait(ends)

    async def _on_visitor(self, waiting: asyncio.Queue[Ends], visitor: Ends) -> None:
        """Somebody wants to a relayed peer."""
        with suppress(*_GONE), _closing(visitor[1]):
            while True:
                reader, writer = await asyncio.wait_for(waiting.get(), _PATIENCE_S)
                if not reader.at_eof():
                    break
                writer.close()
            writer.write(_GO)
            await _join(visitor, (reader, writer))

    def close(self) -> None:
        """End all connections; idempotent."""
        self._loop.close()


@final
class Relayed:
    """The end of a relayed peer: its connections to the relay, and on to where it listens."""

    def __init__(self, directory: str, ticket: str, endpoint: str) -> None:
        """`directory`: as the peer knows it; `ticket`: as `Relay.admit` gave it.

        `endpoint`: where the peer listens.
        """
        port, _, token = ticket.partition(" ")
        self._relay = host_and_port(directory)[0], int(port)
        self._token = bytes.fromhex(token)
        host, own = host_and_port(endpoint)
        self._own = ("127.0.0.1" if is_wildcard(endpoint) else host), own
        self._joined: set[asyncio.Task[None]] = set()
        self._loop = _Loop("relayed")
        for _ in range(_SPARE):
            self._loop.start(self._keep_one_open())

    async def _keep_one_open(self) -> None:
        while True:
            try:
                await self._await_visitor()
            except _GONE:
                await asyncio.sleep(_AGAIN_S)  # the relay is gone; it may come back

    async def _connect(self, place: Place) -> Ends:
        ends = await asyncio.open_connection(*place)
        self._loop.opened(ends[1])
        return ends

    async def _await_visitor(self) -> None:
        outside = await self._connect(self._relay)
        with _closing(outside[1]):
            _keep_alive(outside[1])
            outside[1].write(self._token)
            await outside[0].readexactly(len(_GO))
            inside = await self._connect(self._own)
        task = asyncio.create_task(_join(outside, inside))
        self._joined.add(task)
        task.add_done_callback(self._joined.discard)

    def close(self) -> None:
        """End all connections; idempotent."""
        self._loop.close()


def _listener(host: str, port: int) -> socket.socket:
    """A socket that takes connections, on all addresses of both kinds if `host` is empty."""
    both = not host and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, dualstack_ipv6=both)
    listener.setblocking(False)
    return listener


@contextmanager
def _closing(writer: StreamWriter) -> Iterator[None]:
    """Close a connection whatever goes wrong with it."""
    try:
        yield
    except BaseException:
        writer.close()
        raise


def _keep_alive(writer: StreamWriter) -> None:
    """Have the kernel find out that nobody is there any more: a NAT forgets silent connections."""
    line = writer.get_extra_info("socket")
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEP_ALIVE.items():
        line.setsockopt(socket.IPPROTO_TCP, option, value)


async def _join(a: Ends, b: Ends) -> None:
    """Pass on what comes at either end until one is closed; then both are."""
    writers = a[1], b[1]
    both = [asyncio.create_task(_pass_on(*ends)) for ends in ((a[0], b[1]), (b[0], a[1]))]
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for writer in writers:
            writer.close()
        closing = [asyncio.create_task(_closed(writer)) for writer in writers]
        await asyncio.wait(closing, timeout=_PATIENCE_S)
    finally:
        for task in both:
            task.cancel()
        for writer in writers:
            writer.transport.abort()


async def _closed(writer: StreamWriter) -> None:
    with suppress(OSError):
        await writer.wait_closed()


async def _pass_on(reader: StreamReader, writer: StreamWriter) -> None:
    with suppress(OSError):
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
