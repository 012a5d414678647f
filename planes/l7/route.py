"""Which request goes where: virtual hosts, routes in their order, and the `Decision` they give. Pure.

A sidecar decides for its own workload's calls, by port and `:authority`; a waypoint for the services it stands before,
by the address (or name) and port that its CONNECT was for, whatever the authority says. Facts: hbone 3.6 and 6.2,
istiod's `core/route/route.go` and `listener_waypoint.go`. Chance comes in as `draw`, a function to [0, 1).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from itertools import accumulate

from planes.l7.decision import BLACK_HOLE, NOT_FOUND, PASSTHROUGH, Decision, Kind, aborted
from planes.l7.edit import FieldEdit
from planes.l7.l4route import Weighted, in_subnets, weighted
from planes.l7.match import Test, compiled, most_specific_first
from planes.l7.message import Request
from planes.l7.retry import DEFAULT as DEFAULT_RETRY
from planes.l7.retry import RetryPolicy
from planes.l7.rewrite import Location, PathRewrite
from planes.l7.view import Cluster, L7Service, L7View, Role, exported, host_rank
from testbed.model.traffic import (
    Destination,
    Fault,
    HeaderEdits,
    HttpRoute,
    HttpRule,
    L4Match,
    RequestMatch,
    TextKind,
    TextMatch,
    VirtualService,
    full_name,
)

Draw = Callable[[], float]
_MEMO_LIMIT = 4096
"""Authorities come from clients; beyond this many the memory is begun anew."""


class RouteTable:
    """All of one view. Made once; deciding changes nothing but a memory of authorities."""

    def __init__(self, view: L7View) -> None:
        self.view = view
        self._waypoint = view.role is Role.WAYPOINT
        self._hosts: dict[object, _VirtualHost | Decision] = {}
        self._ports: dict[int, _PortTable] = {}
        self._connections: dict[tuple[str, int], Weighted] = {}

    def connections(self, service: L7Service, port: int) -> Weighted:
        """Where connections to the service's port that are not HTTP may go."""
        key = (service.key, port)
        held = self._connections.get(key)
        if held is None:
            held = self._connections[key] = self._tcp_route(service, port)
        return held

    def _tcp_route(self, service: L7Service, port: int) -> Weighted:
        virtual = self._virtual_service(service)
        if virtual is not None:
            for rule in virtual.tcp:
                if not rule.matches or any(
                    self._concerns(m, port) and in_subnets(service.address, m.destination_subnets)
                    for m in rule.matches
                ):
                    return weighted(rule.destinations, lambda d: self._cluster(d.destination, virtual.namespace, port))
        return Weighted([(self.view.cluster(service.key, port), 1)])

    def decide(self, request: Request, *, address: str, port: int, draw: Draw) -> Decision:
        """`address` and `port`: of a waypoint's CONNECT authority (VIP or host name), or a sidecar's SO_ORIGINAL_DST.

        For a sidecar only the port counts, as in Istio: the host is the request's own.
        """
        key = (address if self._waypoint else request.authority, port)
        host = self._hosts.get(key)
        if host is None:
            host = self._find(request.authority, address, port)
            if len(self._hosts) >= _MEMO_LIMIT:
                self._hosts.clear()
            self._hosts[key] = host
        if host.__class__ is Decision:
            return host  # type: ignore[return-value]
        return host.decide(request, draw)  # type: ignore[union-attr]

    def _find(self, authority: bytes, address: str, port: int) -> _VirtualHost | Decision:
        view = self.view
        if self._waypoint:
            service = view.by_address.get(address) or view.by_hostname.get(address.lower())
            if service is None or service.key not in view.config.serves or service.port(port) is None:
                return NOT_FOUND
            return self._of_service(service, port, self._routes_of(service, port)).settled()
        table = self._ports.get(port)
        if table is None:
            table = self._ports[port] = _PortTable(self, port)
        found = table.find(_host(authority))
        if found is not None:
            return found.settled()
        return PASSTHROUGH if view.config.outbound_any else BLACK_HOLE

    def _routes_of(self, service: L7Service, port: int) -> list[_Route] | None:
        """Those of the VirtualService or HTTPRoutes for a service; None where there are none: the default route."""
        virtual = self._virtual_service(service)
        if virtual is not None:
            routes = self._compile_virtual(virtual, port, service)
            return routes if routes or not self._waypoint else None
        attached = self._http_routes(service, port)
        return self._compile_routes(attached, port, service) if attached else None

    def _of_service(self, service: L7Service, port: int, routes: list[_Route] | None) -> _VirtualHost:
        if routes is None:
            decision = _forward(self.view.cluster(service.key, port), "default", 503)
            routes = [_Route(None, decision)]
        return _VirtualHost(routes)

    # -- which resources

    def _virtual_service(self, service: L7Service) -> VirtualService | None:
        """A sidecar takes the most exact host, then the oldest; a waypoint the oldest of two namespaces."""
        config = self.view.config
        best: tuple[int, VirtualService] | None = None
        for v in config.virtual_services:
            if not self._visible(v) or (self._waypoint and v.namespace not in (config.namespace, service.namespace)):
                continue
            rank = max((host_rank(full_name(h, v.namespace), service.hostname) for h in v.hosts), default=0)
            if rank and self._waypoint:
                return v
            if rank and (best is None or rank > best[0]):
                best = (rank, v)
        return best[1] if best is not None else None

    def _visible(self, v: VirtualService) -> bool:
        return v.for_mesh and exported(v.export_to, v.namespace, self.view.config.namespace)

    def _http_routes(self, service: L7Service, port: int) -> list[HttpRoute]:
        """A route in the client's own namespace (consumer) stands instead of those beside the service (producer)."""
        own, beside = [], []
        for route in self.view.config.http_routes:
            for parent in route.parents:
                if (
                    parent.kind == "Service"
                    and parent.name == service.name
                    and (parent.namespace or route.namespace) == service.namespace
                    and parent.port in (None, port)
                ):
                    if route.namespace == service.namespace:
                        beside.append(route)
                    elif route.namespace == self.view.config.namespace and not self._waypoint:
                        own.append(route)
                    break
        return own or beside

    # -- resources to routes

    def _compile_virtual(self, v: VirtualService, port: int, service: L7Service | None) -> list[_Route]:
        routes: list[_Route] = []
        for rule in v.http:
            matches = [m for m in rule.matches if self._concerns(m, port)]
            if rule.matches and not matches:
                continue
            name = f"{v.namespace}/{v.name}"
            for match in matches or [RequestMatch()]:
                route = self._route(
                    rule, match, f"{name}/{rule.name}" if rule.name else name, v.namespace, port, service
                )
                routes.append(route)
                if route.test is None:
                    return routes  # what stands behind a route that always holds is never asked
        return routes

    def _concerns(self, match: RequestMatch | L4Match, port: int) -> bool:
        """What is known before any request: the port and, at a sidecar, who the client is."""
        if match.port not in (None, port):
            return False
        if self._waypoint:
            return True  # istiod asks a waypoint's matches for nothing else
        config = self.view.config
        return (
            set(match.source_labels) <= set(config.labels)
            and match.source_namespace in ("", config.namespace)
            and (not match.gateways or "mesh" in match.gateways)
        )

    def _compile_routes(self, attached: Iterable[HttpRoute], port: int, service: L7Service) -> list[_Route]:
        pairs: list[tuple[RequestMatch, object]] = []
        for route in attached:
            for number, rule in enumerate(route.rules):
                name = f"{route.namespace}/{route.name}.{rule.name or number}"
                pairs += [(match, (rule, name, route.namespace)) for match in rule.matches or (_EVERYTHING,)]
        found = []
        for match, (rule, name, namespace) in most_specific_first(pairs):  # type: ignore[misc]
            found.append(self._route(rule, match, name, namespace, port, service, gateway_api=True))
            if found[-1].test is None:
                break
        return found

    def _route(
        self, rule: HttpRule, match: RequestMatch, name: str, namespace: str, port: int, service: L7Service | None,
        gateway_api: bool = False,
    ) -> _Route:  # fmt: skip
        route = _Route(compiled(match), NOT_FOUND)
        route.fault = rule.fault
        if rule.redirect is not None:
            route.redirect = Location(rule.redirect, match)
            route.decision = Decision(Kind.RESPOND, status=rule.redirect.status, route=name)
        elif rule.direct_response is not None:
            silent = rule.direct_response.status in (204, 304)
            body = b"" if silent else rule.direct_response.body.encode()
            fields = [(b"content-type", b"text/plain")] if body else []
            route.decision = Decision(
                Kind.RESPOND, status=rule.direct_response.status, body=body, fields=fields, route=name
            )
        else:
            self._destinations(route, rule, name, namespace, port, gateway_api)
            if rule.rewrite is not None:
                route.rewrite = PathRewrite(rule.rewrite, match)
            for mirror in rule.mirrors:
                cluster = self._cluster(mirror.destination, namespace, port)
                if cluster is not None and mirror.share > 0:
                    route.mirrors.append((cluster, mirror.share))
        if rule.redirect is not None or rule.direct_response is not None:
            route.decision.response_edits = _edits(rule.response_headers)
        return route

    def _destinations(
        self, route: _Route, rule: HttpRule, name: str, namespace: str, port: int, gateway_api: bool
    ) -> None:
        missing = 500 if gateway_api else 503
        options: list[tuple[Decision, int]] = []
        for d in rule.destinations:
            alone = 100 if len(rule.destinations) == 1 else 0
            weight = d.weight if d.weight is not None else (1 if gateway_api else alone)
            decision = _forward(self._cluster(d.destination, namespace, port), name, missing)
            decision.timeout_s = rule.timeout_s or None
            decision.retry = RetryPolicy.of(rule.retries)
            decision.request_edits = _edits(d.request_headers, rule.request_headers)
            decision.response_edits = _edits(d.response_headers, rule.response_headers)
            decision.authority = next((e.authority for e in decision.request_edits if e.authority is not None), None)
            if weight > 0 or (len(rule.destinations) == 1 and not gateway_api):
                options.append((decision, weight or 1))
        if not options:  # no backend at all, or weights that sum to nothing
            options = [(Decision(Kind.RESPOND, status=500, route=name, flag="NC"), 1)]
        route.decision = options[0][0]
        if len(options) > 1:
            route.options = [decision for decision, _ in options]
            route.marks = list(accumulate(weight for _, weight in options))

    def _cluster(self, destination: Destination, namespace: str, port: int) -> Cluster | None:
        host = full_name(destination.host, destination.namespace or namespace)
        service = self.view.by_hostname.get(host)
        if service is None:
            return None
        number = destination.port
        if number is None:
            number = service.ports[0].port if len(service.ports) == 1 else port
        return self.view.cluster(service.key, number, destination.subset)


