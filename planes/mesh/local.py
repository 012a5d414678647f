"""ztunnel's LOCAL configuration as values: workloads, services, policies, read with every problem told at once.

Keys, defaults and which ones must be written are facts/hbone 5.5. One thing is stricter than in ztunnel:
`serviceAccount` and `trustDomain` must be written, for its LOCAL defaults are empty and match no certificate.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from planes.mesh.fields import MISSING, Fields
from testbed.model.identity import Identity
from testbed.model.l4policy import L4Policy

HBONE_PORT = 15008


class Protocol(StrEnum):
    HBONE = "HBONE"
    TCP = "TCP"


class Mode(StrEnum):
    STANDARD = "Standard"
    STRICT = "Strict"
    FAILOVER = "Failover"
    PASSTHROUGH = "Passthrough"


class RoutingScope(StrEnum):
    REGION = "Region"
    ZONE = "Zone"
    SUBZONE = "Subzone"
    NODE = "Node"
    CLUSTER = "Cluster"
    NETWORK = "Network"


class Families(StrEnum):
    DUAL = "Dual"
    IPV4 = "IPv4"
    IPV6 = "IPv6"


class NetworkMode(StrEnum):
    STANDARD = "Standard"
    HOST_NETWORK = "HostNetwork"


class ViewError(ValueError):
    """A view that cannot be used. `problems` holds every one of them, each saying where, what and the mend."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayAddress:
    """Where a waypoint or network gateway is: `(network, ip)` or `(namespace, hostname)`, never both."""

    address: tuple[str, str] | None = None
    hostname: tuple[str, str] | None = None
    hbone_port: int = HBONE_PORT

    def __str__(self) -> str:
        return f"{'/'.join(self.address or self.hostname or ('', ''))}:{self.hbone_port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplicationTunnel:
    """The workload takes its inbound streams with a PROXY v2 header, on `port` if set, else on the target port."""

    proxy_protocol: bool
    port: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkloadView:
    """A workload as a proxy knows it. Absent text is the empty string, as in ztunnel."""

    uid: str
    name: str
    namespace: str
    service_account: str
    trust_domain: str
    identity: Identity
    addresses: tuple[str, ...]
    protocol: Protocol
    hostname: str = ""
    """A workload known by DNS name instead of addresses."""
    network: str = ""
    network_mode: NetworkMode = NetworkMode.STANDARD
    network_gateway: GatewayAddress | None = None
    waypoint: GatewayAddress | None = None
    node: str = ""
    workload_name: str = ""
    workload_type: str = "deployment"
    canonical_name: str = ""
    canonical_revision: str = ""
    cluster_id: str = ""
    region: str = ""
    zone: str = ""
    subzone: str = ""
    native_tunnel: bool = False
    application_tunnel: ApplicationTunnel | None = None
    authorization_policies: tuple[str, ...] = ()
    healthy: bool = True
    capacity: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancer:
    mode: Mode = Mode.STANDARD
    preferences: tuple[RoutingScope, ...] = ()
    allow_all: bool = False
    """Unhealthy endpoints count too (publishNotReadyAddresses)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceView:
    """A service as a proxy knows it; its endpoints are asked of the view."""

    name: str
    namespace: str
    hostname: str
    vips: tuple[tuple[str, str], ...]
    """`(network, ip)`."""
    cidr_vips: tuple[tuple[str, str], ...]
    """`(network, cidr)`."""
    ports: Mapping[int, int]
    """Service port to target port; 0 means a named port, to be looked up at the endpoint."""
    sans: tuple[Identity, ...] = ()
    """Those of `subjectAltNames` that are SPIFFE identities; others can never match."""
    waypoint: GatewayAddress | None = None
    weighted_waypoints: tuple[tuple[GatewayAddress, int], ...] = ()
    load_balancer: LoadBalancer = LoadBalancer()
    families: Families | None = None
    canonical: bool = False
    private: bool = False
    """Visibility `Namespace`: hidden from clients of other namespaces."""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.hostname}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A workload behind a service, with its own port map (service port to target port)."""

    workload: WorkloadView
    ports: Mapping[int, int]


class _Health(StrEnum):
    HEALTHY = "Healthy"
    UNHEALTHY = "Unhealthy"


class _HealthPolicy(StrEnum):
    ONLY_HEALTHY = "OnlyHealthy"
    ALLOW_ALL = "AllowAll"


class _Tunnel(StrEnum):
    NONE = "NONE"
    PROXY = "PROXY"


