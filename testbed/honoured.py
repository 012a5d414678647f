"""What a plane leaves undone of Istio's resources, field by field, so that a run can say so beside its results.

A known field that nothing honours is never an error: that it does nothing is one of the results. Which plane does
what: facts/hbone 2.7, 3.6, 4.5 and 6.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from testbed.model.l4policy import L4Policy
from testbed.model.policy import (
    Action,
    AuthorizationPolicy,
    Mode,
    PeerAuthentication,
    l7_attributes,
    to_l4,
)
from testbed.model.topology import ROOT_NAMESPACE
from testbed.model.traffic import (
    Balance,
    ClientTls,
    ConnectionPool,
    DestinationRule,
    HttpRoute,
    HttpRule,
    L4Match,
    LoadBalancing,
    RequestMatch,
    TlsMode,
    TrafficPolicy,
    VirtualService,
)
from testbed.policyfile import OtherResource

L4_PLANES = ("none", "ambient-l4", "ambient_l4", "ztunnel", "envoy-ambient-l4")
WAYPOINT_PLANES = ("ambient", "envoy-ambient")
NODE_PLANES = ("node-l7",)
SIDECAR_PLANES = (
    *("sidecar", "hybrid", "hybrid-hbone", "envoy-sidecar", "envoy-hybrid", "envoy-hybrid-hbone"), *NODE_PLANES,
)  # fmt: skip
"""What their proxies do with routes and rules is the same; a node's is in another place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotHonoured:
    resource: str
    """`kind namespace/name`."""
    field: str
    """As a path in the resource's spec; empty when it is the whole resource."""
    plane: str
    why: str

    def __str__(self) -> str:
        return f"{self.resource}: {self.field}: {self.why}" if self.field else f"{self.resource}: {self.why}"


def not_honoured(
    resources: Sequence[object], plane: str, root_namespace: str = ROOT_NAMESPACE
) -> tuple[NotHonoured, ...]:
    """In the resources' order. `hybrid` counts as a plane of sidecars: what a waypoint leaves undone is not told.

    Of a plane from outside nothing is known, and that is what is said. Options behind the name change nothing here.
    """
    plane = re.split("[:@]", plane)[0]
    found: list[NotHonoured] = []
    for resource in resources:
        where = _name(resource)
        if plane == "none":
            entries: Iterable[tuple[str, str]] = [("", "no proxy enforces it")]
        elif plane not in (*L4_PLANES, *WAYPOINT_PLANES, *SIDECAR_PLANES):
            entries = [("", "this plane does not say what it does with it")]
        elif isinstance(resource, PeerAuthentication):
            entries = _peer(resource, plane, root_namespace)
        elif isinstance(resource, AuthorizationPolicy):
            entries = _authorization(resource, plane)
        elif isinstance(resource, OtherResource):
            entries = [("", "needs an L7 proxy" if plane in L4_PLANES else "is read, but no proxy here acts on it")]
        elif plane in L4_PLANES:
            entries = [("", "needs an L7 proxy")]
        elif isinstance(resource, VirtualService):
            entries = _virtual(resource, plane)
        elif isinstance(resource, HttpRoute):
            entries = _route(resource)
        elif isinstance(resource, DestinationRule):
            entries = _destination(resource, plane)
        else:
            continue
        found += [NotHonoured(resource=where, field=field, plane=plane, why=why) for field, why in entries]
    if plane in (*WAYPOINT_PLANES, *SIDECAR_PLANES):
        found += _mixed(resources, plane)
    return tuple(found)


def told(resources: Sequence[object], plane: str) -> list[str]:
    """The same for people: a line for each reason, with all the resources that it concerns."""
    concerned: dict[tuple[str, str], list[str]] = {}
    for entry in not_honoured(resources, plane):
        concerned.setdefault((entry.field, entry.why), []).append(entry.resource)
    return [
        f"{', '.join(dict.fromkeys(names))}: {field}{': ' * bool(field)}{why}"
        for (field, why), names in concerned.items()
    ]


def _name(resource: object) -> str:
    kind = type(resource).__name__
    if isinstance(resource, OtherResource):
        kind = resource.kind
    elif isinstance(resource, HttpRoute):
        kind = "GRPCRoute" if resource.grpc else "HTTPRoute"
    return f"{kind} {resource.namespace}/{resource.name}"  # type: ignore[attr-defined]


# -- security


def _peer(resource: PeerAuthentication, plane: str, root_namespace: str) -> Iterator[tuple[str, str]]:
    if resource.selector and resource.namespace == root_namespace:
        yield "selector", "a selector in the root namespace is ignored"
    if plane in (*L4_PLANES, *WAYPOINT_PLANES) and Mode.DISABLE in (
        resource.mode, *(mode for _, mode in resource.port_modes),
    ):  # fmt: skip
        yield "mtls.mode", "DISABLE is treated as PERMISSIVE"
    if plane in NODE_PLANES:
        yield "mtls.mode", "what comes to a pod past the nodes' proxies is taken, and what they bring it is plain"