_EVERYTHING = RequestMatch(uri=TextMatch(kind=TextKind.SEGMENTS, value="/"))


def _forward(cluster: Cluster | None, route: str, missing: int) -> Decision:
    if cluster is None:
        return Decision(Kind.RESPOND, status=missing, route=route, flag="NC")
    decision = Decision(Kind.FORWARD, cluster=cluster, route=route)
    decision.retry = DEFAULT_RETRY
    return decision


def _edits(*layers: HeaderEdits | None) -> tuple[FieldEdit, ...]:
    return tuple(FieldEdit(e) for e in layers if e is not None)


# -- virtual hosts


class _VirtualHost:
    """Routes in the order they are asked."""

    __slots__ = ("routes",)

    def __init__(self, routes: list[_Route]) -> None:
        self.routes = routes

    def settled(self) -> _VirtualHost | Decision:
        """The decision itself, where no request can change it."""
        if not self.routes:
            return NOT_FOUND
        first = self.routes[0]
        return first.decision if first.test is None and first.is_fixed else self

    def decide(self, request: Request, draw: Draw) -> Decision:
        path = request.path
        if 0x3F in path:
            path = path[: path.index(b"?")]
        for route in self.routes:
            if route.test is None or route.test(request, path):
                return route.decision if route.is_fixed else route.decide(request, path, draw)
        return NOT_FOUND