class _Visibility(StrEnum):
    PUBLIC = "Public"
    NAMESPACE = "Namespace"


_WORKLOAD_KEYS = (
    "uid", "name", "namespace", "serviceAccount", "trustDomain", "workloadIps", "hostname", "network", "networkMode",
    "networkGateway", "protocol", "waypoint", "node", "workloadName", "workloadType", "canonicalName",
    "canonicalRevision", "clusterId", "locality", "nativeTunnel", "applicationTunnel", "authorizationPolicies",
    "status", "capacity", "services",
)  # fmt: skip
_SERVICE_KEYS = (
    "name", "namespace", "hostname", "vips", "cidrVips", "ports", "subjectAltNames", "waypoint", "weightedWaypoints",
    "loadBalancer", "ipFamilies", "canonical", "visibility",
)  # fmt: skip
_POLICY_KEYS = ("name", "namespace", "scope", "action", "dryRun", "rules")


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalConfig:
    """A file as read: not yet indexed."""

    workloads: tuple[WorkloadView, ...] = ()
    services: tuple[ServiceView, ...] = ()
    policies: tuple[L4Policy, ...] = ()
    endpoint_ports: Mapping[str, Mapping[str, Mapping[int, int]]] = field(default_factory=dict)
    """Workload uid to `namespace/hostname` of a service to the endpoint's own port map."""


def read(text: Mapping[str, object]) -> LocalConfig:
    """Raises ViewError with all problems of `text`, which is the LOCAL shape as JSON gives it."""
    problems: list[str] = []
    top = Fields(problems, "view", text, ("workloads", "services", "policies"))
    workload_fields = [
        Fields(problems, f"workloads[{i}]", raw, _WORKLOAD_KEYS, name_key="uid")
        for i, raw in enumerate(top.items("workloads"))
    ]
    workloads = tuple(_workload(f) for f in workload_fields)
    ports = {
        w.uid: {key: f.port_map(f"services[{key}]", value) for key, value in f.mapping("services").items()}
        for w, f in zip(workloads, workload_fields, strict=True)
    }
    services = tuple(
        _service(Fields(problems, f"services[{i}]", raw, _SERVICE_KEYS, name_key="hostname"))
        for i, raw in enumerate(top.items("services"))
    )
    policies = tuple(
        policy
        for i, raw in enumerate(top.items("policies"))
        if (policy := _policy(Fields(problems, f"policies[{i}]", raw, _POLICY_KEYS, name_key="name"))) is not None
    )
    problems += [f"workload {uid}: this uid is used {n} times; make each unique"
                 for uid, n in Counter(w.uid for w in workloads).items() if n > 1]  # fmt: skip
    problems += [f"service {key}: is written {n} times; make each unique"
                 for key, n in Counter(s.key for s in services).items() if n > 1]  # fmt: skip
    if problems:
        raise ViewError(problems)
    return LocalConfig(workloads=workloads, services=services, policies=policies, endpoint_ports=ports)


def _workload(f: Fields) -> WorkloadView:
    locality = Fields(f.problems, f"{f.where}.locality", f.value("locality", {}), ("region", "zone", "subzone"))
    namespace = f.identity_part("namespace")
    account, trust_domain = f.identity_part("serviceAccount"), f.identity_part("trustDomain")
    return WorkloadView(
        uid=f.text("uid", MISSING), name=f.text("name", MISSING), namespace=namespace, service_account=account,
        trust_domain=trust_domain, identity=Identity(trust_domain, namespace, account),
        addresses=tuple(f.address("workloadIps", a) for a in f.items("workloadIps", MISSING)),
        protocol=f.choice("protocol", Protocol, Protocol.TCP), hostname=f.text("hostname"), network=f.text("network"),
        network_mode=f.choice("networkMode", NetworkMode, NetworkMode.STANDARD),
        network_gateway=_gateway(f, "networkGateway"), waypoint=_gateway(f, "waypoint"), node=f.text("node"),
        workload_name=f.text("workloadName"), workload_type=f.text("workloadType", "deployment"),
        canonical_name=f.text("canonicalName"), canonical_revision=f.text("canonicalRevision"),
        cluster_id=f.text("clusterId"), region=locality.text("region"), zone=locality.text("zone"),
        subzone=locality.text("subzone"), native_tunnel=f.flag("nativeTunnel"), application_tunnel=_tunnel(f),
        authorization_policies=f.texts("authorizationPolicies"),
        healthy=f.choice("status", _Health, _Health.HEALTHY) is _Health.HEALTHY, capacity=f.number("capacity", 1),
    )  # fmt: skip


