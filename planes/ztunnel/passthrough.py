"""Captured inbound plaintext (15006): policy without an identity, then bytes (facts/hbone 2.5).

There is no switch called STRICT: it is a DENY policy for whoever has no principal, so plaintext loses by it.
"""

from __future__ import annotations

from planes.mesh import net
from planes.mesh.accesslog import Direction
from planes.mesh.relay import Endpoint, Pipe, join
from planes.mesh.route import Flag
from planes.ztunnel.telemetry import Record
from planes.ztunnel.workload import LiveConnection, WorkloadProxy


async def serve(proxy: WorkloadProxy, downstream: Pipe) -> None:
    context = proxy.context
    source = downstream.transport.get_extra_info("peername")[:2]
    record = Record(direction=Direction.INBOUND, source=source, started_s=context.loop.time())
    record.destination_workload = context.decisions.workload(proxy.namespace, proxy.name)
    record.source_workload = context.decisions.source(proxy.namespace, proxy.name, source[0], "")
    proxy.endpoints.add(downstream)
    live: LiveConnection | None = None
    try:
        destination = net.captured_destination(downstream.transport, context.settings.original_destination)
        record.destination = record.dialled = destination
        if destination[1] in context.settings.ports.illegal:
            refusal: tuple[str, Flag] | None = (f"loop: port {destination[1]} is one of the proxy's own", Flag.NONE)
        elif proxy.local is None:
            refusal = (f"workload {proxy.namespace}/{proxy.name} is unknown", Flag.NONE)
        else:
            record.decided = True
            verdict = context.decisions.verdict(proxy.namespace, proxy.name, source[0], destination[1], None)
            context.telemetry.dry_run(record, verdict.dry_run)
            refusal = None if verdict.allowed else (verdict.reason, Flag.DENY)
        if refusal is not None:
            context.telemetry.failed(record, *refusal)
            _discard(proxy, downstream)
            return
        live = LiveConnection(source[0], destination[1], None, lambda: _cut(downstream))
        proxy.live.add(live)
        upstream = await net.connect(context.loop, Pipe, proxy.upstream(destination, source[0]), destination)
    except OSError as cause:
        if live is not None:
            proxy.live.discard(live)
        context.telemetry.failed(record, str(cause) or type(cause).__name__, Flag.CONNECT)
        _discard(proxy, downstream)
        return
    if downstream.lost:
        upstream.drop()

    def finished(endpoint: Endpoint) -> None:
        proxy.endpoints.discard(endpoint)
        proxy.live.discard(live)
        context.telemetry.closed(record, endpoint.error)

    context.telemetry.opened(record, downstream)
    downstream.on_done = finished
    join(downstream, upstream)


def _discard(proxy: WorkloadProxy, downstream: Endpoint) -> None:
    proxy.endpoints.discard(downstream)
    if not downstream.lost:
        downstream.transport.close()


def _cut(downstream: Pipe) -> None:
    downstream.error = "connection closed due to policy change"
    downstream.drop()
