"""Which kind each workload is, and what follows from that for proxies, views and claims (facts/hbone 4.4). Pure.

A label `plane:` of the topology decides; without one, a workload behind a service is ambient and any other has a
sidecar, so that an unlabelled topology shows the mixed path: clients with sidecars, servers in the ambient mesh.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from planes.sidecar.place import sidecars
from planes.waypoint import place as waypoint
from planes.ztunnel.place import mesh_view, pairs, ztunnels
from testbed.model.placement import Claim, Encryption, Placement
from testbed.model.topology import ServicePort, Topology, Workload


class Kind(StrEnum):
    SIDECAR = "sidecar"
    AMBIENT = "ambient"
    NONE = "none"


class Wire(StrEnum):
    """What the bytes between two workloads are wrapped in."""

    CLEAR = "clear"
    MTLS = "mtls"
    """Istio's own, between sidecars: to the application's port."""
    HBONE = "hbone"


def kinds(topology: Topology) -> dict[str, Kind]:
    """By workload name."""
    behind = {name for service in topology.services for name in service.endpoints}
    return {
        w.name: Kind(w.plane) if w.plane is not None else Kind.AMBIENT if w.name in behind else Kind.SIDECAR
        for w in topology.workloads
    }


def wire(client: Kind, server: Kind, *, listens_hbone: bool = False) -> Wire:
    """Sidecars prefer their own mutual TLS among themselves; a ztunnel cannot speak it."""
    if Kind.NONE in (client, server):
        return Wire.CLEAR
    if server is Kind.AMBIENT:
        return Wire.HBONE
    if client is Kind.SIDECAR:
        return Wire.MTLS
    return Wire.HBONE if listens_hbone else Wire.CLEAR


def place(topology: Topology, *, listens_hbone: bool = False) -> Placement:
    """`listens_hbone`: sidecars take tunnels, and are published as such (PILOT_ENABLE_SIDECAR_LISTENING_HBONE)."""
    of = kinds(topology)
    ambient = frozenset(name for name, kind in of.items() if kind is Kind.AMBIENT)
    injected = frozenset(name for name, kind in of.items() if kind is Kind.SIDECAR)
    placed = waypoint.waypoints(topology)
    view = mesh_view(
        topology, captured=ambient, waypoints=waypoint.waypoint_of(placed),
        extra_workloads=waypoint.view_entries(topology, placed), extra_services=waypoint.view_services(placed),
    )  # fmt: skip
    if listens_hbone:
        view = _with_native_tunnels(view, {(w.namespace, w.name) for w in topology.workloads if w.name in injected})
    plane = "hybrid-hbone" if listens_hbone else "hybrid"
    return (
        Placement(plane=plane)
        + ztunnels(topology, captured=ambient, view=view)
        + sidecars(topology, injected=injected, view=view, listens_hbone=listens_hbone)
        + waypoint.proxies(topology, placed, view)
        + Placement(plane=plane, claims=claims(topology, of, listens_hbone=listens_hbone))
    )


def _with_native_tunnels(view: dict, injected: set[tuple[str, str]]) -> dict:
    workloads = [
        {**w, "protocol": "HBONE", "nativeTunnel": True} if (w["namespace"], w["name"]) in injected else w
        for w in view["workloads"]
    ]
    return {**view, "workloads": workloads}


def claims(topology: Topology, of: Mapping[str, Kind], *, listens_hbone: bool) -> tuple[Claim, ...]:
    """For every pair that may talk, what must be seen on the wire between them."""
    waypointed = {s.address: s for s in topology.services if s.waypoint is not None}
    found: dict[tuple[str, str, str | None], Claim] = {}
    for client, server, port in pairs(topology):
        through = of[client.name] is Kind.AMBIENT and any(
            server.name in s.endpoints and port in s.ports for s in waypointed.values()
        )
        claim = _claim(
            topology, client, server, port,
            wire(of[client.name], of[server.name], listens_hbone=listens_hbone), through=through,
        )  # fmt: skip
        found[client.name, server.name, claim.authority] = claim
    return tuple(found.values())


def _claim(
    topology: Topology, client: Workload, server: Workload, port: ServicePort, how: Wire, *, through: bool
) -> Claim:
    """`through` a waypoint both ends prove themselves to it, and neither to the other."""
    direct = how is not Wire.CLEAR and not through
    return Claim(
        source=client.name,
        destination=server.name,
        segment="wire",
        encryption=Encryption.CLEAR if how is Wire.CLEAR and not through else Encryption.MTLS,
        hbone=how is Wire.HBONE,
        authority=f"{server.address}:{port.target_port}" if how is Wire.HBONE and direct else None,
        client_identity=client.identity(topology.trust_domain) if direct else None,
        server_identity=server.identity(topology.trust_domain) if direct else None,
    )
