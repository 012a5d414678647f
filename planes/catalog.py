"""The planes by name, each a sum of placements. A plane that mixes (hybrid) adds more terms; it needs no other seam."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from planes.claims import AMBIENT, SIDECAR, claims, of_kind
from planes.envoy import place as envoy
from planes.hybrid import place as mixed
from planes.sidecar.place import sidecars
from planes.waypoint import place as waypoint
from planes.ztunnel.place import ambient_workloads, with_own_metrics, ztunnels
from planes.ztunnel.place import mesh_view as _mesh_view
from testbed.errors import UsageError
from testbed.model.placement import Placement
from testbed.model.topology import Topology


@dataclass(frozen=True, slots=True)
class CataloguedPlane:
    """A name and how it is placed; fits `testbed.seams.Plane`."""

    name: str
    _place: Callable[..., Placement]
    options: tuple[str, ...] = ()
    """Names of its own options, which `_place` takes as keywords."""

    def place(self, topology: Topology, options: Mapping[str, object]) -> Placement:
        """Raises UsageError for an option that the plane does not have, or a value that it cannot take."""
        unknown = sorted(set(options) - set(self.options))
        if unknown:
            takes = ", ".join(self.options) or "none"
            raise UsageError(f"plane {self.name}: no option is called {unknown[0]!r}; this plane takes: {takes}")
        return self._place(topology, **options)


def _place_none(topology: Topology) -> Placement:
    return Placement(plane="none", claims=claims(topology, {}))


def _place_ambient_l4(topology: Topology, *, metrics: str = "node") -> Placement:
    captured = ambient_workloads(topology)
    proxies = ztunnels(topology, captured=captured, view=_mesh_view(topology, captured=captured))
    return (
        Placement(plane="ambient-l4")
        + _metrics("ambient-l4", topology, metrics, proxies)
        + Placement(plane="ambient-l4", claims=claims(topology, of_kind(AMBIENT, captured)))
    )


def _metrics(plane: str, topology: Topology, where: str, placed: Placement) -> Placement:
    """Of the ztunnels: on their `node` for the testbed alone, or by `hbone` for the mesh's workloads as well."""
    if where not in ("node", "hbone"):
        raise UsageError(f"plane {plane}: metrics cannot be {where!r}; they are at node or hbone")
    return with_own_metrics(topology, placed) if where == "hbone" else placed


def _place_ambient(topology: Topology, *, metrics: str = "node", **options: str) -> Placement:
    placed = _ambient("ambient", topology, ztunnels, lambda placed: placed, **options)
    return _metrics("ambient", topology, metrics, placed)


def _ambient(
    plane: str, topology: Topology, ztunnels: Callable[..., Placement], as_made: Callable[[Placement], Placement],
    *, waypoint_node: str | None = None, waypoints: str = waypoint.State.READY,
) -> Placement:  # fmt: skip
    """Ztunnels, and waypoints for the services and workloads that ask for one."""
    captured = ambient_workloads(topology)
    placed, view = waypoint.mesh_with_waypoints(topology, captured=captured, node=waypoint_node, state=waypoints)
    return (
        Placement(plane=plane)
        + ztunnels(topology, captured=captured, view=view)
        + as_made(waypoint.proxies(topology, placed, view))
        + Placement(plane=plane, claims=claims(topology, of_kind(AMBIENT, captured), waypoints=placed))
    )


def _place_envoy_ambient_l4(topology: Topology) -> Placement:
    """`ambient-l4` with real Envoys in the ztunnel role: what ours are held against."""
    captured = ambient_workloads(topology)
    return (
        Placement(plane="envoy-ambient-l4")
        + envoy.ztunnels(topology, captured=captured, view=_mesh_view(topology, captured=captured))
        + Placement(plane="envoy-ambient-l4", claims=claims(topology, of_kind(AMBIENT, captured)))
    )


def _place_envoy_ambient(topology: Topology, **options: str) -> Placement:
    """`ambient` with real Envoys in both roles."""
    return _ambient("envoy-ambient", topology, envoy.ztunnels, envoy.instead, **options)


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
        + Placement(plane=plane, claims=claims(topology, of_kind(SIDECAR, injected)))
    )


WAYPOINT_OPTIONS = ("waypoint_node", "waypoints")
"""A node for all waypoints instead of those they name; what the mesh knows of them (`planes.waypoint.place.State`)."""

none = CataloguedPlane("none", _place_none)
ambient = CataloguedPlane("ambient", _place_ambient, ("metrics", *WAYPOINT_OPTIONS))
sidecar = CataloguedPlane("sidecar", _place_sidecar)
ambient_l4 = CataloguedPlane("ambient-l4", _place_ambient_l4, ("metrics",))
envoy_ambient_l4 = CataloguedPlane("envoy-ambient-l4", _place_envoy_ambient_l4)
envoy_ambient = CataloguedPlane("envoy-ambient", _place_envoy_ambient, WAYPOINT_OPTIONS)
envoy_sidecar = CataloguedPlane("envoy-sidecar", _place_envoy_sidecar)
hybrid = CataloguedPlane("hybrid", mixed.place, ("listens_hbone", *WAYPOINT_OPTIONS))
hybrid_hbone = CataloguedPlane("hybrid-hbone", partial(mixed.place, listens_hbone="yes"), WAYPOINT_OPTIONS)
_envoys = partial(mixed.place, name="envoy-hybrid", ztunnels=envoy.ztunnels, as_made=envoy.instead)
envoy_hybrid = CataloguedPlane("envoy-hybrid", _envoys, ("listens_hbone", *WAYPOINT_OPTIONS))
envoy_hybrid_hbone = CataloguedPlane(
    "envoy-hybrid-hbone", partial(_envoys, listens_hbone="yes"), WAYPOINT_OPTIONS
)
