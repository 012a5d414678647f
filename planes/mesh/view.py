"""The mesh as one proxy sees it, indexed for lookups that cost a dictionary access.

A `MeshView` never changes: a new view is a new object, and a connection keeps the one it began with. Which lookup wins
where several could is facts/hbone 2.2. What the values are is `local`; their names are passed on from here.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence

from planes.mesh.local import (
    HBONE_PORT,
    ApplicationTunnel,
    Endpoint,
    Families,
    GatewayAddress,
    LoadBalancer,
    LocalConfig,
    Mode,
    NetworkMode,
    Protocol,
    RoutingScope,
    ServiceView,
    ViewError,
    WorkloadView,
    read,
)
from testbed.model.l4policy import L4Policy, Scope

__all__ = [
    "HBONE_PORT", "ApplicationTunnel", "Endpoint", "Families", "GatewayAddress", "LoadBalancer", "MeshView", "Mode",
    "NetworkMode", "Protocol", "RoutingScope", "ServiceView", "ViewError", "WorkloadView",
]  # fmt: skip


class MeshView:
    """Workloads, services and policies with their indexes. Made by `parse`; every lookup is a dictionary access."""

    __slots__ = (
        "_by_address", "_by_cidr", "_by_host", "_by_key", "_by_vip", "_endpoints", "_local", "_named",
        "_policies", "_services_of", "memo", "policies", "services", "warnings", "workloads",
    )  # fmt: skip

    def __init__(self, config: LocalConfig) -> None:
        self.workloads = config.workloads
        self.services = config.services
        self.policies = config.policies
        self.memo: dict[object, object] = {}
        """What `route` has worked out about this view; it lives and dies with it."""
        self._local = {(w.namespace, w.name): w for w in self.workloads}
        self._named = {(w.namespace, w.hostname): w for w in reversed(self.workloads) if w.hostname}
        self._by_address = self._index_addresses()
        self._index_services(config.endpoint_ports)
        self._index_policies()

    @classmethod
    def parse(cls, text: Mapping[str, object]) -> MeshView:
        """`text` is the LOCAL shape as JSON gives it. Raises ViewError (a ValueError) with all problems."""
        return cls(read(text))

    def _index_addresses(self) -> dict[tuple[str, str], WorkloadView]:
        found: dict[tuple[str, str], WorkloadView] = {}
        for w in self.workloads:
            if w.network_mode is NetworkMode.HOST_NETWORK:  # a node's address says nothing about which workload it is
                continue
            for address in w.addresses:
                held = found.get((w.network, address))
                if held is None or _address_rank(w) > _address_rank(held):
                    found[w.network, address] = w
        return found

    def _index_services(self, endpoint_ports: Mapping[str, Mapping[str, Mapping[int, int]]]) -> None:
        by_vip: dict[tuple[str, str], list[ServiceView]] = {}
        by_host: dict[str, list[ServiceView]] = {}
        cidrs: list[tuple[str, ipaddress.IPv4Network | ipaddress.IPv6Network, ServiceView]] = []
        endpoints: dict[str, list[Endpoint]] = {s.key: [] for s in self.services}
        services_of: dict[str, list[ServiceView]] = {}
        self._by_key = by_key = {s.key: s for s in self.services}
        for s in self.services:
            by_host.setdefault(s.hostname, []).append(s)
            for vip in s.vips:
                by_vip.setdefault(vip, []).append(s)
            cidrs += [(network, ipaddress.ip_network(cidr), s) for network, cidr in s.cidr_vips]
        for w in self.workloads:
            for key, ports in endpoint_ports.get(w.uid, {}).items():
                service = by_key.get(key)
                if service is None:
                    continue
                services_of.setdefault(w.uid, []).append(service)
                if w.healthy or service.load_balancer.allow_all:
                    endpoints[key].append(Endpoint(workload=w, ports=ports))
        self._by_vip = {vip: tuple(held) for vip, held in by_vip.items()}
        self._by_host = {host: tuple(held) for host, held in by_host.items()}
        self._by_cidr = sorted(cidrs, key=lambda entry: -entry[1].prefixlen)
        self._endpoints = {key: tuple(held) for key, held in endpoints.items()}
        self._services_of = {uid: tuple(held) for uid, held in services_of.items()}

    def _index_policies(self) -> None:
        everywhere = [p for p in self.policies if p.scope is Scope.GLOBAL]
        by_key = {p.key: p for p in self.policies}
        in_namespace: dict[str, list[L4Policy]] = {}
        for p in self.policies:
            if p.scope is Scope.NAMESPACE:
                in_namespace.setdefault(p.namespace, []).append(p)
        self._policies: dict[str, tuple[L4Policy, ...]] = {}
        unknown = []
        for w in self.workloads:
            held = {p.key: p for p in (*everywhere, *in_namespace.get(w.namespace, ()))}
            for key in w.authorization_policies:
                if key in by_key:
                    held[key] = by_key[key]
                else:
                    unknown.append(f"workload {w.uid}: skipping unknown policy {key}")
            self._policies[w.uid] = tuple(held.values())
        self.warnings = tuple(unknown)

    def local(self, namespace: str, name: str) -> WorkloadView | None:
        """The workload a sandbox was registered as. Never found by address: an address can be spoofed."""
        return self._local.get((namespace, name))

    def workload_at(self, network: str, address: str) -> WorkloadView | None:
        return self._by_address.get((network, address))

    def service_at(self, network: str, address: str, client_namespace: str) -> ServiceView | None:
        """Of services that share a VIP: the client's namespace, else the canonical, else the first. CIDRs are last."""
        held = self._by_vip.get((network, address))
        if held is None:
            if not self._by_cidr:
                return None
            ip = ipaddress.ip_address(address)
            held = tuple(
                s for n, cidr, s in self._by_cidr if n == network and ip.version == cidr.version and ip in cidr
            )
        return _best(held, client_namespace)

    def service_named(self, hostname: str, client_namespace: str) -> ServiceView | None:
        return _best(self._by_host.get(hostname, ()), client_namespace)

    def service_by_key(self, key: str) -> ServiceView | None:
        """By `namespace/hostname`."""
        return self._by_key.get(key)

    def destination(self, gateway: GatewayAddress) -> WorkloadView | ServiceView | None:
        """What a waypoint or gateway reference names: by address a workload first, by hostname a service first."""
        if gateway.address is not None:
            network, address = gateway.address
            return self.workload_at(network, address) or self.service_at(network, address, "")
        namespace, hostname = gateway.hostname or ("", "")
        for s in self._by_host.get(hostname, ()):
            if s.namespace == namespace:
                return s
        return self._named.get((namespace, hostname))

    def endpoints(self, service: ServiceView) -> tuple[Endpoint, ...]:
        """Those that may take traffic: healthy ones, or all under AllowAll."""
        return self._endpoints[service.key]

    def services_of(self, workload: WorkloadView) -> tuple[ServiceView, ...]:
        return self._services_of.get(workload.uid, ())

    def policies_for(self, workload: WorkloadView) -> Sequence[L4Policy]:
        """All global ones, those of its namespace, and those it names; unknown names were skipped (see `warnings`)."""
        return self._policies.get(workload.uid, ())


def _address_rank(w: WorkloadView) -> int:
    """Who owns an address that several claim: Pod with HBONE > Pod > HBONE > other (facts/hbone 2.2)."""
    return 2 * ("/Pod/" in w.uid) + (w.protocol is Protocol.HBONE)


def _best(services: Sequence[ServiceView], client_namespace: str) -> ServiceView | None:
    visible = [s for s in services if not s.private or s.namespace == client_namespace]
    if len(visible) < 2:
        return visible[0] if visible else None
    return max(visible, key=lambda s: (s.namespace == client_namespace, s.canonical))  # max keeps the first of equals
