"""What an L7 proxy knows beside the LOCAL view: names and protocols, routes, destination rules, policies, modes.

`L7Config` is what a placement writes as `l7` (see `planes.l7.place`), by `testbed.model.plain`; `L7View` is its index,
which never changes: a new configuration is a new object. Endpoints are not here: a `Cluster` picks them from the
`MeshView` of the same configuration.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

from planes.mesh.view import Endpoint, MeshView
from testbed.model.httppath import PathNormalization
from testbed.model.l7policy import PolicySet
from testbed.model.plain import from_plain, to_plain
from testbed.model.policy import AuthorizationPolicy, Labels, Mode
from testbed.model.topology import ROOT_NAMESPACE
from testbed.model.traffic import DestinationRule, HttpRoute, Subset, TrafficPolicy, VirtualService, full_name

WAYPOINT_CLASS = "istio-waypoint"


class Role(StrEnum):
    SIDECAR = "sidecar"
    WAYPOINT = "waypoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class L7Port:
    port: int
    target_port: int
    protocol: str = "tcp"
    """`http`, `http2`, `grpc`, `tcp`; empty means to be found out from the bytes."""

    @property
    def is_http(self) -> bool:
        return self.protocol in ("http", "http2", "grpc")


@dataclass(frozen=True, slots=True, kw_only=True)
class L7Service:
    name: str
    namespace: str
    hostname: str
    address: str
    ports: tuple[L7Port, ...]

    @property
    def key(self) -> str:
        """As in the LOCAL view."""
        return f"{self.namespace}/{self.hostname}"

    def port(self, number: int) -> L7Port | None:
        return next((p for p in self.ports if p.port == number), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadLabels:
    uid: str
    labels: Labels


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainPort:
    """A port of a workload with a sidecar that PeerAuthentication keeps out of mutual TLS (DISABLE)."""

    uid: str
    port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMode:
    port: int
    mode: Mode


@dataclass(frozen=True, slots=True, kw_only=True)
class L7Config:
    """All of one proxy. Resources keep the order of the file, which stands for their age."""

    role: Role
    name: str
    """Of the workload a sidecar serves, or of the waypoint."""
    namespace: str
    labels: Labels = ()
    trust_domain: str
    root_namespace: str = ROOT_NAMESPACE
    services: tuple[L7Service, ...] = ()
    serves: tuple[str, ...] = ()
    """Keys of the services it stands before (waypoint) or whose endpoint its workload is (sidecar)."""
    workload_labels: tuple[WorkloadLabels, ...] = ()
    """Of the endpoints of services that have subsets."""
    plain_ports: tuple[PlainPort, ...] = ()
    """What automatic mutual TLS leaves alone."""
    virtual_services: tuple[VirtualService, ...] = ()
    http_routes: tuple[HttpRoute, ...] = ()
    destination_rules: tuple[DestinationRule, ...] = ()
    authorization: tuple[AuthorizationPolicy, ...] = ()
    """Only those that apply at this proxy."""
    mode: Mode = Mode.PERMISSIVE
    port_modes: tuple[PortMode, ...] = ()
    """By the workload's own port, where it differs from `mode`."""
    outbound_any: bool = True
    """What a sidecar does with hosts nobody knows: passes them through (ALLOW_ANY), else answers 502."""
    path_normalization: PathNormalization = PathNormalization.BASE


class Cluster:
    """Where a request may go: a service's port, or a subset of it. Compared by identity; one view makes it once."""

    __slots__ = ("hostname", "labels", "name", "policy", "port", "service_key", "sni", "subset")

    def __init__(self, name: str, service: L7Service, port: int, subset: Subset | None, policy: TrafficPolicy) -> None:
        self.name = name
        """As Envoy's statistics call it."""
        self.service_key = service.key
        self.hostname = service.hostname
        self.port = port
        """Of the service."""
        self.subset = subset.name if subset else ""
        self.labels = dict(subset.labels) if subset else None
        self.policy = policy
        """Subset, port and destination already merged."""
        self.sni = f"outbound_.{port}_.{self.subset}_.{service.hostname}"

    def __repr__(self) -> str:
        return f"<Cluster {self.name}>"


_NO_POLICY = TrafficPolicy()


