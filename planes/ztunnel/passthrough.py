"""Captured inbound plaintext (15006): policy without an identity, then bytes (facts/hbone 2.5).

There is no switch called STRICT: it is a DENY policy for whoever has no principal, so plaintext loses by it.
"""

from __future__ import annotations

from planes.mesh import net
from planes.mesh.relay import Endpoint, Pipe, join
from planes.ztunnel.outbound import original_destination
from planes.ztunnel.telemetry import Record
from planes.ztunnel.workload import LiveConnection, WorkloadProxy


async def serve(proxy: WorkloadProxy, downstream: Pipe) -> None:
    context = proxy.context
    source = downstream.transport.get_extra_info("peername")[:2]
    record = Record(direction="inbound", source=source, started_s=context.loop.time())
    record.destination_labels = context.decisions.labels(proxy.namespace, proxy.name)
    proxy.endpoints.add(downstream)
    live: LiveConnection | None = None
    try:
        destination = original_destination(proxy, downstream)
        record.destination = record.dialled = destination
        if destination[1] in context.settings.ports.illegal:
            refusal: tuple[str, str] | None = (f"loop: port {destination[1]} is one of the proxy's own", "-")
        elif proxy.local is None:
            refusal = (f"workload {proxy.namespace}/{proxy.name} is unknown", "-")
        else:
            denial = context.decisions.denied(proxy.namespace, proxy.name, source[0], destination[1], None)
            refusal = (denial, "DENY") if denial is not None else None
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
        context.telemetry.failed(record, str(cause) or type(cause).__name__, "CONNECT")
        _discard(proxy, downstream)
        return
    if downstream.lost:
        upstream.drop()

    def finished(endpoint: Endpoint) -> None:
        proxy.endpoints.discard(endpoint)
        proxy.live.discard(live)
        record.bytes_sent, record.bytes_received = endpoint.bytes_written, endpoint.bytes_read
        context.telemetry.closed(record, endpoint.error)

    context.telemetry.opened(record)
    downstream.on_done = finished
    join(downstream, upstream)


def _discard(proxy: WorkloadProxy, downstream: Endpoint) -> None:
    proxy.endpoints.discard(downstream)
    if not downstream.lost:
        downstream.transport.close()


def _cut(downstream: Pipe) -> None:
    downstream.error = "connection closed due to policy change"
    downstream.drop()