class _Route:
    __slots__ = ("decision", "fault", "marks", "mirrors", "options", "redirect", "rewrite", "test")

    def __init__(self, test: Test | None, decision: Decision) -> None:
        self.test = test
        self.decision = decision
        self.options: list[Decision] = []
        """By weight; empty where there is one."""
        self.marks: list[int] = []
        self.rewrite: PathRewrite | None = None
        self.redirect: Location | None = None
        self.fault: Fault | None = None
        self.mirrors: list[tuple[Cluster, float]] = []

    @property
    def is_fixed(self) -> bool:
        return not (self.options or self.rewrite or self.redirect or self.fault or self.mirrors)

    def decide(self, request: Request, path: bytes, draw: Draw) -> Decision:
        decision = self.decision
        if self.options:
            decision = self.options[bisect_right(self.marks, draw() * self.marks[-1])]
        if self.redirect is None and self.rewrite is None and self.fault is None and not self.mirrors:
            return decision
        delay_s = 0.0
        if self.fault is not None:
            delay_s = self.fault.delay_s if draw() < self.fault.delay_share else 0.0
            if draw() < self.fault.abort_share:
                return aborted(self.fault, decision, delay_s, request)
        decision = decision.copy()
        decision.delay_s = delay_s
        if delay_s:
            decision.flag = "DI"
        if self.redirect is not None:
            decision.fields = [(b"location", self.redirect.location(request, path))]
        if self.rewrite is not None:
            decision.path = self.rewrite.path(request.path, path)
            decision.authority = self.rewrite.authority or decision.authority
        decision.mirrors = tuple(cluster for cluster, share in self.mirrors if share >= 1 or draw() < share)
        return decision


