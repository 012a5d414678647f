"""HBONE in (15008): everything that may fail happens before the 200, in ztunnel's order (facts/hbone 2.4)."""

from __future__ import annotations

import ssl

from planes.mesh import baggage, frames, net, proxyprotocol, tls
from planes.mesh.accesslog import Direction
from planes.mesh.hbone import RequestReceived, Stream
from planes.mesh.metrics import Reporter
from planes.mesh.relay import Endpoint, Tunnel
from planes.mesh.route import Flag
from planes.mesh.session import HboneSession
from planes.ztunnel.decisions import InboundTarget
from planes.ztunnel.revocation import REASON
from planes.ztunnel.telemetry import Record
from planes.ztunnel.workload import LiveConnection, WorkloadProxy


def session(proxy: WorkloadProxy) -> HboneSession:
    """A protocol for one accepted connection. TLS-level failures never get an HTTP status."""
    local = proxy.local
    own_domain = tls.trust_domain(local.identity) if local is not None else ""
    revocation = proxy.context.revocation

    def refusal_of(uris: tuple[str, ...]) -> str | None:
        refusal = tls.server_refusal(uris, own_domain)
        if refusal is not None:
            failed(refusal, Flag.TLS_FAILURE)
        return refusal

    def failed(refusal: str, flag: Flag) -> None:
        record = Record(direction=Direction.INBOUND, source=made.peer_address, started_s=proxy.context.loop.time())
        record.destination = made.local_address
        proxy.context.telemetry.failed(record, f"tls: {refusal}", flag)

    def revoked(certificate: bytes) -> str | None:
        if revocation is None or not revocation.refuses(certificate):
            return None
        revocation.rejected[Reporter.DESTINATION] += 1
        failed(REASON, Flag.CERT_REVOKED)
        return REASON

    made = HboneSession(
        proxy.context.loop,
        client=False,
        refusal_of=refusal_of,
        on_request=lambda held, event: _begin(proxy, held, event),
        on_ready=proxy.sessions.add,
        on_closed=proxy.sessions.discard,
        revoked=revoked if revocation is not None else None,
    )
    return made


def _begin(proxy: WorkloadProxy, held: HboneSession, event: RequestReceived) -> None:
    """At once, for DATA may stand right behind the request: an eager client's bytes wait in the tunnel for the 200."""
    tunnel = Tunnel()
    tunnel.join(held, event.stream)
    proxy.endpoints.add(tunnel)
    proxy.spawn(serve(proxy, held, event, tunnel))


async def serve(proxy: WorkloadProxy, held: HboneSession, event: RequestReceived, tunnel: Tunnel) -> None:
    context = proxy.context
    stream, fields = event.stream, dict(event.fields)
    authority = fields.get(b":authority", b"").decode("latin-1")
    record = Record(
        direction=Direction.INBOUND, source=held.peer_address, started_s=context.loop.time(), mtls=True,
        destination=held.local_address, authority=authority, reads_requests=False,
    )  # fmt: skip
    record.trace = fields.get(b"traceparent", b"").decode("latin-1")
    record.source_identity = next((uri for uri in held.peer_uris if tls.trust_domain(uri)), "")
    _name_peers(proxy, record, fields)
    gone: list[int] = []
    tunnel.stream_reset_early = gone.append
    try:
        target, flag = _judge(proxy, held, fields, authority, record)
        status, reason = target.status, target.reason
        if status == 200:
            address, kept = held.local_address[0], record.source[0]
            if target.proxy_target is not None:  # by loopback, so that nobody reaches the application past its proxy
                address = kept = "::1" if ":" in address else "127.0.0.1"
            try:
                record.dialled = destination = proxy.destination(address, target.port)
                await net.connect(context.loop, lambda: tunnel, proxy.upstream(destination, kept), destination)
            except (OSError, ssl.SSLError) as cause:
                status, flag = 503, Flag.CONNECT
                reason = f"connect to {address}:{target.port}: {cause or type(cause).__name__}"
        if status != 200:
            context.telemetry.failed(record, reason, flag)
            _refuse(proxy, held, stream, tunnel, status)
            return
    except BaseException:
        _refuse(proxy, held, stream, tunnel, 503)
        raise
    tunnel.stream_reset_early = None
    if gone or held.closed:
        context.telemetry.failed(record, "downstream went away before the 200")
        proxy.endpoints.discard(tunnel)
        tunnel.drop()
        return
    _go_on(proxy, held, tunnel, target, record)