def _service(f: Fields) -> ServiceView:
    families = f.choice("ipFamilies", Families, Families.DUAL) if f.value("ipFamilies", None) is not None else None
    return ServiceView(
        name=f.text("name", MISSING), namespace=f.text("namespace", MISSING), hostname=f.text("hostname", MISSING),
        vips=tuple(f.network_address("vips", v) for v in f.items("vips", MISSING)), cidr_vips=_cidr_vips(f),
        ports=f.port_map("ports", f.value("ports", MISSING)), sans=_identities(f.texts("subjectAltNames")),
        waypoint=_gateway(f, "waypoint"), weighted_waypoints=_weighted_waypoints(f), load_balancer=_load_balancer(f),
        families=families, canonical=f.flag("canonical"),
        private=f.choice("visibility", _Visibility, _Visibility.PUBLIC) is _Visibility.NAMESPACE,
    )  # fmt: skip


def _policy(f: Fields) -> L4Policy | None:
    before = len(f.problems)
    for key in _POLICY_KEYS:
        f.value(key, MISSING)
    if len(f.problems) > before:
        return None
    try:
        return L4Policy.from_local(dict(f.raw))
    except (ValueError, KeyError, TypeError) as e:
        f.problems.append(f"{f.where}: {e}")
        return None


def _gateway(f: Fields, key: str) -> GatewayAddress | None:
    """`{destination: "network/ip" or "namespace/hostname", hboneMtlsPort}`; None when it is not written."""
    raw = f.value(key, None)
    if raw is None:
        return None
    g = Fields(f.problems, f"{f.where}.{key}", raw, ("destination", "hboneMtlsPort"))
    scope, slash, target = g.text("destination", MISSING).partition("/")
    port = g.number("hboneMtlsPort", HBONE_PORT)
    if not slash or not target:
        g.problem("destination", 'must be "network/ip" or "namespace/hostname"')
        return None
    try:
        return GatewayAddress(address=(scope, str(ipaddress.ip_address(target))), hbone_port=port)
    except ValueError:
        return GatewayAddress(hostname=(scope, target), hbone_port=port)


def _tunnel(f: Fields) -> ApplicationTunnel | None:
    raw = f.value("applicationTunnel", None)
    if raw is None:
        return None
    t = Fields(f.problems, f"{f.where}.applicationTunnel", raw, ("protocol", "port"))
    proxied = t.choice("protocol", _Tunnel, _Tunnel.NONE) is _Tunnel.PROXY
    return ApplicationTunnel(proxy_protocol=proxied, port=t.number("port", 0) or None)


def _weighted_waypoints(f: Fields) -> tuple[tuple[GatewayAddress, int], ...]:
    found = []
    for i, raw in enumerate(f.items("weightedWaypoints")):
        w = Fields(f.problems, f"{f.where}.weightedWaypoints[{i}]", raw, ("destination", "weight"))
        gateway = _gateway(w, "destination")
        if gateway is not None:
            found.append((gateway, w.number("weight", MISSING)))
    return tuple(found)


def _cidr_vips(f: Fields) -> tuple[tuple[str, str], ...]:
    fields = (Fields(f.problems, f"{f.where}.cidrVips[{i}]", raw, ("network", "cidr"))
              for i, raw in enumerate(f.items("cidrVips")))  # fmt: skip
    return tuple((c.text("network"), c.cidr("cidr")) for c in fields)


def _load_balancer(f: Fields) -> LoadBalancer:
    raw = f.value("loadBalancer", None)
    if raw is None:
        return LoadBalancer()
    b = Fields(f.problems, f"{f.where}.loadBalancer", raw, ("mode", "routingPreferences", "healthPolicy"))
    preferences = b.items("routingPreferences", MISSING)
    return LoadBalancer(
        mode=b.choice("mode", Mode, MISSING),
        preferences=tuple(b.one_of("routingPreferences", RoutingScope, p) for p in preferences),
        allow_all=b.choice("healthPolicy", _HealthPolicy, MISSING) is _HealthPolicy.ALLOW_ALL,
    )


def _identities(texts: Sequence[str]) -> tuple[Identity, ...]:
    found = []
    for text in texts:
        try:
            found.append(Identity.parse(text))
        except ValueError:  # a DNS name may stand here; ztunnel skips it as well
            continue
    return tuple(found)