class _PortTable:
    """A sidecar's virtual hosts of one port: exact names, then the longest `*.suffix`, then `*`."""

    __slots__ = ("_exact", "_suffixes")

    def __init__(self, table: RouteTable, port: int) -> None:
        self._exact: dict[str, _VirtualHost] = {}
        self._suffixes: list[tuple[str, _VirtualHost]] = []
        view = table.view
        for service in view.config.services:
            entry = service.port(port)
            if entry is None or entry.protocol == "tcp":  # undeclared ones come here when HTTP was found on them
                continue
            host = table._of_service(service, port, table._routes_of(service, port))
            for domain in domains(service, view.config.namespace):
                self._exact.setdefault(domain, host)
        if port == 80:  # hosts that are no service's; istiod serves those on port 80 only
            self._add_foreign(table)
        self._suffixes.sort(key=lambda pair: -len(pair[0]))

    def _add_foreign(self, table: RouteTable) -> None:
        for v in table.view.config.virtual_services:
            if not table._visible(v):
                continue
            host = _VirtualHost(table._compile_virtual(v, 80, None))
            for name in (full_name(h, v.namespace) for h in v.hosts):
                if name.startswith("*"):
                    self._suffixes.append((name[1:], host))
                elif name not in table.view.by_hostname:
                    self._exact.setdefault(name, host)

    def find(self, name: str) -> _VirtualHost | None:
        found = self._exact.get(name)
        if found is not None:
            return found
        for suffix, host in self._suffixes:
            if name.endswith(suffix) and len(name) > len(suffix):
                return host
        return None


def domains(service: L7Service, namespace: str) -> list[str]:
    """Names by which clients of `namespace` may call a service, without ports."""
    s, ns = service.name, service.namespace
    names = [service.hostname, f"{s}.{ns}.svc", f"{s}.{ns}", service.address]
    return [*names, s] if ns == namespace else names


def _host(authority: bytes) -> str:
    """The name in an authority: without port or a final dot, in lower case, IPv6 without brackets."""
    text = authority.decode("latin-1").lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    name, colon, port = text.rpartition(":")
    text = name if colon and port.isdigit() and ":" not in name else text
    return text.removesuffix(".")
