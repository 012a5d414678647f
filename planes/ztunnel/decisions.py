"""What this proxy decides by: view, route and policy behind one seam: the data path has no rules of its own.

`Decisions` is what the path asks; `ViewDecisions` answers from a `MeshView`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from planes.mesh import route
from planes.mesh.view import MeshView, WorkloadView
from testbed.model.identity import Identity
from testbed.model.l4policy import Connection, decide


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """The workload a proxy acts for."""

    namespace: str
    name: str
    identity: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundHop:
    """Where a captured connection goes. `kind` is `tcp`, `hbone` or `refuse`."""

    kind: str
    dial: tuple[str, int] = ("", 0)
    authority: str = ""
    expected: frozenset[str] = frozenset()
    reason: str = ""
    flags: str = "-"
    service_host: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the destination, by the names metrics use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundTarget:
    """`status` 200: go on to `port` of the workload's own address."""

    status: int
    port: int = 0
    reason: str = ""


class Decisions(Protocol):
    def local(self, namespace: str, name: str) -> Local | None: ...
    def baggage(self, namespace: str, name: str) -> str: ...
    def labels(self, namespace: str, name: str) -> Mapping[str, str]: ...
    def hop(self, namespace: str, name: str, destination: tuple[str, int], draw: float) -> OutboundHop: ...
    def target(self, namespace: str, name: str, authority: str, dialled_ip: str) -> InboundTarget: ...
    def denied(
        self, namespace: str, name: str, source_ip: str, port: int, identity: str | None
    ) -> str | None:
        """Why policy denies, or None."""
        ...


class ViewDecisions:
    """`Decisions` out of a `MeshView`; give `view` a new value and every later question is answered from it."""

    def __init__(self, view: MeshView) -> None:
        self.view = view

    def local(self, namespace: str, name: str) -> Local | None:
        w = self.view.local(namespace, name)
        if w is None:
            return None
        return Local(namespace=namespace, name=name, identity=str(w.identity), addresses=w.addresses)

    def baggage(self, namespace: str, name: str) -> str:
        """Describes the workload as facts/hbone 1.3 orders it; absent values are left out."""
        w = self.view.local(namespace, name)
        if w is None:
            return ""
        held = self.view.memo.get(("baggage", w.uid))
        if held is None:
            pairs = (
                ("k8s.cluster.name", w.cluster_id), ("k8s.namespace.name", w.namespace),
                (f"k8s.{w.workload_type}.name", w.workload_name or w.name), ("service.name", w.canonical_name),
                ("service.version", w.canonical_revision), ("cloud.region", w.region),
                ("cloud.availability_zone", w.zone),
            )  # fmt: skip
            held = self.view.memo["baggage", w.uid] = ",".join(f"{key}={value}" for key, value in pairs if value)
        return str(held)

    def labels(self, namespace: str, name: str) -> Mapping[str, str]:
        return self._labels(self.view.local(namespace, name))

    def _labels(self, w: WorkloadView | None) -> Mapping[str, str]:
        if w is None:
            return _UNKNOWN
        held = self.view.memo.get(("labels", w.uid))
        if held is None:
            held = self.view.memo["labels", w.uid] = {
                "workload": w.workload_name or w.name,
                "workload_namespace": w.namespace,
                "canonical_service": w.canonical_name or "unknown",
                "canonical_revision": w.canonical_revision or "unknown",
                "cluster": w.cluster_id or "unknown",
                "region": w.region or "unknown",
                "zone": w.zone or "unknown",
            }
        return held  # type: ignore[return-value]

    def hop(self, namespace: str, name: str, destination: tuple[str, int], draw: float) -> OutboundHop:
        source = self.view.local(namespace, name)
        if source is None:
            return OutboundHop(kind="refuse", reason=f"workload {namespace}/{name} is unknown; rejected")
        hop = route.next_hop(self.view, source, destination, draw)
        labels = self._labels(hop.destination)
        host = hop.service.hostname if hop.service is not None else ""
        return OutboundHop(
            kind=hop.kind.value,
            dial=hop.dial or destination,
            authority=hop.authority or "",
            expected=frozenset(hop.expected),
            reason=hop.reason,
            flags=hop.flag.value,
            service_host=host,
            labels={**labels, "service": host} if host else labels,
        )

    def target(self, namespace: str, name: str, authority: str, dialled_ip: str) -> InboundTarget:
        found = route.inbound_target(self.view, self.view.local(namespace, name), authority, dialled_ip)
        if found.status == 200 and found.proxy_target is not None:
            return InboundTarget(status=503, reason="PROXY protocol towards an application tunnel is not yet here")
        return InboundTarget(status=found.status, port=found.port, reason=found.reason)

    def denied(self, namespace: str, name: str, source_ip: str, port: int, identity: str | None) -> str | None:
        w = self.view.local(namespace, name)
        if w is None:
            return f"workload {namespace}/{name} is unknown"
        policies = self.view.policies_for(w)
        if not policies:
            return None
        try:
            proved = Identity.parse(identity) if identity else None
        except ValueError:
            proved = None
        connection = Connection(
            source_ip=source_ip,
            destination_ip=w.addresses[0] if w.addresses else "",
            destination_port=port,
            identity=proved,
        )
        verdict = decide(policies, connection)
        return None if verdict.allowed else verdict.reason


_UNKNOWN: Mapping[str, str] = {"workload": "unknown", "workload_namespace": "unknown"}
