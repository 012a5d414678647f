"""Captured outbound connections (15001): decide first, move bytes after. No policy here (facts/hbone 2.1)."""

from __future__ import annotations

import ipaddress
import secrets
import ssl
from dataclasses import replace

from planes.mesh import ask, frames, net
from planes.mesh.accesslog import Direction
from planes.mesh.metrics import Reporter
from planes.mesh.pool import PoolKey
from planes.mesh.relay import Endpoint, Pipe, Tunnel, join
from planes.mesh.route import Flag
from planes.mesh.session import HboneSession
from planes.ztunnel.decisions import Local, OutboundHop
from planes.ztunnel.revocation import REASON
from planes.ztunnel.telemetry import Record, address
from planes.ztunnel.workload import WorkloadProxy

CONNECT_HINT = "maybe a NetworkPolicy is blocking the HBONE port 15008"


async def serve(proxy: WorkloadProxy, downstream: Tunnel) -> None:
    """The application's connect() has already succeeded; whatever fails from here on is seen by it as a close."""
    context = proxy.context
    source = downstream.transport.get_extra_info("peername")[:2]
    record = Record(direction=Direction.OUTBOUND, source=source, started_s=context.loop.time())
    proxy.endpoints.add(downstream)
    try:
        destination = net.captured_destination(downstream.transport, context.settings.original_destination)
        record.destination = destination
        refusal = _loop_refusal(proxy, destination)
        local = proxy.local
        if refusal is None and local is None:
            refusal = f"workload {proxy.namespace}/{proxy.name} is unknown; rejected"
        if refusal is not None or local is None:
            context.telemetry.failed(record, refusal or "")
            _discard(proxy, downstream)
            return
        record.source_identity = local.identity
        record.source_workload = context.decisions.workload(proxy.namespace, proxy.name)
        hop = context.decisions.hop(proxy.namespace, proxy.name, destination, draw := context.draw())
        if hop.unresolved:
            hop = await _resolved(proxy, hop, destination, draw)
        record.destination_workload, record.service, record.decided = hop.destination, hop.service, True
        if hop.kind == "refuse":
            context.telemetry.failed(record, hop.reason, hop.flag)
            _discard(proxy, downstream)
        elif hop.kind == "tcp":
            await _plain(proxy, downstream, hop, record)
        else:
            await _hbone(proxy, downstream, local, hop, record)
    except (OSError, ssl.SSLError, TimeoutError, ConnectionError) as cause:
        text = str(cause) or type(cause).__name__
        context.telemetry.failed(record, text, Flag.CERT_REVOKED if text.endswith(REASON) else Flag.CONNECT)
        _discard(proxy, downstream)
    except BaseException:
        _discard(proxy, downstream)
        raise


def _loop_refusal(proxy: WorkloadProxy, destination: tuple[str, int]) -> str | None:
    settings = proxy.context.settings
    loopback = settings.original_destination is None and ipaddress.ip_address(destination[0]).is_loopback
    own = settings.original_destination is None and destination[1] == settings.ports.outbound
    if destination[1] in settings.ports.illegal and (loopback or own):
        return f"loop: {destination[0]}:{destination[1]} is a port of the proxy itself"
    return None


async def _resolved(
    proxy: WorkloadProxy, hop: OutboundHop, destination: tuple[str, int], draw: float
) -> OutboundHop:
    """The hop once the host names that it needs are addresses; a view that changes meanwhile may need another one."""
    context, names = proxy.context, dict[str, tuple[str, ...]]()
    while hop.unresolved and len(names) < 3:
        name = hop.unresolved
        answer = await context.resolver.lookup(name)
        names[name] = answer.addresses
        hop = context.decisions.hop(proxy.namespace, proxy.name, destination, draw, names)
        if not answer.addresses and hop.kind == "refuse":
            return replace(hop, reason=f"{hop.reason}: {answer.reason}")
    return hop


def _discard(proxy: WorkloadProxy, downstream: Endpoint) -> None:
    proxy.endpoints.discard(downstream)
    if not downstream.lost:
        downstream.transport.close()


def _finished(proxy: WorkloadProxy, downstream: Endpoint, record: Record) -> None:
    proxy.endpoints.discard(downstream)
    proxy.context.telemetry.closed(record, downstream.error)