class L7View:
    """An `L7Config` with its indexes."""

    def __init__(self, config: L7Config) -> None:
        self.config = config
        self.role = config.role
        self.services: Mapping[str, L7Service] = {s.key: s for s in config.services}
        self.by_hostname: Mapping[str, L7Service] = {s.hostname: s for s in reversed(config.services)}
        self.by_address: Mapping[str, L7Service] = {s.address: s for s in reversed(config.services)}
        self._labels = {w.uid: dict(w.labels) for w in config.workload_labels}
        self._modes = {m.port: m.mode for m in config.port_modes}
        self.plain_ports = frozenset((p.uid, p.port) for p in config.plain_ports)
        self._policies: dict[str | None, PolicySet] = {}
        self._clusters: dict[tuple[str, int, str], Cluster | None] = {}

    @classmethod
    def parse(cls, raw: object) -> L7View:
        """Of the `l7` object as JSON gives it. Raises ValueError naming the key."""
        return cls(from_plain(L7Config, raw, "l7"))

    def mode(self, port: int) -> Mode:
        """Which peers the workload's own `port` takes: STRICT, PERMISSIVE or DISABLE."""
        return self._modes.get(port, self.config.mode)

    @cached_property
    def inbound_protocols(self) -> Mapping[int, str]:
        """Of a sidecar's workload: its port -> protocol, empty where two services say different things."""
        found: dict[int, str] = {}
        for key in self.config.serves:
            for p in self.services[key].ports:
                said = found.setdefault(p.target_port, p.protocol)
                if said != p.protocol:
                    found[p.target_port] = ""
        return found

    def policies(self, service_key: str | None = None) -> PolicySet:
        """Those to ask: a waypoint's for one service (None: for traffic to a workload's address), a sidecar's all."""
        held = self._policies.get(service_key)
        if held is None:
            held = PolicySet(self.policy_resources(service_key), trust_domain=self.config.trust_domain)
            self._policies[service_key] = held
        return held

    def policy_resources(self, service_key: str | None = None) -> list[AuthorizationPolicy]:
        """What `policies` is made of."""
        service = self.services.get(service_key) if service_key is not None else None
        return [p for p in self.config.authorization if self.role is Role.SIDECAR or self._attached(p, service)]

    def _attached(self, policy: AuthorizationPolicy, service: L7Service | None) -> bool:
        for ref in policy.target_refs:
            if ref.kind in ("Gateway", "GatewayClass"):
                return True
            if ref.kind == "Service" and service is not None and (policy.namespace, ref.name) == (
                service.namespace, service.name,
            ):  # fmt: skip
                return True
        return False

    def cluster(self, service_key: str, port: int, subset: str = "") -> Cluster | None:
        """None where there is no such port or subset."""
        key = (service_key, port, subset)
        if key not in self._clusters:
            self._clusters[key] = self._make_cluster(*key)
        return self._clusters[key]

    def _make_cluster(self, service_key: str, port: int, subset_name: str) -> Cluster | None:
        service = self.services.get(service_key)
        if service is None or service.port(port) is None:
            return None
        rule = self.destination_rule(service)
        subset = None
        if subset_name:
            subset = next((s for s in rule.subsets if s.name == subset_name), None) if rule is not None else None
            if subset is None:
                return None
        policy = _merged(rule.policy if rule is not None else None, subset.policy if subset else None, port)
        if self.role is Role.WAYPOINT and service_key in self.config.serves:
            name = "|".join(filter(None, ("inbound-vip", str(port), "http", subset_name, service.hostname)))
        else:
            name = f"outbound|{port}|{subset_name}|{service.hostname}"
        return Cluster(name, service, port, subset, policy)

    def destination_rule(self, service: L7Service) -> DestinationRule | None:
        """The one in the proxy's namespace, else the service's, else the root's; in each the most exact host."""
        config = self.config
        for namespace in dict.fromkeys((config.namespace, service.namespace, config.root_namespace)):
            best: tuple[int, DestinationRule] | None = None
            for rule in config.destination_rules:
                if rule.namespace != namespace or not self._rule_applies(rule):
                    continue
                host = full_name(rule.host, rule.namespace)
                rank = host_rank(host, service.hostname)
                if rank and (best is None or rank > best[0]):
                    best = (rank, rule)
            if best is not None:
                return best[1]
        return None

    def _rule_applies(self, rule: DestinationRule) -> bool:
        return exported(rule.export_to, rule.namespace, self.config.namespace) and (
            rule.selector is None or set(rule.selector) <= set(self.config.labels)
        )

    def members(self, cluster: Cluster, mesh: MeshView) -> tuple[Endpoint, ...]:
        """The healthy endpoints of its service that bear its subset's labels."""
        service = mesh.service_by_key(cluster.service_key)
        if service is None:
            return ()
        endpoints = mesh.endpoints(service)
        if cluster.labels is None:
            return endpoints
        wanted = cluster.labels.items()
        return tuple(e for e in endpoints if wanted <= self._labels.get(e.workload.uid, {}).items())


def write(config: L7Config) -> dict:
    return to_plain(config)


def host_rank(pattern: str, hostname: str) -> int:
    """0 for no match; the longer the pattern the higher, an exact one highest. `*.a.b` and `*` are patterns."""
    if pattern == hostname:
        return 1 << 20
    if pattern.startswith("*") and hostname.endswith(pattern[1:]) and len(hostname) > len(pattern) - 1:
        return len(pattern)
    return 0


def exported(export_to: Iterable[str], own: str, namespace: str) -> bool:
    """Whether a resource of namespace `own` is to be seen in `namespace`; no `exportTo` means everywhere."""
    listed = tuple(export_to)
    return not listed or "*" in listed or namespace in listed or ("." in listed and own == namespace)


def _merged(whole: TrafficPolicy | None, subset: TrafficPolicy | None, port: int) -> TrafficPolicy:
    """Destination, then its port, then subset, then the subset's port. A port's settings inherit nothing."""
    policy = _NO_POLICY
    for layer in (whole, subset):
        if layer is None:
            continue
        set_here = {
            name: held
            for name in ("load_balancing", "connection_pool", "outlier_detection", "tls", "retry_budget")
            if (held := getattr(layer, name)) is not None
        }
        policy = replace(policy, **set_here)
        own = next((p.policy for p in layer.ports if p.port == port), None)
        if own is not None:
            policy = replace(
                policy, load_balancing=own.load_balancing, connection_pool=own.connection_pool,
                outlier_detection=own.outlier_detection, tls=own.tls,
            )  # fmt: skip
    return policy
