"""Sockets as a proxy needs them: made inside another network namespace, marked, transparent; and the event loop.

A socket belongs for ever to the namespace it was made in, so the thread enters, calls socket(2) and returns at once.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import socket
import ssl
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from testbed.errors import MachineError

IP_TRANSPARENT = 19
IP_FREEBIND = 15
SO_ORIGINAL_DST = 80
MARK = 0x539
BACKLOG = 128
CONNECT_TIMEOUT_S = 10.0
_CLONE_NEWNET = 0x40000000
_libc: ctypes.CDLL | None = None


def _setns(fd: int) -> None:
    global _libc
    if _libc is None:
        _libc = ctypes.CDLL(None, use_errno=True)
    if _libc.setns(fd, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise MachineError(f"setns: {os.strerror(number)}; entering a workload's namespace needs CAP_SYS_ADMIN")


_own_netns: int | None = None


@contextmanager
def inside(netns: int | None) -> Iterator[None]:
    """The calling thread is in `netns` for the length of the block; None stays. Nothing may be awaited within."""
    global _own_netns
    if netns is None:
        yield
        return
    if _own_netns is None:
        _own_netns = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    _setns(netns)
    try:
        yield
    finally:
        _setns(_own_netns)


def _family(address: str) -> int:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _tcp_socket(address: str, netns: int | None) -> socket.socket:
    """Without Nagle: its wait for the peer's delayed ACK adds up to 40 ms to a reply.

    The option stands on the socket itself, so what a listener accepts inherits it; and the protocol is written out, for
    asyncio's transports and aiofastnet's switch Nagle off only where `sock.proto` says TCP, which 0 does not.
    """
    with inside(netns):
        sock = socket.socket(_family(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK, socket.IPPROTO_TCP)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def listen(
    address: str, port: int, *, netns: int | None = None, mark: int | None = None, transparent: bool = False
) -> socket.socket:
    """A listening socket. `transparent` is best effort, as in ztunnel: without the right it stays an ordinary one."""
    sock = _tcp_socket(address, netns)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # an old and a new proxy overlap at a hand-over
        if mark is not None:
            _try_option(sock, socket.SOL_SOCKET, socket.SO_MARK, mark)
        if transparent:
            _try_option(sock, socket.SOL_IP, IP_TRANSPARENT, 1)
        sock.bind((address, port))
        sock.listen(BACKLOG)
    except OSError as cause:
        sock.close()
        raise MachineError(f"cannot listen on {address}:{port}: {cause.strerror}") from cause
    return sock


def upstream(
    destination: tuple[str, int], *, netns: int | None = None, mark: int | None = None, source: str | None = None
) -> socket.socket:
    """An unconnected socket towards `destination`; `source` spoofs the client's address, best effort (facts 1.11)."""
    sock = _tcp_socket(destination[0], netns)
    for option, value in ((socket.TCP_KEEPIDLE, 180), (socket.TCP_KEEPINTVL, 180), (socket.TCP_KEEPCNT, 9)):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if mark is not None:
        _try_option(sock, socket.SOL_SOCKET, socket.SO_MARK, mark)
    spoof = source is not None and source != destination[0] and _family(source) == sock.family
    if spoof and _try_option(sock, socket.SOL_IP, IP_TRANSPARENT, 1) and _try_option(sock, 0, IP_FREEBIND, 1):
        try:
            sock.bind((source, 0))
        except OSError:
            pass
    return sock


def must_mark(mark: int) -> None:
    """Raises MachineError where sockets cannot be marked: for who would capture its own connections then."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        if not _try_option(sock, socket.SOL_SOCKET, socket.SO_MARK, mark):
            raise MachineError("sockets cannot be marked here; it needs CAP_NET_RAW, before Linux 5.17 CAP_NET_ADMIN")


def _try_option(sock: socket.socket, level: int, option: int, value: int) -> bool:
    try:
        sock.setsockopt(level, option, value)
    except OSError:
        return False
    return True


def original_destination(sock: socket.socket) -> tuple[str, int]:
    """Where a redirected connection was going before REDIRECT. Raises OSError when it was not redirected."""
    if sock.family == socket.AF_INET6:
        raw = sock.getsockopt(socket.IPPROTO_IPV6, SO_ORIGINAL_DST, 28)
        return socket.inet_ntop(socket.AF_INET6, raw[8:24]), struct.unpack_from(">H", raw, 2)[0]
    raw = sock.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
    return socket.inet_ntoa(raw[4:8]), struct.unpack_from(">H", raw, 2)[0]


def destination_of(sock: socket.socket) -> tuple[str, int]:
    """Before redirection; for a direct call to the proxy's port, that port."""
    try:
        return original_destination(sock)
    except OSError:
        return sock.getsockname()[:2]


def captured_destination(transport: asyncio.BaseTransport, fixed: tuple[str, int] | None) -> tuple[str, int]:
    """Where a captured connection was going, or `fixed`."""
    if fixed is not None:
        return fixed
    held = transport.get_extra_info("socket")
    # The event loop's wrapper has getsockopt only in part; the descriptor is enough.
    sock = socket.socket(fileno=socket.dup(held.fileno()))
    try:
        return destination_of(sock)
    finally:
        sock.close()


def new_loop() -> asyncio.AbstractEventLoop:
    """uvloop where it is installed, else asyncio with reads that malloc need not map and unmap each time."""
    try:
        import uvloop
    except ImportError:
        from asyncio import selector_events

        # asyncio reads 256 KiB at a time, which malloc maps and unmaps: measured, 42 µs a round trip and not 11.
        selector_events._SelectorTransport.max_size = 65536  # type: ignore[attr-defined]
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