async def _plain(proxy: WorkloadProxy, downstream: Tunnel, hop: OutboundHop, record: Record) -> None:
    """Not in the mesh, or an endpoint that does not speak HBONE: original bytes, untouched."""
    record.dialled = hop.dial
    pipe = Pipe()
    pipe.transport, pipe._read_blocked, pipe._early = downstream.transport, downstream._read_blocked, downstream._early
    pipe.eof_read, pipe.lost = downstream.eof_read, downstream.lost
    downstream.transport.set_protocol(pipe)
    proxy.endpoints.discard(downstream)
    proxy.endpoints.add(pipe)
    try:
        upstream = await net.connect(proxy.context.loop, Pipe, proxy.upstream(hop.dial), hop.dial)
    except BaseException:
        _discard(proxy, pipe)
        raise
    proxy.context.telemetry.opened(record, pipe)
    pipe.on_done = lambda endpoint: _finished(proxy, endpoint, record)
    join(pipe, upstream)


async def _hbone(
    proxy: WorkloadProxy, downstream: Tunnel, local: Local, hop: OutboundHop, record: Record
) -> None:
    context = proxy.context
    record.dialled, record.authority = hop.dial, hop.authority
    key = PoolKey(
        source_identity=local.identity,
        expected=hop.expected,
        destination=hop.dial,
        source_ip=record.source[0],
    )
    session = await proxy.pool.checkout(key, lambda: _open_session(proxy, local, hop), context.loop.time)
    record.mtls = True
    record.destination_identity = next((u for u in session.peer_uris if u in hop.expected), "")
    stream, answer = ask.ask(session, _connect_block(proxy, hop, record))
    downstream.join(session, stream)
    # A refusal may be followed by RST_STREAM in one read, and the reset is heard first: the status must win.
    downstream.stream_reset_early = lambda code: context.loop.call_soon(
        lambda: answer.done() or answer.set_result(-1 - code)
    )
    status = await answer
    downstream.stream_reset_early = None
    if status != 200:
        reason = f"http status: {status}" if status > 0 else f"stream reset: {frames.error_name(-1 - status)}"
        context.telemetry.failed(record, reason, Flag.CONNECT)
        downstream.stream_over = True
        if stream.id in session.connection.streams:
            session.connection.reset(stream)
            session.schedule()
        session.stream_done()
        _discard(proxy, downstream)
        return
    context.telemetry.opened(record, downstream)
    if downstream.lost:
        downstream.forward_loss()
        _finished(proxy, downstream, record)
        return
    downstream.on_done = lambda endpoint: _finished(proxy, endpoint, record)
    downstream.start()
    if downstream.stream_over:  # reset in the same read as its 200: nobody will tell the TCP side again
        downstream.transport.close()


def _connect_block(proxy: WorkloadProxy, hop: OutboundHop, record: Record) -> bytes:
    """facts/hbone 1.3, in ztunnel's order."""
    forwarded = f'for="{address(record.source)}"' + (f";host={hop.service.hostname}" if hop.service else "")
    record.trace = f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-00"
    return ask.block(hop.authority, proxy.context.decisions.baggage(proxy.namespace, proxy.name)) + (
        frames.encode_fields(((b"forwarded", forwarded.encode()), (b"traceparent", record.trace.encode())))
    )


async def _open_session(proxy: WorkloadProxy, local: Local, hop: OutboundHop) -> HboneSession:
    context, revocation = proxy.context.certificates.fetch(local.identity).client, proxy.context.revocation

    def revoked(certificate: bytes) -> str | None:
        if revocation is None or not revocation.refuses(certificate):
            return None
        revocation.rejected[Reporter.SOURCE] += 1
        return REASON

    try:
        return await ask.open_session(
            proxy.context.loop, proxy.upstream(hop.dial), hop.dial, context, expected=hop.expected,
            sessions=proxy.sessions, revoked=revoked if revocation is not None else None,
        )  # fmt: skip
    except TimeoutError as cause:
        raise ConnectionError(f"connect to {hop.dial[0]}:{hop.dial[1]} timed out; {CONNECT_HINT}") from cause
