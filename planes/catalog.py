"""The planes by name, each a sum of placements. A plane that mixes (hybrid) adds more terms; it needs no other seam."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from planes.envoy import place as envoy
from planes.hybrid import place as mixed
from planes.sidecar.place import mutual_tls_claims, sidecars
from planes.waypoint import place as waypoint
from planes.ztunnel.place import ambient_workloads, traffic_claims, ztunnels
from planes.ztunnel.place import mesh_view as _mesh_view
from testbed.errors import UsageError
from testbed.model.placement import Placement
from testbed.model.topology import Topology


@dataclass(frozen=True, slots=True)
class CataloguedPlane:
    """A name and how it is placed; fits `testbed.seams.Plane`."""

    name: str
    _place: Callable[[Topology], Placement]

    def place(self, topology: Topology, options: Mapping[str, object]) -> Placement:
        """Raises UsageError for an option, for the planes of today have none."""
        if options:
            raise UsageError(f"plane {self.name}: no option is called {sorted(options)[0]!r}; this plane takes none")
        return self._place(topology)


def _place_none(topology: Topology) -> Placement:
    return Placement(plane="none", claims=traffic_claims(topology, captured=frozenset()))


def _place_ambient_l4(topology: Topology) -> Placement:
    captured = ambient_workloads(topology)
    proxies = ztunnels(topology, captured=captured, view=_mesh_view(topology, captured=captured))
    return (
        Placement(plane="ambient-l4")
        + proxies
        + Placement(plane="ambient-l4", claims=traffic_claims(topology, captured=captured))
    )


def _place_ambient(topology: Topology) -> Placement:
    return _ambient("ambient", topology, ztunnels, lambda placed: placed)


def _ambient(
    plane: str, topology: Topology, ztunnels: Callable[..., Placement], as_made: Callable[[Placement], Placement]
) -> Placement:
    """Ztunnels, and waypoints for the services that ask for one."""
    captured = ambient_workloads(topology)
    placed = waypoint.waypoints(topology)
    view = _mesh_view(
        topology, captured=captured, waypoints=waypoint.waypoint_of(placed),
        extra_workloads=waypoint.view_entries(topology, placed), extra_services=waypoint.view_services(placed),
    )  # fmt: skip
    return (
        Placement(plane=plane)
        + ztunnels(topology, captured=captured, view=view)
        + as_made(waypoint.proxies(topology, placed, view))
        + Placement(plane=plane, claims=traffic_claims(topology, captured=captured))
    )


def _place_envoy_ambient_l4(topology: Topology) -> Placement:
    """`ambient-l4` with real Envoys in the ztunnel role: what ours are held against."""
    captured = ambient_workloads(topology)
    claims = traffic_claims(topology, captured=captured)
    return (
        Placement(plane="envoy-ambient-l4")
        + envoy.ztunnels(topology, captured=captured, view=_mesh_view(topology, captured=captured))
        + Placement(plane="envoy-ambient-l4", claims=claims)
    )


def _place_envoy_ambient(topology: Topology) -> Placement:
    """`ambient` with real Envoys in both roles."""
    return _ambient("envoy-ambient", topology, envoy.ztunnels, envoy.instead)


def _place_sidecar(topology: Topology) -> Placement:
    return _sidecar("sidecar", topology, lambda placed: placed)


def _place_envoy_sidecar(topology: Topology) -> Placement:
    """`sidecar` with real Envoys."""
    return _sidecar("envoy-sidecar", topology, envoy.instead)


def _sidecar(plane: str, topology: Topology, as_made: Callable[[Placement], Placement]) -> Placement:
    injected = frozenset(w.name for w in topology.workloads if w.plane in (None, "sidecar"))
    view = _mesh_view(topology, captured=frozenset())
    return (
        Placement(plane=plane)
        + as_made(sidecars(topology, injected=injected, view=view))
        + Placement(plane=plane, claims=mutual_tls_claims(topology, injected=injected))
    )


none = CataloguedPlane("none", _place_none)
ambient = CataloguedPlane("ambient", _place_ambient)
sidecar = CataloguedPlane("sidecar", _place_sidecar)
ambient_l4 = CataloguedPlane("ambient-l4", _place_ambient_l4)
envoy_ambient_l4 = CataloguedPlane("envoy-ambient-l4", _place_envoy_ambient_l4)
envoy_ambient = CataloguedPlane("envoy-ambient", _place_envoy_ambient)
envoy_sidecar = CataloguedPlane("envoy-sidecar", _place_envoy_sidecar)
hybrid = CataloguedPlane("hybrid", mixed.place)
hybrid_hbone = CataloguedPlane("hybrid-hbone", lambda topology: mixed.place(topology, listens_hbone=True))
