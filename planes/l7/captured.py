"""Captured connections: where they were going, and the plain relay of those that are not HTTP."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import TYPE_CHECKING

from planes.l7.dial import Way
from planes.mesh import net
from planes.mesh.metrics import Meter, Peer, Reporter
from planes.mesh.relay import Endpoint, Pipe, join

if TYPE_CHECKING:
    from planes.l7.program import L7Program
    from planes.l7.serve import Downstream


def original_destination(transport: asyncio.BaseTransport, fixed: tuple[str, int] | None) -> tuple[str, int]:
    """Before redirection; for a direct call to the proxy's port, that port."""
    if fixed is not None:
        return fixed
    held = transport.get_extra_info("socket")
    # The event loop's wrapper has getsockopt only in part; the descriptor is enough.
    sock = socket.socket(fileno=socket.dup(held.fileno()))
    try:
        return destination_of(sock)
    finally:
        sock.close()


def destination_of(sock: socket.socket) -> tuple[str, int]:
    try:
        return net.original_destination(sock)
    except OSError:
        return sock.getsockname()[:2]


def captured(
    loop: asyncio.AbstractEventLoop, serve: Callable[[asyncio.Transport], asyncio.Protocol | None]
) -> asyncio.Protocol:
    """For a listener: the protocol is chosen when the connection is there, then takes its place."""
    return _Captured(serve)


class _Captured(asyncio.Protocol):
    def __init__(self, serve: Callable[[asyncio.Transport], asyncio.Protocol | None]) -> None:
        self._serve = serve

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        chosen = self._serve(transport)  # type: ignore[arg-type]
        if chosen is None:
            transport.abort()  # type: ignore[attr-defined]
            return
        transport.set_protocol(chosen)  # type: ignore[attr-defined]
        chosen.connection_made(transport)


def pipe_to(
    program: L7Program, way: Way | None, pipes: set[Pipe], *, reporter: str, downstream: Downstream
) -> Pipe:
    """A TCP side that connects by `way` as soon as it is made, and relays."""

    def made(endpoint: Endpoint) -> None:
        pipes.add(pipe)
        if way is not None:
            program.spawn(_relay(program, pipe, way, pipes, reporter, downstream))

    pipe = Pipe(made)
    return pipe


async def _relay(
    program: L7Program, pipe: Pipe, way: Way, pipes: set[Pipe], reporter: str, downstream: Downstream
) -> None:
    local = Peer(workload=program.local)
    other = Peer(workload=downstream.workload, principal=downstream.identity or None)
    source, destination = (local, Peer()) if reporter == "source" else (other, local)
    try:
        upstream = await program.dialler.open(way, Pipe)
    except (OSError, ssl.SSLError, TimeoutError) as cause:
        program.tcp_metrics.fail(Reporter(reporter), source, destination, None, mtls=downstream.mtls)
        program.warn(f"tcp {downstream.source[0]} to {way.authority}: {cause or type(cause).__name__}")
        pipes.discard(pipe)
        discard(pipe)
        return
    meter: Meter = program.tcp_metrics.open(Reporter(reporter), source, destination, None, mtls=downstream.mtls)

    def finished(endpoint: Endpoint) -> None:
        pipes.discard(pipe)
        meter.received_bytes, meter.sent_bytes = endpoint.bytes_read, endpoint.bytes_written
        meter.close()

    assert isinstance(upstream, Pipe)
    pipe.on_done = finished
    if pipe.lost:
        upstream.drop()
        finished(pipe)
        return
    join(pipe, upstream)


def discard(pipe: Pipe) -> None:
    if not pipe.lost and pipe.transport is not None:
        pipe.transport.close()