def _authorization(resource: AuthorizationPolicy, plane: str) -> Iterator[tuple[str, str]]:
    at_ztunnel = plane in L4_PLANES or (plane in WAYPOINT_PLANES and not resource.target_refs)
    if resource.target_refs and plane not in WAYPOINT_PLANES:
        yield "targetRefs", "targetRefs are for waypoints; the policy has no effect here"
    elif at_ztunnel and resource.action in (Action.AUDIT, Action.CUSTOM):
        yield "action", f"action {resource.action} is not supported at L4; the policy has no effect here"
    elif at_ztunnel:
        yield from _l7_at_ztunnel(resource)
    elif resource.action is Action.CUSTOM:
        yield "action", "CUSTOM is not evaluated yet: nobody is asked, and requests go on to DENY and ALLOW"
    else:
        if resource.action is Action.AUDIT:
            yield "action", "AUDIT is written to the access log only"
        for name in _l7_names(resource):
            if "equestPrincipals" in name or name.startswith(("request.auth.", "experimental.")):
                yield "rules", f"{name} has no value here: there are no JWTs yet"


def _l7_names(resource: AuthorizationPolicy) -> list[str]:
    return sorted({_camel(name) for rule in resource.rules for name in l7_attributes(rule)})


def _camel(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def _l7_at_ztunnel(resource: AuthorizationPolicy) -> Iterator[tuple[str, str]]:
    attributes = _l7_names(resource)
    if not attributes:
        return
    seen = f"HTTP attributes are not seen at L4 ({', '.join(attributes)})"
    if resource.action is Action.ALLOW:
        yield "rules", f"{seen}: rules with them are left out, which allows less than asked"
        return
    (policy,), _ = to_l4([resource], ())
    if not _enforceable(policy):
        yield "rules", f"{seen}: nothing enforceable is left, the DENY has no effect"
    else:
        yield "rules", f"{seen}: each is left out, which denies more, or where a clause held nothing else, not at all"


def _enforceable(policy: L4Policy) -> bool:
    return any(all(not c or any(not m.is_empty for m in c) for c in rule) for rule in policy.rules)


# -- traffic


def _virtual(resource: VirtualService, plane: str) -> Iterator[tuple[str, str]]:
    if not resource.for_mesh:
        yield "gateways", "there are no gateways here; only `mesh` counts"
    for number, rule in enumerate(resource.tcp):
        for field in rule.kept_fields:
            yield f"tcp[{number}].{field}", "no proxy here acts on it"
        if plane in WAYPOINT_PLANES:
            for match in rule.matches:
                yield from _of_clients(match, f"tcp[{number}]")
    if resource.tls:
        yield "tls", "TLS routes are not honoured, as no port can be declared to be TLS; its bytes pass as TCP"
    for number, rule in enumerate(resource.http):
        where = f"http[{number}]"
        yield from _rule(rule, where)
        if plane in WAYPOINT_PLANES:
            for match in rule.matches:
                yield from _of_clients(match, where)


def _of_clients(match: RequestMatch | L4Match, where: str) -> Iterator[tuple[str, str]]:
    for field, held in (("sourceLabels", match.source_labels), ("sourceNamespace", match.source_namespace)):
        if held:
            yield f"{where}.match.{field}", "a waypoint does not ask who the client is; it counts as met"


def _rule(rule: HttpRule, where: str) -> Iterator[tuple[str, str]]:
    for field in rule.kept_fields:
        yield f"{where}.{field}", "no proxy here acts on it"
    if rule.cors is not None:
        yield f"{where}.corsPolicy", "CORS is not honoured yet"
    if rule.retries is not None and rule.retries.retry_remote_localities is not None:
        yield f"{where}.retries.retryRemoteLocalities", "localities are not told apart in retries"
    edits = [rule.request_headers, rule.response_headers]
    edits += [e for d in rule.destinations for e in (d.request_headers, d.response_headers)]
    if any("%" in value for e in edits if e is not None for _, value in (*e.set, *e.add)):
        yield f"{where}.headers", "values with % are written as they stand; Envoy's formats are not known here"


def _route(resource: HttpRoute) -> Iterator[tuple[str, str]]:
    for field in resource.kept_fields:
        yield field, "no proxy here acts on it"
    for parent in resource.parents:
        if parent.kind != "Service":
            yield "parentRefs", f"{parent.kind} {parent.name} is no Service; only those are honoured"
        elif parent.group not in ("", "core"):
            yield "parentRefs.group", f"{parent.name} is taken for a Service of Kubernetes"
        if parent.section_name:
            yield "parentRefs.sectionName", "ports have no names here: the route holds for all of them"
    if resource.hostnames:
        yield "hostnames", "a route of a Service concerns whatever host is asked for"
    for number, rule in enumerate(resource.rules):
        yield from _rule(rule, f"rules[{number}]")


def _destination(resource: DestinationRule, plane: str) -> Iterator[tuple[str, str]]:
    policies = [("trafficPolicy", resource.policy)]
    policies += [(f"subsets[{s.name}].trafficPolicy", s.policy) for s in resource.subsets]
    for where, policy in policies:
        if policy is None:
            continue
        yield from _policy(policy, where, plane)
        for entry in policy.ports:
            yield from _policy(entry.policy, f"{where}.portLevelSettings[{entry.port}]", plane)
    if resource.subsets and plane in WAYPOINT_PLANES:
        yield "subsets", "honoured here; Istio documents subsets at a waypoint as unsupported"


def _policy(policy: TrafficPolicy, where: str, plane: str) -> Iterator[tuple[str, str]]:
    for field in policy.kept_fields:
        yield f"{where}.{field}", "no proxy here acts on it"
    if policy.tls is not None:
        if policy.tls.mode in (TlsMode.SIMPLE, TlsMode.MUTUAL):
            why = "is not spoken here: who would get plain bytes instead is not called (503, or closed); HBONE goes on"
            yield f"{where}.tls", f"{policy.tls.mode} {why}"
        elif plane in WAYPOINT_PLANES:
            yield f"{where}.tls", f"a waypoint ignores {policy.tls.mode}; HBONE decides"
        elif policy.tls != ClientTls(mode=policy.tls.mode):
            yield f"{where}.tls", f"with {policy.tls.mode} nothing beside the mode counts here"
    if policy.load_balancing is not None:
        yield from _balancing(policy.load_balancing, f"{where}.loadBalancer", plane)
    if policy.connection_pool is not None:
        yield from _pool(policy.connection_pool, f"{where}.connectionPool", plane)
    if policy.outlier_detection is not None and not _is_envoy(plane):
        yield f"{where}.outlierDetection", "holds for HTTP; failures of TCP connections are not counted"


def _is_envoy(plane: str) -> bool:
    return plane.startswith("envoy-")


def _balancing(balancing: LoadBalancing, where: str, plane: str) -> Iterator[tuple[str, str]]:
    if balancing.simple is Balance.PASSTHROUGH:
        yield f"{where}.simple", "PASSTHROUGH is not honoured: an endpoint is chosen"
    if balancing.warmup_s is not None:
        yield f"{where}.warmup", "endpoints get their full share at once"
    hashed = balancing.hash_on
    if hashed is not None and not _is_envoy(plane):
        if hashed.maglev:
            yield f"{where}.consistentHash.maglev", "a ring is used instead"
        if hashed.cookie and hashed.cookie_ttl_s is not None:
            yield f"{where}.consistentHash.httpCookie.ttl", "nobody is given a cookie; who has none is sent anywhere"
    locality = balancing.locality
    if locality is not None and (
        locality.enabled or locality.distribute or locality.failover or locality.failover_priority
    ):
        yield f"{where}.localityLbSetting", "only trafficDistribution of the service is honoured"


def _pool(pool: ConnectionPool, where: str, plane: str) -> Iterator[tuple[str, str]]:
    """Limits of HTTP hold; those of connections that are not HTTP, and a few more, do not."""
    if _is_envoy(plane):
        if pool.idle_timeout_s is not None:
            yield f"{where}.tcp.idleTimeout", "connections are not ended for being idle"
        if pool.max_connection_duration_s is not None:
            yield f"{where}.tcp.maxConnectionDuration", "holds for HTTP, not for TCP"
        if pool.h2_upgrade == "UPGRADE":
            yield f"{where}.http.h2UpgradePolicy", "servers are spoken to as the client speaks"
        return
    if pool.max_connections is not None:
        yield f"{where}.tcp.maxConnections", "of HTTP each endpoint may have one, however low it is"
    if pool.idle_timeout_s is not None:
        yield f"{where}.tcp.idleTimeout", "taken for HTTP's where that has none; TCP connections are never ended for it"
    if pool.max_connection_duration_s is not None:
        yield f"{where}.tcp.maxConnectionDuration", "connections are not ended for their age"
    if pool.max_concurrent_streams is not None:
        yield f"{where}.http.maxConcurrentStreams", "the server's own limit is all that counts"
    if pool.use_client_protocol:
        yield f"{where}.http.useClientProtocol", "a port declared http2 or grpc is spoken to in HTTP/2 in any case"


def _mixed(resources: Sequence[object], plane: str) -> Iterator[NotHonoured]:
    """Several resources for one service, of which one counts."""
    virtual = [r for r in resources if isinstance(r, VirtualService) and r.for_mesh]
    for route in (r for r in resources if isinstance(r, HttpRoute)):
        for parent in route.parents:
            namespace = parent.namespace or route.namespace
            names = (parent.name, f"{parent.name}.{namespace}.svc.cluster.local")
            rival = next((v for v in virtual if set(names) & set(v.hosts)), None)
            if rival is not None:
                why = f"VirtualService {rival.namespace}/{rival.name} is taken instead; Istio says nothing about mixing"
                yield NotHonoured(resource=_name(route), field="", plane=plane, why=why)
