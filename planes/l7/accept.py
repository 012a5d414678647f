"""Connections whose first bytes decide what serves them: raw sockets (TLS or not?), and streams (which HTTP, or none?).

A socket's bytes are looked at without being taken (MSG_PEEK), so that a TLS library still finds its ClientHello there.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from planes.l7.detect import Detected, detect

PEEK_BYTES = 16 << 10
ACCEPTED_PER_TURN = 64
PAUSE_S = 0.1
"""Out of descriptors: the socket stays readable, so asking again at once would be all the process does."""


class Acceptor:
    """A listening socket: each accepted one goes to `on_socket`."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, listening: socket.socket, on_socket: Callable[[socket.socket], None]
    ) -> None:
        self._loop, self._listening, self._on_socket = loop, listening, on_socket
        self._listen()

    def _accept(self) -> None:
        for _ in range(ACCEPTED_PER_TURN):
            try:
                sock, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue  # it ended while it waited
            except OSError:
                self._loop.remove_reader(self._listening.fileno())
                self._loop.call_later(PAUSE_S, self._listen)
                return
            sock.setblocking(False)
            self._on_socket(sock)

    def _listen(self) -> None:
        if self._listening.fileno() >= 0:
            self._loop.add_reader(self._listening.fileno(), self._accept)

    def close(self) -> None:
        if self._listening.fileno() >= 0:
            self._accept()  # who is connected already has been promised an answer
            self._loop.remove_reader(self._listening.fileno())
            self._listening.close()


async def first_bytes(
    loop: asyncio.AbstractEventLoop, sock: socket.socket, *, limit_s: float | None
) -> tuple[Detected, bytes]:
    """What the client's first bytes look like, still unread on `sock`. Waits until that is known, or `limit_s` is over.

    Raises ConnectionError when the client ends before.
    """
    started_s = loop.time()
    seen = -1
    while True:
        try:
            data = sock.recv(PEEK_BYTES, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            data = None
        if data == b"":
            raise ConnectionError("the client ended before its first byte")
        if data is not None and len(data) != seen:
            found = detect(data, waited_s=loop.time() - started_s, limit_s=limit_s)
            if found is not None or len(data) == PEEK_BYTES:
                return found or Detected.TCP, data
            seen = len(data)
        elif data is not None:
            return Detected.TCP, data  # readable without a further byte: its end
        left_s = None if limit_s is None else limit_s - (loop.time() - started_s)
        if left_s is not None and left_s <= 0:
            return Detected.TCP, data or b""
        # Unread bytes keep a socket readable; with this one is not until there are more of them, or its end. (Looking
        # again each millisecond, as this once did, a thousand clients of one byte each took the whole processor.)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, len(data or b"") + 1)
        await _readable(loop, sock, left_s)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


async def _readable(loop: asyncio.AbstractEventLoop, sock: socket.socket, limit_s: float | None) -> None:
    ready = loop.create_future()
    fd = sock.fileno()
    loop.add_reader(fd, lambda: ready.done() or ready.set_result(None))
    try:
        await asyncio.wait_for(ready, limit_s)
    except TimeoutError:
        return
    finally:
        loop.remove_reader(fd)


class Detecting(asyncio.Protocol):
    """Holds a stream until its first bytes tell what it is, then hands it over, bytes and all.

    `serve(detected)` makes the protocol that goes on. With `limit_s` a silent client is taken for one whose server
    speaks first.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        serve: Callable[[Detected, asyncio.Transport], asyncio.Protocol | None],
        *,
        limit_s: float | None = None,
    ) -> None:
        self._loop, self._serve, self._limit_s = loop, serve, limit_s
        self._held = b""
        self._timer: asyncio.TimerHandle | None = None
        self.transport: asyncio.Transport = None  # type: ignore[assignment]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        if self._limit_s is not None:
            self._timer = self._loop.call_later(self._limit_s, self._hand_over, Detected.TCP)

    def data_received(self, data: bytes) -> None:
        self._held = self._held + data if self._held else data
        found = detect(self._held)
        if found is not None:
            self._hand_over(found)

    def eof_received(self) -> bool:
        if self._held:
            self._hand_over(Detected.TCP)
            self.transport.get_protocol().eof_received()  # type: ignore[attr-defined]
            return True
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _hand_over(self, found: Detected) -> None:
        if self._timer is not None:
            self._timer.cancel()
        protocol = self._serve(found, self.transport)
        if protocol is None:
            self.transport.abort()
            return
        self.transport.set_protocol(protocol)
        protocol.connection_made(self.transport)
        if self._held:
            protocol.data_received(self._held)
