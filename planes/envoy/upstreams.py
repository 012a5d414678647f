"""Clusters as Envoy's: a service's endpoints, each reached as it can be, and what a DestinationRule says of them. Pure.

One cluster holds endpoints of several kinds, told apart by metadata as Istio does: a sidecar's gets Istio's mutual TLS,
an ambient workload's a tunnel, any other plain bytes (facts/hbone 4.3, 4.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planes.envoy import pieces
from planes.envoy.parts import Parts, Subject
from planes.envoy.pieces import Json
from planes.envoy.tunnels import Tunnels, internal_transport, onwards, raw, through
from planes.l7.balance import Host, hosts
from planes.l7.view import Cluster
from planes.mesh.view import Protocol, WorkloadView
from testbed.model.traffic import Balance, ClientTls, ConnectionPool, LoadBalancing, OutlierDetection, TlsMode

ALPN_TCP = ("istio",)
"""HTTP says another by filter state, per connection's protocol: `ALPN_HTTP1`, `ALPN_HTTP2` (facts/hbone 4.2)."""
ALPN_HTTP1 = ("istio-http/1.1", "istio", "http/1.1")
ALPN_HTTP2 = ("istio-h2", "istio", "h2")
_POLICY = {Balance.ROUND_ROBIN: "ROUND_ROBIN", Balance.RANDOM: "RANDOM"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstreams:
    """Clusters of one proxy. Without `subject` none is reached by mutual TLS of Istio's kind (waypoint, ztunnel)."""

    parts: Parts
    tunnels: Tunnels
    subject: Subject | None = None

    def own_address(self, workload: WorkloadView) -> str:
        """To one workload, at whatever port the connection was going to: by a tunnel if it takes any."""
        name = f"encap|{workload.namespace}/{workload.name}"
        if self._way(workload, 0, None) != "hbone":
            return self.parts.cluster(pieces.original_destination_cluster(name, http=either_protocol()))
        inside = self.tunnels.opener(self.parts, name, [str(workload.identity)])
        return onwards(self.parts, name, inside, either_protocol())

    def of(self, subject: Subject, cluster: Cluster) -> str:
        """The Envoy cluster of one of ours, by its name."""
        service = subject.mesh.service_by_key(cluster.service_key)
        members: Sequence[Host] = ()
        if service is not None:
            members = hosts(subject.configured.members(cluster, subject.mesh), service, cluster.port, subject.local)
        if cluster.name in self.parts.clusters:
            return cluster.name
        name = self.cluster(
            cluster.name, members, http=either_protocol(), server_name=cluster.sni, tls=cluster.policy.tls
        )
        self._apply(self.parts.clusters[name], cluster)
        return name

    def cluster(
        self, name: str, members: Sequence[Host], *, policy: str = "LEAST_REQUEST", http: Json | None = None,
        server_name: str = "", tls: ClientTls | None = None,
    ) -> str:  # fmt: skip
        ways = {m: self._way(m.endpoint.workload, m.port, tls) for m in members if m.endpoint.workload.addresses}
        if tls is not None and tls.mode in (TlsMode.SIMPLE, TlsMode.MUTUAL):
            # TLS that is not spoken here: plain bytes must not go instead, so there is nobody to send them to
            ways = {m: way for m, way in ways.items() if way != "plain"}
        made = pieces.cluster(name, [], http=http, policy=policy)
        matches: list[Json] = []
        inside = ""
        if tunnelled := self._identities(ways, "hbone"):
            inside = self.tunnels.opener(self.parts, name, tunnelled)
            matches.append(_matching("hbone", internal_transport()))
        if secured := self._identities(ways, "istio"):
            matches.append(_matching("istio", self._mutual_tls(secured, server_name)))
        if matches:
            matches.append({"name": "plain", "match": {}, "transport_socket": raw()})
            made["transport_socket_matches"] = matches
        tiers = sorted({m.tier for m in ways})
        even = len({m.weight for m in ways}) < 2
        grouped: list[Json] = []
        for priority, tier in enumerate(tiers):
            listed = [_endpoint(m, way, inside, even) for m, way in ways.items() if m.tier == tier]
            grouped.append({"priority": priority, "lb_endpoints": listed})
        made["load_assignment"] = {"cluster_name": name, "endpoints": grouped}
        return self.parts.cluster(made)

    def _way(self, workload: WorkloadView, port: int, tls: ClientTls | None) -> str:
        subject = self.subject
        if subject is None:
            return "hbone" if workload.protocol is Protocol.HBONE else "plain"
        if workload.uid not in subject.sidecars and workload.protocol is Protocol.HBONE:
            return "hbone"
        if tls is not None:
            return "istio" if tls.mode is TlsMode.ISTIO_MUTUAL else "plain"
        secured = workload.uid in subject.sidecars and (workload.uid, port) not in subject.configured.plain_ports
        return "istio" if secured else "plain"

    @staticmethod
    def _identities(ways: dict[Host, str], wanted: str) -> list[str]:
        return sorted({str(m.endpoint.workload.identity) for m, way in ways.items() if way == wanted})

    def _mutual_tls(self, expected: Sequence[str], server_name: str) -> Json:
        common = pieces.tls(
            self.tunnels.identity, peers=[pieces.exact(uri) for uri in expected], alpn=ALPN_TCP,
            keylog=self.tunnels.keylog, lowest="TLSv1_2",
        )  # fmt: skip
        return pieces.client_tls(common, sni=server_name)

    # -- what a DestinationRule says

    def _apply(self, made: Json, cluster: Cluster) -> None:
        policy, where = cluster.policy, f"DestinationRule of {cluster.hostname}"
        if policy.load_balancing is not None:
            self._balance(made, policy.load_balancing, where)
        if policy.connection_pool is not None:
            self._pool(made, policy.connection_pool, where)
        if policy.outlier_detection is not None:
            made["outlier_detection"] = _outliers(policy.outlier_detection)
            share = policy.outlier_detection.min_health_share * 100
            made["common_lb_config"] = {"healthy_panic_threshold": {"value": share}}
        if policy.retry_budget is not None:
            made["circuit_breakers"]["thresholds"][0]["retry_budget"] = {  # type: ignore[index]
                "budget_percent": {"value": policy.retry_budget.share * 100},
                "min_retry_concurrency": policy.retry_budget.min_concurrency,
            }
        if policy.tls is not None and policy.tls.mode in (TlsMode.SIMPLE, TlsMode.MUTUAL):
            self.parts.leave_undone(f"{where}: tls.mode {policy.tls.mode}; nothing is sent")
        for field in policy.kept_fields:
            self.parts.leave_undone(f"{where}: {field}")

    def _balance(self, made: Json, balancing: LoadBalancing, where: str) -> None:
        if balancing.simple is Balance.PASSTHROUGH:
            self.parts.leave_undone(f"{where}: loadBalancer.simple PASSTHROUGH")
        elif balancing.simple in _POLICY:
            made["lb_policy"] = _POLICY[balancing.simple]
        if balancing.hash_on is not None:
            made["lb_policy"] = "MAGLEV" if balancing.hash_on.maglev else "RING_HASH"
            if not balancing.hash_on.maglev:
                made["ring_hash_lb_config"] = {"minimum_ring_size": balancing.hash_on.ring_size}
        if balancing.warmup_s is not None:
            self.parts.leave_undone(f"{where}: loadBalancer.warmup")
        locality = balancing.locality
        if locality is not None and (locality.distribute or locality.failover or locality.failover_priority):
            self.parts.leave_undone(f"{where}: loadBalancer.localityLbSetting")

    def _pool(self, made: Json, pool: ConnectionPool, where: str) -> None:
        limits = {
            "max_connections": pool.max_connections, "max_pending_requests": pool.max_pending_requests,
            "max_requests": pool.max_requests, "max_retries": pool.max_retries,
        }  # fmt: skip
        made["circuit_breakers"]["thresholds"][0].update(  # type: ignore[index]
            {name: limit for name, limit in limits.items() if limit is not None}
        )
        if pool.connect_timeout_s is not None:
            made["connect_timeout"] = seconds(pool.connect_timeout_s)
        options: Json = made["typed_extension_protocol_options"][  # type: ignore[index,assignment]
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        ]
        common: Json = {}
        if pool.http_idle_timeout_s is not None:
            common["idle_timeout"] = seconds(pool.http_idle_timeout_s)
        if pool.max_connection_duration_s is not None:
            common["max_connection_duration"] = seconds(pool.max_connection_duration_s)
        if pool.max_requests_per_connection:
            common["max_requests_per_connection"] = pool.max_requests_per_connection
        if common:
            options["common_http_protocol_options"] = common
        if pool.max_concurrent_streams is not None:
            options["use_downstream_protocol_config"]["http2_protocol_options"][  # type: ignore[index]
                "max_concurrent_streams"
            ] = pool.max_concurrent_streams
        if pool.h2_upgrade == "UPGRADE":
            self.parts.leave_undone(f"{where}: connectionPool.http.h2UpgradePolicy UPGRADE")
        if pool.idle_timeout_s is not None:
            self.parts.leave_undone(f"{where}: connectionPool.tcp.idleTimeout")


def either_protocol() -> Json:
    """Upstream by the version that came downstream."""
    return {
        "use_downstream_protocol_config": {"http_protocol_options": {}, "http2_protocol_options": pieces.http2()}
    }


def _endpoint(member: Host, way: str, inside: str, even: bool) -> Json:
    workload = member.endpoint.workload
    made = through(inside, workload, member.port) if way == "hbone" else pieces.endpoint(
        workload.addresses[0], member.port
    )
    metadata: Json = made.setdefault("metadata", {}).setdefault("filter_metadata", {})  # type: ignore[attr-defined]
    metadata["envoy.transport_socket_match"] = {"reached": way}
    if not even:
        made["load_balancing_weight"] = member.weight
    return made


def _matching(way: str, transport: Json) -> Json:
    return {"name": way, "match": {"reached": way}, "transport_socket": transport}


def _outliers(o: OutlierDetection) -> Json:
    made: Json = {
        "consecutive_5xx": o.consecutive_5xx,
        "enforcing_consecutive_5xx": 100 if o.consecutive_5xx else 0,
        "consecutive_gateway_failure": o.consecutive_gateway_errors or 5,
        "enforcing_consecutive_gateway_failure": 100 if o.consecutive_gateway_errors else 0,
        "enforcing_success_rate": 0,
        "interval": seconds(o.interval_s),
        "base_ejection_time": seconds(o.base_ejection_s),
        "max_ejection_percent": round(o.max_ejection_share * 100),
    }
    if o.split_local_origin:
        made |= {
            "split_external_local_origin_errors": True,
            "consecutive_local_origin_failure": o.consecutive_local_origin_failures,
            "enforcing_consecutive_local_origin_failure": 100 if o.consecutive_local_origin_failures else 0,
        }
    if not o.consecutive_5xx:
        made["consecutive_5xx"] = 5
    return made


def seconds(value_s: float) -> str:
    return f"{value_s:.9f}".rstrip("0").rstrip(".") + "s"