def _go_on(proxy: WorkloadProxy, held: HboneSession, tunnel: Tunnel, target: InboundTarget, record: Record) -> None:
    context, stream, port = proxy.context, tunnel.stream, target.port
    live = LiveConnection(record.source[0], port, record.source_identity or None, lambda: _cut(tunnel))
    proxy.live.add(live)
    # Asked again after registration: a policy that came during the connect must not be missed (facts/hbone 2.6).
    verdict = context.decisions.verdict(proxy.namespace, proxy.name, live.source_ip, port, live.identity)
    if not verdict.allowed:
        proxy.live.discard(live)
        context.telemetry.failed(record, verdict.reason, Flag.DENY)
        _refuse(proxy, held, stream, tunnel, 401)
        return
    own = context.decisions.baggage(proxy.namespace, proxy.name)
    held.connection.respond(stream, 200, ((b"baggage", own.encode()),) if own else ())
    context.telemetry.opened(record, tunnel)

    def finished(endpoint: Endpoint) -> None:
        proxy.live.discard(live)
        proxy.endpoints.discard(endpoint)
        context.telemetry.closed(record, endpoint.error)

    tunnel.on_done = finished
    if target.proxy_target is not None:
        tunnel.transport.write(proxyprotocol.header(record.source, target.proxy_target, record.source_identity))
    tunnel.start()
    held.schedule()


def _name_peers(proxy: WorkloadProxy, record: Record, fields: dict[bytes, bytes]) -> None:
    """For telemetry. An address the view does not know, or knows as another's, leaves what the peer says of itself."""
    decisions = proxy.context.decisions
    record.decided = True
    record.destination_workload = local = decisions.workload(proxy.namespace, proxy.name)
    record.destination_identity = str(local.identity) if local is not None else ""
    record.source_workload = decisions.source(
        proxy.namespace, proxy.name, record.source[0], record.source_identity
    )
    told = fields.get(b"baggage")
    if record.source_workload is None and told:
        record.source_baggage = baggage.parse(told.decode("latin-1"))


def _judge(
    proxy: WorkloadProxy, held: HboneSession, fields: dict[bytes, bytes], authority: str, record: Record
) -> tuple[InboundTarget, Flag]:
    """What is known before any upstream connection is tried."""
    decisions = proxy.context.decisions
    if fields.get(b":method") != b"CONNECT":
        return InboundTarget(status=400, reason="method is not CONNECT"), Flag.NONE
    if proxy.local is None:
        unknown = f"workload {proxy.namespace}/{proxy.name} is unknown"
        return InboundTarget(status=503, reason=unknown), Flag.NONE
    target = decisions.target(proxy.namespace, proxy.name, authority, held.local_address[0])
    if target.status != 200:
        return target, Flag.NONE
    if target.port in proxy.context.settings.ports.illegal:
        loop = f"loop: port {target.port} is one of the proxy's own"
        return InboundTarget(status=503, reason=loop), Flag.NONE
    verdict = decisions.verdict(
        proxy.namespace, proxy.name, held.peer_address[0], target.port, record.source_identity or None
    )
    proxy.context.telemetry.dry_run(record, verdict.dry_run)
    if not verdict.allowed:
        return InboundTarget(status=401, reason=verdict.reason), Flag.DENY
    return target, Flag.NONE


def _refuse(proxy: WorkloadProxy, held: HboneSession, stream: Stream, tunnel: Tunnel, status: int) -> None:
    """HEADERS + END_STREAM, no body; the connection stays usable (facts/hbone 1.5)."""
    proxy.endpoints.discard(tunnel)
    tunnel.stream_over = True
    stream.sink = None
    tunnel.release_held()
    tunnel.drop()
    if held.closed or stream.id not in held.connection.streams:
        return
    held.connection.respond(stream, status, end=True)
    if not stream.received_end:
        held.connection.reset(stream, frames.NO_ERROR)
    held.schedule()
    held.stream_done()


def _cut(tunnel: Tunnel) -> None:
    tunnel.error = "connection closed due to policy change"
    tunnel.drop()
