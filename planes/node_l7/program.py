"""One process for all workloads of a node: each is a tenant with its own routes and policies, under one identity."""

from __future__ import annotations

import asyncio
import dataclasses
import json

from planes.l7.captured import captured
from planes.l7.dial import Dialler
from planes.l7.program import Ended, L7Program
from planes.l7.route import RouteTable
from planes.l7.serve import Downstream
from planes.l7.settings import Settings
from planes.l7.view import L7Config, L7View, Role, write
from planes.mesh import frames, net
from planes.mesh.view import MeshView, WorkloadView
from planes.node_l7.inbound import SOURCE_FIELD, Inbound, NodeTunnels
from planes.node_l7.outbound import Outbound
from testbed.errors import TestbedError


class Tenant(L7Program):
    """What the process is for one workload; listeners, certificates, metrics and tasks are the node's."""

    def __init__(self, node: NodeL7, name: str, l7: dict) -> None:
        self.node = node
        namespace, _, workload = name.partition("/")
        super().__init__(node.loop, dataclasses.replace(node.settings, workload=(namespace, workload), l7=l7))
        self.contexts, self.log = node.contexts, node.log
        self.http_metrics, self.tcp_metrics = node.http_metrics, node.tcp_metrics
        self.dialler = Dialler(
            node.loop, node.contexts, baggage=lambda: self._baggage,
            fields=frames.encode_fields(((SOURCE_FIELD, name.encode()),)),
        )  # fmt: skip
        self.inbound, self.outbound = Inbound(self), Outbound(self)

    def _read_view(self) -> MeshView:
        return self.node.mesh

    def spawn(self, work: object) -> None:
        self.node.spawn(work)

    async def open(self) -> None:
        """The node's listeners are its own."""

    def take(self, mesh: MeshView, l7: L7View | None) -> None:
        """A new view; the routes and policies of before, where `l7` is None."""
        local = mesh.local(*self.settings.workload)
        if local is not None:  # whose workload is gone from the view serves on as it was: it is its node that ends it
            self.local = local
        self.mesh, self.l7 = mesh, l7 or self.l7
        self.table = RouteTable(self.l7)
        self.reloaded()

    def reloaded(self) -> None:
        self.inbound.reloaded()
        self.outbound.reloaded()


class NodeL7(L7Program):
    def __init__(self, loop: asyncio.AbstractEventLoop, settings: Settings) -> None:
        """`settings.l7` is by workload (`namespace/name`), each as a sidecar's."""
        namespace, name = settings.workload
        own = L7Config(role=Role.SIDECAR, name=name, namespace=namespace, trust_domain="")
        super().__init__(loop, dataclasses.replace(settings, l7=write(own)))
        self.tenants = [Tenant(self, name, l7) for name, l7 in settings.l7.items()]
        self._by_address = {address: t for t in self.tenants for address in t.local.addresses}
        self._tunnels = NodeTunnels(self, self._by_address.__contains__, self._tunnelled)
        self._captured_by: asyncio.AbstractServer | None = None

    async def open(self) -> None:
        self.parts += [_Listener(self), self._tunnels]
        self.parts += [side for tenant in self.tenants for side in (tenant.inbound, tenant.outbound)]
        await self._tunnels.listen(self.listen(self.settings.ports.hbone))
        self._captured_by = await net.serve(
            self.loop, lambda: captured(self.loop, self._captured), self.listen(self.settings.ports.outbound)
        )

    def _captured(self, transport: asyncio.Transport) -> asyncio.Protocol | None:
        """Whose call it is its address says: a handshake from another's would not have come about on this node."""
        source = transport.get_extra_info("peername")[:2]
        tenant = self._by_address.get(source[0])
        ip, port = destination = net.captured_destination(transport, self.settings.original_destination)
        own = port in self.settings.ports.own and (ip in self.local.addresses or ip.startswith("127."))
        if tenant is None or own:
            self.warn(f"refused: {source[0]} to {ip}:{port} is no call of a workload of this node")
            return None
        return tenant.outbound.serve_captured(source, destination)

    def _tunnelled(self, downstream: Downstream, source: WorkloadView) -> asyncio.Protocol:
        return self._by_address[downstream.destination[0]].inbound.serve_tunnelled(downstream, source)

    def reload_view(self) -> None:
        """As a sidecar's; its `l7` is by workload, and may leave some out."""
        try:
            raw = json.loads(self.settings.view.read_text())
            views = {name: L7View.parse(l7) for name, l7 in raw.pop("l7", {}).items()}
            mesh = MeshView.parse(raw)
        except (OSError, ValueError, AttributeError, TestbedError) as cause:
            self.warn(f"new view refused, the old one stays: {cause}")
            return
        self.mesh = mesh
        for tenant in self.tenants:
            tenant.take(mesh, views.get("/".join(tenant.settings.workload)))

    def reloaded(self) -> None:
        """All that depends on a view are the tenants."""

    def quit(self) -> None:
        for tenant in self.tenants:
            tenant.draining = True
        super().quit()

    def stop_capturing(self) -> None:
        if self._captured_by is not None:
            self._captured_by.close()


class _Listener(Ended):
    """15001, which serves until the drain is over: workloads may call as long as their proxy is there."""

    def __init__(self, node: NodeL7) -> None:
        self._node = node

    def stop(self) -> None:
        self._node.stop_capturing()
