"""Istio's and the Gateway API's traffic resources as values: what a client's sidecar or a waypoint may decide by.

Pure, and whole: a field that no plane of ours honours is kept too, so that a run can say so (`testbed.honoured`).
HTTPRoute and GRPCRoute share `HttpRule` with VirtualService, as in istiod, which converts them; where their meaning
differs (paths by segment, order by specificity, weights that sum to nothing) the value says so. Percentages are
fractions 0..1, times are seconds. Fields and defaults: facts/hbone 6.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

Labels = tuple[tuple[str, str], ...]
GRPC_CODES = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
)  # fmt: skip
"""By their numbers."""


class TextKind(StrEnum):
    EXACT = "exact"
    PREFIX = "prefix"
    SEGMENTS = "segments"
    """The Gateway API's PathPrefix: `/a` is a prefix of `/a` and `/a/b`, not of `/ab`."""
    REGEX = "regex"
    """RE2's language, the whole text must match."""
    PRESENT = "present"


@dataclass(frozen=True, slots=True, kw_only=True)
class TextMatch:
    kind: TextKind
    value: str = ""
    ignore_case: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedMatch:
    """Of a header (name in lower case) or a query parameter."""

    name: str
    text: TextMatch


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestMatch:
    """All that is set must hold."""

    name: str = ""
    uri: TextMatch | None = None
    scheme: TextMatch | None = None
    method: TextMatch | None = None
    authority: TextMatch | None = None
    headers: tuple[NamedMatch, ...] = ()
    without_headers: tuple[NamedMatch, ...] = ()
    query: tuple[NamedMatch, ...] = ()
    port: int | None = None
    """Of the service."""
    source_labels: Labels = ()
    source_namespace: str = ""
    gateways: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class HeaderEdits:
    """Names in lower case; `remove` first, then `set`, then `add`."""

    set: tuple[tuple[str, str], ...] = ()
    add: tuple[tuple[str, str], ...] = ()
    remove: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Destination:
    host: str
    """As written: a short name means the namespace of its resource, except with `namespace` (the Gateway API's)."""
    port: int | None = None
    subset: str = ""
    namespace: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightedDestination:
    destination: Destination
    weight: int | None = None
    """None: VirtualService takes 100 where there is one destination, else 0; HTTPRoute takes 1."""
    request_headers: HeaderEdits | None = None
    response_headers: HeaderEdits | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rewrite:
    """`path` replaces the whole path, `prefix` the part that a prefix match took, `regex` what a pattern finds."""

    prefix: str | None = None
    path: str | None = None
    regex: tuple[str, str] | None = None
    """(pattern, substitution with `\\1`)."""
    authority: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Redirect:
    status: int
    """VirtualService's default is 301, HTTPRoute's 302."""
    scheme: str | None = None
    authority: str | None = None
    port: int | None = None
    path: str | None = None
    prefix: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectResponse:
    status: int
    body: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    attempts: int | None = None
    """Retries after the first try; 0 switches them off, None is the mesh's default."""
    per_try_timeout_s: float | None = None
    retry_on: str = ""
    """Envoy's condition names and status codes with commas; empty means the mesh's default."""
    backoff_s: float | None = None
    retry_remote_localities: bool | None = None
    ignore_previous_hosts: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is done to a share of requests before they are routed; a share of 0 is what an absent percentage means."""

    delay_s: float = 0.0
    delay_share: float = 0.0
    abort_status: int | None = None
    abort_grpc_status: str | None = None
    abort_share: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mirror:
    destination: Destination
    share: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cors:
    allow_origins: tuple[TextMatch, ...] = ()
    allow_methods: tuple[str, ...] = ()
    allow_headers: tuple[str, ...] = ()
    expose_headers: tuple[str, ...] = ()
    max_age_s: float | None = None
    allow_credentials: bool = False
    unmatched_preflights: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRule:
    """One route: `matches` (any of; none means always) and what is done."""

    name: str = ""
    matches: tuple[RequestMatch, ...] = ()
    destinations: tuple[WeightedDestination, ...] = ()
    redirect: Redirect | None = None
    direct_response: DirectResponse | None = None
    rewrite: Rewrite | None = None
    timeout_s: float | None = None
    """None: the default, which is none."""
    retries: Retries | None = None
    fault: Fault | None = None
    mirrors: tuple[Mirror, ...] = ()
    cors: Cors | None = None
    request_headers: HeaderEdits | None = None
    response_headers: HeaderEdits | None = None
    kept_fields: tuple[str, ...] = ()
    """Known to Istio, honoured nowhere here (`delegate`, experimental filters)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class L4Match:
    """Of a `tcp` or `tls` route."""

    destination_subnets: tuple[str, ...] = ()
    port: int | None = None
    sni_hosts: tuple[str, ...] = ()
    source_labels: Labels = ()
    source_namespace: str = ""
    gateways: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class L4Rule:
    matches: tuple[L4Match, ...] = ()
    destinations: tuple[WeightedDestination, ...] = ()
    kept_fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualService:
    name: str
    namespace: str
    hosts: tuple[str, ...]
    gateways: tuple[str, ...] = ()
    """Empty means `mesh`: every sidecar."""
    http: tuple[HttpRule, ...] = ()
    tcp: tuple[L4Rule, ...] = ()
    tls: tuple[L4Rule, ...] = ()
    export_to: tuple[str, ...] = ()

    @property
    def for_mesh(self) -> bool:
        return not self.gateways or "mesh" in self.gateways


