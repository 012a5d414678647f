"""What this proxy decides by: view, route and policy behind one seam: the data path has no rules of its own.

`Decisions` is what the path asks; `ViewDecisions` answers from a `MeshView`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from planes.mesh import baggage, route
from planes.mesh.route import Flag, Names
from planes.mesh.view import MeshView, ServiceView, WorkloadView
from testbed.model.identity import Identity
from testbed.model.l4policy import Connection, Verdict, decide

_NO_POLICIES = Verdict(allowed=True, reason="no policies")


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
    flag: Flag = Flag.NONE
    unresolved: str = ""
    """Refused for want of this host name's addresses: ask again with them."""
    service: ServiceView | None = None
    destination: WorkloadView | None = None
    """Both for telemetry; None where the view knows none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundTarget:
    """`status` 200: go on to `port` of the workload's own address."""

    status: int
    port: int = 0
    reason: str = ""
    proxy_target: tuple[str, int] | None = None
    """The application listens on its loopback and is told by a PROXY header that this was asked for."""


class Decisions(Protocol):
    def local(self, namespace: str, name: str) -> Local | None: ...
    def baggage(self, namespace: str, name: str) -> str: ...
    def workload(self, namespace: str, name: str) -> WorkloadView | None: ...
    def source(self, namespace: str, name: str, source_ip: str, identity: str) -> WorkloadView | None:
        """Whose address it is, for telemetry; None when the identity proved (empty: none was) is another's."""
        ...
    def hop(
        self, namespace: str, name: str, destination: tuple[str, int], draw: float, names: Names = route.NO_NAMES
    ) -> OutboundHop: ...
    def target(self, namespace: str, name: str, authority: str, dialled_ip: str) -> InboundTarget: ...
    def verdict(self, namespace: str, name: str, source_ip: str, port: int, identity: str | None) -> Verdict:
        """Policy's answer for a connection to this workload."""
        ...


class ViewDecisions:
    """`Decisions` out of a `MeshView`; give `view` a new value and every later question is answered from it."""

    def __init__(self, view: MeshView, own_ports: frozenset[int] = route.ILLEGAL_PORTS) -> None:
        self.view = view
        self._own_ports = own_ports

    def local(self, namespace: str, name: str) -> Local | None:
        w = self.view.local(namespace, name)
        if w is None:
            return None
        return Local(namespace=namespace, name=name, identity=str(w.identity), addresses=w.addresses)

    def baggage(self, namespace: str, name: str) -> str:
        w = self.view.local(namespace, name)
        if w is None:
            return ""
        held = self.view.memo.get(("baggage", w.uid))
        if held is None:
            held = self.view.memo["baggage", w.uid] = baggage.render(w)
        return str(held)

    def workload(self, namespace: str, name: str) -> WorkloadView | None:
        return self.view.local(namespace, name)

    def source(self, namespace: str, name: str, source_ip: str, identity: str) -> WorkloadView | None:
        local = self.view.local(namespace, name)
        found = self.view.workload_at(local.network if local is not None else "", source_ip)
        return None if found is None or (identity and str(found.identity) != identity) else found

    def hop(
        self, namespace: str, name: str, destination: tuple[str, int], draw: float, names: Names = route.NO_NAMES
    ) -> OutboundHop:
        source = self.view.local(namespace, name)
        if source is None:
            return OutboundHop(kind="refuse", reason=f"workload {namespace}/{name} is unknown; rejected")
        hop = route.next_hop(self.view, source, destination, draw, self._own_ports, names)
        return OutboundHop(
            kind=hop.kind.value,
            dial=hop.dial or destination,
            authority=hop.authority or "",
            expected=frozenset(hop.expected),
            reason=hop.reason,
            flag=hop.flag,
            unresolved=hop.unresolved,
            service=hop.service,
            destination=hop.destination,
        )

    def target(self, namespace: str, name: str, authority: str, dialled_ip: str) -> InboundTarget:
        found = route.inbound_target(
            self.view, self.view.local(namespace, name), authority, dialled_ip, own_ports=self._own_ports
        )
        return InboundTarget(
            status=found.status, port=found.port, reason=found.reason, proxy_target=found.proxy_target
        )

    def verdict(self, namespace: str, name: str, source_ip: str, port: int, identity: str | None) -> Verdict:
        w = self.view.local(namespace, name)
        if w is None:
            return Verdict(allowed=False, reason=f"workload {namespace}/{name} is unknown")
        policies = self.view.policies_for(w)
        if not policies:
            return _NO_POLICIES
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
        return decide(policies, connection)