try:
    import aiofastnet as _fast

    # Its public create_connection insists on a host name to send or to check, and refuses an empty one; mesh TLS has
    # neither (no SNI, SPIFFE instead of names). One level below, None means just that.
    from aiofastnet.api_utils import _create_connection_transport as _fast_connect
except ImportError:
    _fast = None
    _fast_connect = None

WRITES_COPY = _fast is not None
"""Our TLS transports copy what they cannot write at once: a buffer is free on return. The stdlib's keep it."""
_BIO_BYTES = 16 * (16 * 1024 + 64)
"""TLS buffers per direction: sixteen records, so that bulk takes few system calls."""

ProtocolFactory = Callable[[], asyncio.BaseProtocol]
ACCEPT_AGAIN_S = 0.1


async def serve(
    loop: asyncio.AbstractEventLoop,
    factory: ProtocolFactory,
    sock: socket.socket,
    context: ssl.SSLContext | None = None,
) -> asyncio.AbstractServer:
    if context is None:
        return await loop.create_server(factory, sock=sock, backlog=BACKLOG)
    if _fast is None:
        return await loop.create_server(factory, sock=sock, ssl=context, backlog=BACKLOG, ssl_handshake_timeout=10)
    return await _fast.create_server(
        loop, factory, sock=sock, ssl=context, backlog=BACKLOG, ssl_handshake_timeout=10, ssl_shutdown_timeout=2,
        ssl_incoming_bio_size=_BIO_BYTES, ssl_outgoing_bio_size=_BIO_BYTES,
    )  # fmt: skip


class SecuredListener:
    """Accepts from a listening socket (taken over); each handshake is by the `context` of that moment.

    To renew is to set another context. A second server on a duplicate of the socket instead would lose what the first
    one accepted in the turn of the loop in which it is closed: event loops refuse to attach that.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, factory: ProtocolFactory, sock: socket.socket, context: ssl.SSLContext
    ) -> None:
        self.context = context
        self._loop, self._factory, self._sock = loop, factory, sock
        self._tasks: set[asyncio.Task[None]] = set()
        self._paused: asyncio.TimerHandle | None = None
        sock.setblocking(False)
        loop.add_reader(sock.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(BACKLOG):
            try:
                accepted, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:  # no descriptor is left: whoever waits in the backlog is served once there is one
                self._loop.remove_reader(self._sock.fileno())
                self._paused = self._loop.call_later(ACCEPT_AGAIN_S, self._resume)
                return
            task = self._loop.create_task(self._shake(accepted))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _resume(self) -> None:
        self._loop.add_reader(self._sock.fileno(), self._accept)

    async def _shake(self, accepted: socket.socket) -> None:
        try:
            accepted.setblocking(False)
            await adopt(self._loop, self._factory, accepted, self.context)
        except (OSError, TimeoutError):
            pass  # a client that does not shake hands; ssl.SSLError is an OSError

    def close(self) -> None:
        if self._paused is not None:
            self._paused.cancel()
        self._loop.remove_reader(self._sock.fileno())
        self._sock.close()


async def connect(
    loop: asyncio.AbstractEventLoop,
    factory: ProtocolFactory,
    sock: socket.socket,
    destination: tuple[str, int],
    context: ssl.SSLContext | None = None,
    *,
    timeout_s: float = CONNECT_TIMEOUT_S,
    server_name: str | None = None,
) -> asyncio.BaseProtocol:
    """Connects `sock` (taken over) and, with a context, shakes hands; raises OSError, ssl.SSLError or TimeoutError.

    `server_name` is sent as SNI.
    """
    try:
        async with asyncio.timeout(timeout_s):
            await loop.sock_connect(sock, destination)
            if context is None:
                _, protocol = await loop.create_connection(factory, sock=sock)
            elif _fast_connect is None:
                _, protocol = await loop.create_connection(
                    factory, sock=sock, ssl=context, server_hostname=server_name or ""
                )
            else:
                _, protocol = await _fast_connect(
                    loop, sock, factory, context, server_name, ssl_handshake_timeout=timeout_s,
                    ssl_shutdown_timeout=2.0, ssl_incoming_bio_size=_BIO_BYTES, ssl_outgoing_bio_size=_BIO_BYTES,
                )  # fmt: skip
    except BaseException:
        sock.close()
        raise
    return protocol


def resume_reading(loop: asyncio.AbstractEventLoop, transport: asyncio.ReadTransport) -> None:
    """As the method, and what a TLS transport had already taken off its socket comes, too.

    aiofastnet (1.2.0) looks at its own buffer only when the socket has more: a client's first bytes that came with the
    end of its handshake, while reading was paused, would wait for ever.
    """
    transport.resume_reading()
    look = getattr(transport, "_retry_ssl_read", None)
    if look is not None:
        loop.call_soon(look)


async def adopt(
    loop: asyncio.AbstractEventLoop,
    factory: ProtocolFactory,
    sock: socket.socket,
    context: ssl.SSLContext | None = None,
) -> asyncio.BaseProtocol:
    """An accepted socket (taken over) becomes a connection, with a context after its handshake as the server."""
    try:
        if context is None or _fast is None:
            _, protocol = await loop.connect_accepted_socket(factory, sock=sock, ssl=context)
        else:
            _, protocol = await _fast.connect_accepted_socket(
                loop, factory, sock, ssl=context, ssl_handshake_timeout=10, ssl_shutdown_timeout=2,
                ssl_incoming_bio_size=_BIO_BYTES, ssl_outgoing_bio_size=_BIO_BYTES,
            )  # fmt: skip
    except BaseException:
        sock.close()
        raise
    return protocol