@dataclass(frozen=True, slots=True, kw_only=True)
class ParentRef:
    kind: str
    name: str
    namespace: str = ""
    """Empty: the route's own."""
    group: str = ""
    port: int | None = None
    section_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpRoute:
    """HTTPRoute, or GRPCRoute read as one: its rules are ordered by specificity among all routes of a parent."""

    name: str
    namespace: str
    parents: tuple[ParentRef, ...] = ()
    hostnames: tuple[str, ...] = ()
    rules: tuple[HttpRule, ...] = ()
    grpc: bool = False
    kept_fields: tuple[str, ...] = ()


class Balance(StrEnum):
    LEAST_REQUEST = "LEAST_REQUEST"
    ROUND_ROBIN = "ROUND_ROBIN"
    RANDOM = "RANDOM"
    PASSTHROUGH = "PASSTHROUGH"


@dataclass(frozen=True, slots=True, kw_only=True)
class HashOn:
    """`consistentHash`: one of header, cookie, source address, query parameter."""

    header: str = ""
    cookie: str = ""
    cookie_path: str = ""
    cookie_ttl_s: float | None = None
    """Set: a client without the cookie is given one; 0 makes it a session's."""
    source_ip: bool = False
    query: str = ""
    ring_size: int = 1024
    maglev: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalityBalance:
    enabled: bool | None = None
    distribute: tuple[tuple[str, tuple[tuple[str, int], ...]], ...] = ()
    failover: tuple[tuple[str, str], ...] = ()
    failover_priority: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadBalancing:
    simple: Balance | None = None
    hash_on: HashOn | None = None
    locality: LocalityBalance | None = None
    warmup_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionPool:
    """None means Istio's default, which for every limit is none."""

    max_connections: int | None = None
    connect_timeout_s: float | None = None
    idle_timeout_s: float | None = None
    max_connection_duration_s: float | None = None
    max_pending_requests: int | None = None
    max_requests: int | None = None
    max_requests_per_connection: int | None = None
    max_retries: int | None = None
    http_idle_timeout_s: float | None = None
    h2_upgrade: str = ""
    use_client_protocol: bool = False
    max_concurrent_streams: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlierDetection:
    """Times in seconds, shares 0..1. `consecutive_gateway_errors` 0 is off; `consecutive_5xx` 0 too."""

    consecutive_5xx: int = 5
    consecutive_gateway_errors: int = 0
    consecutive_local_origin_failures: int = 5
    split_local_origin: bool = False
    interval_s: float = 10.0
    base_ejection_s: float = 30.0
    max_ejection_share: float = 0.1
    min_health_share: float = 0.0


class TlsMode(StrEnum):
    DISABLE = "DISABLE"
    SIMPLE = "SIMPLE"
    MUTUAL = "MUTUAL"
    ISTIO_MUTUAL = "ISTIO_MUTUAL"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    mode: TlsMode
    sni: str = ""
    ca_certificates: str = ""
    client_certificate: str = ""
    private_key: str = ""
    credential_name: str = ""
    subject_alt_names: tuple[str, ...] = ()
    insecure_skip_verify: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryBudget:
    """How many of a cluster's requests may be retries at once."""

    share: float = 0.2
    min_concurrency: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PortPolicy:
    port: int
    policy: TrafficPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficPolicy:
    """A port's own policy stands in for all of the destination's: nothing is inherited by it, as in Istio."""

    load_balancing: LoadBalancing | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None
    retry_budget: RetryBudget | None = None
    ports: tuple[PortPolicy, ...] = ()
    kept_fields: tuple[str, ...] = ()
    """Known to Istio, honoured nowhere here (`tunnel`, `proxyProtocol`)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subset:
    name: str
    labels: Labels = ()
    policy: TrafficPolicy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DestinationRule:
    name: str
    namespace: str
    host: str
    policy: TrafficPolicy | None = None
    subsets: tuple[Subset, ...] = ()
    export_to: tuple[str, ...] = ()
    selector: Labels | None = None


Traffic = VirtualService | HttpRoute | DestinationRule


def full_name(host: str, namespace: str) -> str:
    """A host as a resource of `namespace` writes it, in full and lower case: names without a dot are services of it."""
    host = host.lower()
    if "." in host or host.startswith("*") or not host:
        return host
    return f"{host}.{namespace}.svc.cluster.local"
