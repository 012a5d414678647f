"""What the authority of a CONNECT means at a waypoint: a service's address or name that it stands before, or the own
address of a workload that names it (facts/hbone 3.1 to 3.3). Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from planes.l7.view import L7Service, L7View
from planes.mesh.route import ILLEGAL_PORTS
from planes.mesh.view import GatewayAddress, MeshView, ServiceView, WorkloadView


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    """One of the two is set."""

    port: int
    service: L7Service | None = None
    workload: WorkloadView | None = None
    """Addressed by its own address: policies of the waypoint as a whole, no routes, no balancing."""

    @property
    def protocol(self) -> str:
        """As the service's port declares it; empty: to be found out from the bytes, as for every workload's address."""
        entry = self.service.port(self.port) if self.service is not None else None
        return entry.protocol if entry is not None else ""

    @property
    def service_key(self) -> str | None:
        return self.service.key if self.service is not None else None


def find(
    l7: L7View, mesh: MeshView, local: WorkloadView, host: str, port: int, *, is_address: bool
) -> Destination | None:
    """None for what this waypoint does not stand before: another's service, an unknown port, its own address.

    A waypoint never answers for itself, so that no two of them call each other for ever.
    """
    service = l7.by_address.get(host) if is_address else l7.by_hostname.get(host)
    if service is not None:
        served = service.key in l7.config.serves and service.port(port) is not None
        return Destination(service=service, port=port) if served else None
    workload = mesh.workload_at(local.network, host) if is_address and port not in ILLEGAL_PORTS else None
    if workload is None or workload.uid == local.uid or workload.waypoint is None:
        return None
    return Destination(workload=workload, port=port) if _names(mesh, workload.waypoint, local) else None


def _names(mesh: MeshView, gateway: GatewayAddress, local: WorkloadView) -> bool:
    found = mesh.destination(gateway)
    if isinstance(found, ServiceView):  # asked of the workload, for a service's endpoints are only the healthy ones
        return any(s.key == found.key for s in mesh.services_of(local))
    return found is not None and found.uid == local.uid
