"""Captured connections: where they were going, and the plain relay of those that are not HTTP."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from planes.l7 import telemetry
from planes.l7.dial import Security, Way
from planes.l7.group import UNLIMITED, Group
from planes.mesh.metrics import Meter, Peer, Reporter
from planes.mesh.relay import Endpoint, Pipe, join
from planes.mesh.route import Flag
from planes.mesh.view import ServiceView

if TYPE_CHECKING:
    from planes.l7.program import L7Program
    from planes.l7.serve import Downstream


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


Peers = tuple[Peer, Peer, ServiceView | None]
"""Source, destination and service of a connection, for its metrics."""


def pipe_to(
    program: L7Program,
    way: Way | None,
    pipes: set[Pipe],
    *,
    reporter: str,
    downstream: Downstream,
    peers: Peers | None = None,
    group: Group = UNLIMITED,
) -> Pipe:
    """A TCP side that connects by `way` as soon as it is made, and relays, within the limits of its cluster's `group`.

    Without `peers` little is told of them.
    """

    def made(endpoint: Endpoint) -> None:
        pipes.add(pipe)
        if way is not None:
            program.spawn(_relay(program, pipe, way, pipes, reporter, downstream, peers, group))

    pipe = Pipe(made)
    return pipe


async def _relay(
    program: L7Program,
    pipe: Pipe,
    way: Way,
    pipes: set[Pipe],
    reporter: str,
    downstream: Downstream,
    peers: Peers | None,
    group: Group,
) -> None:
    mtls = downstream.mtls if reporter != "source" else way.security is not Security.PLAIN
    if peers is None:
        local = Peer(workload=program.local)
        other = Peer(workload=downstream.workload, principal=downstream.identity or None)
        peers = (local, Peer(), None) if reporter == "source" else (other, local, None)
    circuit = group.circuit
    try:
        if circuit is not None and not circuit.may_relay:
            circuit = None  # not counted in, so not counted out
            raise ConnectionError("as many connections as its limit allows are open already")
        if circuit is not None:
            circuit.connections += 1
        upstream = await program.dialler.open(way, Pipe, limit_s=group.connect_limit_s)
    except (OSError, ssl.SSLError, TimeoutError) as cause:
        program.tcp_metrics.fail(Reporter(reporter), *peers, mtls=mtls, flag=Flag.CONNECT)
        program.warn(f"tcp {downstream.source[0]} to {way.authority}: {cause or type(cause).__name__}")
        pipes.discard(pipe)
        discard(pipe)
        if circuit is not None:
            circuit.connections -= 1
        return
    meter: Meter = program.tcp_metrics.open(Reporter(reporter), *peers, mtls=mtls)
    began_s = program.loop.time()

    def finished(endpoint: Endpoint) -> None:
        pipes.discard(pipe)
        if circuit is not None:
            circuit.connections -= 1
        meter.received_bytes, meter.sent_bytes = endpoint.bytes_read, endpoint.bytes_written
        meter.close()
        if program.log is not None:
            line = telemetry.tcp_line(
                time_s=time.time(), received=endpoint.bytes_read, sent=endpoint.bytes_written,
                duration_ms=(program.loop.time() - began_s) * 1000, upstream=way.authority,
                downstream=downstream.source[0], peer=downstream.identity,
                service=peers[2].hostname if peers[2] is not None else "",
            )  # fmt: skip
            program.log.write(line + "\n")

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
