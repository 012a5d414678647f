"""Which kind each workload is, and what follows from that for proxies, views and claims (facts/hbone 4.4). Pure.

A label `plane:` of the topology decides; without one, a workload behind a service is ambient and any other has a
sidecar, so that an unlabelled topology shows the mixed path: clients with sidecars, servers in the ambient mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum

from planes.claims import claims
from planes.sidecar.place import sidecars
from planes.waypoint import place as waypoint
from planes.waypoint.place import State
from planes.ztunnel.place import ztunnels as our_ztunnels
from testbed.errors import UsageError
from testbed.model.placement import Placement
from testbed.model.topology import Topology


class Kind(StrEnum):
    SIDECAR = "sidecar"
    AMBIENT = "ambient"
    NONE = "none"


def kinds(topology: Topology) -> dict[str, Kind]:
    """By workload name."""
    behind = {name for service in topology.services for name in service.endpoints}
    return {
        w.name: Kind(w.plane) if w.plane is not None else Kind.AMBIENT if w.name in behind else Kind.SIDECAR
        for w in topology.workloads
    }


def place(
    topology: Topology, *, listens_hbone: str = "no", waypoint_node: str | None = None, waypoints: str = State.READY,
    name: str = "hybrid", ztunnels: Callable[..., Placement] = our_ztunnels,
    as_made: Callable[[Placement], Placement] = lambda placed: placed,
) -> Placement:  # fmt: skip
    """`listens_hbone=yes`: sidecars take tunnels, and are published as such (PILOT_ENABLE_SIDECAR_LISTENING_HBONE).

    `as_made` says who plays sidecars and waypoints. Raises UsageError for another value.
    """
    if listens_hbone not in ("yes", "no"):
        raise UsageError(f"plane hybrid: listens_hbone cannot be {listens_hbone!r}; it is yes or no")
    listens = listens_hbone == "yes"
    of = kinds(topology)
    ambient = frozenset(name for name, kind in of.items() if kind is Kind.AMBIENT)
    injected = frozenset(name for name, kind in of.items() if kind is Kind.SIDECAR)
    placed, view = waypoint.mesh_with_waypoints(topology, captured=ambient, node=waypoint_node, state=waypoints)
    if listens:
        view = _with_native_tunnels(view, {(w.namespace, w.name) for w in topology.workloads if w.name in injected})
    plane = f"{name}-hbone" if listens else name
    return (
        Placement(plane=plane)
        + ztunnels(topology, captured=ambient, view=view)
        + as_made(sidecars(topology, injected=injected, view=view, listens_hbone=listens))
        + as_made(waypoint.proxies(topology, placed, view))
        + Placement(plane=plane, claims=claims(topology, of, waypoints=placed, listens_hbone=listens))
    )


def _with_native_tunnels(view: dict, injected: set[tuple[str, str]]) -> dict:
    workloads = [
        {**w, "protocol": "HBONE", "nativeTunnel": True} if (w["namespace"], w["name"]) in injected else w
        for w in view["workloads"]
    ]
    return {**view, "workloads": workloads}
