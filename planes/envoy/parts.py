"""What one Envoy is made for, and what gathers while its configuration is made. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from planes.envoy.pieces import Identity, Json
from planes.l7.view import L7View
from planes.mesh.view import MeshView, WorkloadView


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One proxy as its config.json says."""

    mesh: MeshView
    local: WorkloadView
    """The workload it acts for; of a waypoint, itself."""
    identity: Identity
    keylog: str | None = None
    l7: L7View | None = None
    """None: a role that sees connections only."""
    sidecars: frozenset[str] = frozenset()
    """Uids of workloads that take Istio's mutual TLS."""
    listens_hbone: bool = False
    """A sidecar that takes tunnels, too (facts/hbone 4.4)."""

    @property
    def configured(self) -> L7View:
        assert self.l7 is not None, "BUG: an L7 role was made without its l7 options"
        return self.l7


@dataclass(slots=True)
class Parts:
    """Listeners and clusters as they gather; each cluster once."""

    listeners: list[Json] = field(default_factory=list)
    clusters: dict[str, Json] = field(default_factory=dict)
    undone: list[str] = field(default_factory=list)
    """What the resources ask for and this configuration does not do, to be told at the start."""

    def cluster(self, made: Json) -> str:
        name = str(made["name"])
        self.clusters.setdefault(name, made)
        return name

    def leave_undone(self, what: str) -> None:
        if what not in self.undone:
            self.undone.append(what)
