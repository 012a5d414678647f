"""VirtualService and HTTPRoute as Envoy's routes. Pure.

Which resource counts for a service, in what order its routes are asked and what a destination's cluster is called is
`planes.l7.route`'s choice, taken over from there; here each chosen route is only written down as Envoy has it.

Left undone: CORS, values of `kept_fields`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from planes.envoy import pieces
from planes.envoy.parts import Parts
from planes.envoy.pieces import TYPE, Json
from planes.envoy.upstreams import seconds
from planes.l7.decision import NOT_FOUND, grpc_code
from planes.l7.match import compiled
from planes.l7.retry import DEFAULT as DEFAULT_RETRY
from planes.l7.retry import RetryPolicy
from planes.l7.route import RouteTable, _Route, domains
from planes.l7.view import Cluster, L7Service, L7View
from testbed.model.traffic import (
    Fault,
    HashOn,
    HeaderEdits,
    HttpRule,
    NamedMatch,
    Redirect,
    RequestMatch,
    Rewrite,
    TextKind,
    TextMatch,
    WeightedDestination,
    full_name,
)

FAULT = "envoy.filters.http.fault"
_FAULT_TYPE = f"{TYPE}.extensions.filters.http.fault.v3.HTTPFault"
_REDIRECTS = {
    301: "MOVED_PERMANENTLY", 302: "FOUND", 303: "SEE_OTHER", 307: "TEMPORARY_REDIRECT", 308: "PERMANENT_REDIRECT",
}  # fmt: skip
_MISSING = "no-such-destination"
_EVERYTHING = TextMatch(kind=TextKind.PREFIX, value="/")


class _Chosen(_Route):
    """A route that the table chose, with what it was made from."""

    __slots__ = ("gateway_api", "match", "name", "namespace", "port", "rule")


class _Choice(RouteTable):
    """Chooses as our own proxies do, and keeps the resources instead of compiling them."""

    def _route(
        self, rule: HttpRule, match: RequestMatch, name: str, namespace: str, port: int, service: L7Service | None,
        gateway_api: bool = False,
    ) -> _Route:  # fmt: skip
        made = _Chosen(compiled(match), NOT_FOUND)
        made.rule, made.match, made.name = rule, match, name
        made.namespace, made.port, made.gateway_api = namespace, port, gateway_api
        return made

    def chosen(self, service: L7Service, port: int) -> Sequence[_Chosen] | None:
        """None: no resource says anything."""
        return self._routes_of(service, port)  # type: ignore[return-value]

    def foreign(self) -> Iterable[tuple[list[str], Sequence[_Chosen]]]:
        """Hosts that are no service's, which istiod serves on port 80 only."""
        for v in self.view.config.virtual_services:
            if self._visible(v):
                names = [full_name(h, v.namespace) for h in v.hosts]
                held = [n for n in names if n.startswith("*") or n not in self.view.by_hostname]
                if held:
                    yield held, self._compile_virtual(v, 80, None)  # type: ignore[misc]

    def cluster(self, destination, namespace: str, port: int) -> Cluster | None:  # type: ignore[no-untyped-def]
        return self._cluster(destination, namespace, port)


@dataclass(slots=True)
class Routes:
    """Virtual hosts of one proxy. `cluster_name` makes a cluster of ours one of Envoy's."""

    view: L7View
    parts: Parts
    cluster_name: Callable[[Cluster], str]
    with_faults: bool = False
    """Whether some route injects faults, which takes a filter."""

    def __post_init__(self) -> None:
        self._table = _Choice(self.view)

    _table: _Choice = None  # type: ignore[assignment]

    def of_service(self, service: L7Service, port: int) -> list[Json]:
        chosen = self._table.chosen(service, port)
        if chosen is None:
            cluster = self.view.cluster(service.key, port)
            if cluster is None:
                return []
            action: Json = {"cluster": self.cluster_name(cluster), "timeout": "0s", **_retries(DEFAULT_RETRY)}
            _hash(action, cluster)
            return [{"name": "default", "match": {"prefix": "/"}, "route": action}]
        return [self._written(route) for route in chosen]

    def of_connections(self, service: L7Service, port: int) -> Json:
        """What takes a connection that is not HTTP: by weight, to nobody where a destination is not known."""
        listed = [(self._named(cluster), weight) for cluster, weight in self._table.connections(service, port).options]
        proxy = pieces.tcp_proxy(listed[0][0])
        if len(listed) > 1:
            config: Json = proxy["typed_config"]  # type: ignore[assignment]
            del config["cluster"]
            config["weighted_clusters"] = {"clusters": [{"name": n, "weight": w} for n, w in listed]}
        return proxy

    def host_of_service(self, service: L7Service, port: int) -> Json:
        """A waypoint's only one: the address was chosen already, whatever the authority says."""
        return virtual_host(f"{service.hostname}:{port}", ["*"], self.of_service(service, port))

    def hosts_of_port(self, port: int) -> list[Json]:
        """A sidecar's: by name, and what becomes of names that nobody knows."""
        made: list[Json] = []
        seen: set[str] = set()

        def add(name: str, names: Iterable[str], routes: Callable[[], list[Json]]) -> None:
            fresh = [n for n in dict.fromkeys(n.lower() for n in names) if n not in seen]
            if fresh:
                seen.update(fresh)
                made.append(virtual_host(name, fresh, routes()))

        for service in self.view.config.services:
            entry = service.port(port)
            if entry is not None and entry.is_http:
                names = domains(service, self.view.config.namespace)
                add(f"{service.hostname}:{port}", names, lambda s=service: self.of_service(s, port))
        if port == 80:
            for names, chosen in self._table.foreign():
                add(names[0], names, lambda c=chosen: [self._written(route) for route in c])
        if self.view.config.outbound_any:
            unknown = any_request("passthrough", name="allow_any")
        else:
            unknown = {"name": "block_all", "match": {"prefix": "/"}, "direct_response": {"status": 502}}
        add(str(unknown["name"]), ["*"], lambda: [unknown])
        return made

    # -- one route

    def _written(self, chosen: _Chosen) -> Json:
        rule, match = chosen.rule, chosen.match
        for field in (*rule.kept_fields, *(("corsPolicy",) if rule.cors is not None else ())):
            self.parts.leave_undone(f"{chosen.name}: {field}")
        made: Json = {"name": chosen.name, "match": _match(match)}
        if rule.redirect is not None:
            made["redirect"] = _redirect(rule.redirect, match, self.parts, chosen.name)
        elif rule.direct_response is not None:
            made["direct_response"] = _direct(rule.direct_response.status, rule.direct_response.body)
        else:
            self._destinations(made, chosen)
        if rule.fault is not None:
            self.with_faults = True
            made["typed_per_filter_config"] = {FAULT: _fault(rule.fault)}
        if "route" not in made:
            _edit(made, None, rule.response_headers)
        return made

    def _destinations(self, made: Json, chosen: _Chosen) -> None:
        rule, gateway_api = chosen.rule, chosen.gateway_api
        options: list[tuple[WeightedDestination, int]] = []
        for d in rule.destinations:
            alone = 100 if len(rule.destinations) == 1 else 0
            weight = d.weight if d.weight is not None else (1 if gateway_api else alone)
            if weight > 0 or (len(rule.destinations) == 1 and not gateway_api):
                options.append((d, weight or 1))
        if not options:  # no backend at all, or weights that sum to nothing
            made["direct_response"] = _direct(500, "")
            return
        action: Json = {
            "timeout": seconds(rule.timeout_s) if rule.timeout_s else "0s",
            "cluster_not_found_response_code": "INTERNAL_SERVER_ERROR" if gateway_api else "SERVICE_UNAVAILABLE",
            **_retries(RetryPolicy.of(rule.retries)),
        }
        clusters = [self._table.cluster(d.destination, chosen.namespace, chosen.port) for d, _ in options]
        for cluster in clusters:
            if cluster is not None:
                _hash(action, cluster)
        if len(options) == 1 and not (options[0][0].request_headers or options[0][0].response_headers):
            action["cluster"] = self._named(clusters[0])
        else:
            weighted = []
            for (d, weight), cluster in zip(options, clusters, strict=True):
                entry: Json = {"name": self._named(cluster), "weight": weight}
                _edit(entry, d.request_headers, d.response_headers)
                authority = _authority(d.request_headers)
                if authority is not None:
                    entry["host_rewrite_literal"] = authority
                weighted.append(entry)
            action["weighted_clusters"] = {"clusters": weighted}
        _rewrite(action, rule.rewrite, chosen.match)
        authority = _authority(rule.request_headers)
        if authority is not None and "host_rewrite_literal" not in action:
            action["host_rewrite_literal"] = authority
        mirrors = []
        for mirror in rule.mirrors:
            cluster = self._table.cluster(mirror.destination, chosen.namespace, chosen.port)
            if cluster is not None and mirror.share > 0:
                mirrors.append({"cluster": self.cluster_name(cluster), "runtime_fraction": {
                    "default_value": _share(mirror.share)
                }})  # fmt: skip
        if mirrors:
            action["request_mirror_policies"] = mirrors
        made["route"] = action
        _edit(made, rule.request_headers, rule.response_headers)

    def _named(self, cluster: Cluster | None) -> str:
        return self.cluster_name(cluster) if cluster is not None else _MISSING


def virtual_host(name: str, names: Sequence[str], routes: Sequence[Json]) -> Json:
    return {
        "name": name, "domains": list(names), "routes": list(routes), "include_request_attempt_count": True,
    }  # fmt: skip


def any_request(cluster: str, *, name: str = "default") -> Json:
    """What no resource says anything of: to this cluster, sent again as Istio's default has it."""
    action: Json = {"cluster": cluster, "timeout": "0s", **_retries(DEFAULT_RETRY)}
    return {"name": name, "match": {"prefix": "/"}, "route": action}


def fault_filter() -> Json:
    return {"name": FAULT, "typed_config": {"@type": _FAULT_TYPE}}


# -- matches


def _match(match: RequestMatch) -> Json:
    made = _path(match.uri or _EVERYTHING)
    headers = [
        {"name": f":{name}", **_value(text)}
        for name, text in (("method", match.method), ("scheme", match.scheme), ("authority", match.authority))
        if text is not None
    ]
    headers += [_header(m) for m in match.headers]
    for m in match.without_headers:
        inverted = {**_header(m), "invert_match": True}
        if "string_match" in inverted:  # a header that is not there has no such value, either
            inverted["treat_missing_header_as_empty"] = True
        headers.append(inverted)
    if headers:
        made["headers"] = headers
    if match.query:
        made["query_parameters"] = [{"name": m.name, **_value(m.text)} for m in match.query]
    return made


def _path(uri: TextMatch) -> Json:
    case = {"case_sensitive": False} if uri.ignore_case and uri.kind is not TextKind.REGEX else {}
    match uri.kind:
        case TextKind.EXACT:
            return {"path": uri.value, **case}
        case TextKind.REGEX:
            return {"safe_regex": {"regex": _expression(uri.value)}}
        case TextKind.SEGMENTS if uri.value.rstrip("/"):
            return {"path_separated_prefix": uri.value.rstrip("/"), **case}
        case TextKind.PREFIX if uri.value:
            return {"prefix": uri.value, **case}
    return {"prefix": "/"}


def _header(m: NamedMatch) -> Json:
    name = m.name.lower()
    return {"name": ":authority" if name == "host" else name, **_value(m.text)}


def _expression(regex: str) -> str:
    """An empty one, which Envoy would refuse with all of its configuration, matches what is empty."""
    return regex or "^$"


def _value(text: TextMatch) -> Json:
    if text.kind is TextKind.PRESENT:
        return {"present_match": True}
    if text.kind is TextKind.REGEX:
        return {"string_match": {"safe_regex": {"regex": _expression(text.value)}}}
    if text.kind is TextKind.PREFIX and not text.value:
        return {"present_match": True}
    kind = "exact" if text.kind is TextKind.EXACT else "prefix"
    return {"string_match": {kind: text.value, **({"ignore_case": True} if text.ignore_case else {})}}


# -- actions


def _direct(status: int, body: str) -> Json:
    if status in (204, 304):
        body = ""  # Envoy would send it, and the client take it for the next answer (RFC 9110 15.3.5)
    return {"status": status, **({"body": {"inline_string": body}} if body else {})}


def _redirect(redirect: Redirect, match: RequestMatch, parts: Parts, name: str) -> Json:
    made: Json = {}
    if redirect.status in _REDIRECTS:
        made["response_code"] = _REDIRECTS[redirect.status]
    else:
        parts.leave_undone(f"{name}: redirect with status {redirect.status}; 301 is sent")
    if redirect.scheme:
        made["scheme_redirect"] = redirect.scheme
    if redirect.authority:
        made["host_redirect"] = redirect.authority
    if redirect.port is not None and redirect.port != {"http": 80, "https": 443}.get(redirect.scheme or "http"):
        made["port_redirect"] = redirect.port
    if redirect.path is not None:
        made["path_redirect"] = redirect.path
    elif redirect.prefix is not None:
        made |= _prefix(redirect.prefix, match)
    return made


def _rewrite(action: Json, rewrite: Rewrite | None, match: RequestMatch) -> None:
    if rewrite is None:
        return
    if rewrite.authority is not None:
        action["host_rewrite_literal"] = rewrite.authority
    if rewrite.path is not None:
        action["regex_rewrite"] = _regex("^.*$", _literally(rewrite.path))
    elif rewrite.prefix is not None:
        action |= _prefix(rewrite.prefix, match)
    elif rewrite.regex is not None:
        action["regex_rewrite"] = _regex(*rewrite.regex)


def _prefix(instead: str, match: RequestMatch) -> Json:
    """What stands for the part of a path that the match took; all of it where that was no prefix."""
    uri = match.uri or _EVERYTHING
    if uri.kind is TextKind.PREFIX:
        return {"prefix_rewrite": instead} if instead else {"regex_rewrite": _regex("^" + re.escape(uri.value), "")}
    if uri.kind is TextKind.SEGMENTS:
        taken, kept = uri.value.rstrip("/"), instead.rstrip("/")
        if not kept:  # Envoy would leave two slashes
            return {"regex_rewrite": _regex(f"^{re.escape(taken)}/?(.*)$", "/\\1")}
        return {"regex_rewrite": _regex(f"^{re.escape(taken)}", _literally(kept))}
    return {"regex_rewrite": _regex("^.*$", _literally(instead))}


def _regex(pattern: str, substitution: str) -> Json:
    return {"pattern": {"regex": pattern}, "substitution": substitution}


def _literally(text: str) -> str:
    return text.replace("\\", "\\\\")


def _fault(fault: Fault) -> Json:
    made: Json = {"@type": _FAULT_TYPE}
    if fault.delay_share and fault.delay_s:
        made["delay"] = {"fixed_delay": seconds(fault.delay_s), "percentage": _share(fault.delay_share)}
    if fault.abort_share:
        abort: Json = {"percentage": _share(fault.abort_share)}
        if fault.abort_grpc_status is not None:
            abort["grpc_status"] = grpc_code(fault.abort_grpc_status)
        else:
            abort["http_status"] = fault.abort_status or 503
        made["abort"] = abort
    return made


def _share(share: float) -> Json:
    return {"numerator": round(share * 1_000_000), "denominator": "MILLION"}


def _retries(policy: RetryPolicy | None) -> Json:
    if policy is None:
        return {}
    conditions = sorted(policy.conditions) + (["retriable-status-codes"] if policy.statuses else [])
    made: Json = {
        "retry_on": ",".join(conditions),
        "num_retries": policy.attempts,
        "retry_back_off": {"base_interval": seconds(policy.base_s), "max_interval": seconds(policy.max_s)},
        "host_selection_retry_max_attempts": 5,
    }
    if policy.statuses:
        made["retriable_status_codes"] = sorted(policy.statuses)
    if policy.per_try_timeout_s:
        made["per_try_timeout"] = seconds(policy.per_try_timeout_s)
    if policy.avoid_previous:
        kind = f"{TYPE}.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
        made["retry_host_predicate"] = [
            {"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {"@type": kind}}
        ]
    return {"retry_policy": made}


def _hash(action: Json, cluster: Cluster) -> None:
    balancing = cluster.policy.load_balancing
    if balancing is not None and balancing.hash_on is not None:
        action["hash_policy"] = [_hash_on(balancing.hash_on)]


def _hash_on(on: HashOn) -> Json:
    if on.header:
        return {"header": {"header_name": on.header}}
    if on.cookie:
        cookie: Json = {"name": on.cookie}
        if on.cookie_path:
            cookie["path"] = on.cookie_path
        if on.cookie_ttl_s is not None:
            cookie["ttl"] = seconds(on.cookie_ttl_s)
        return {"cookie": cookie}
    if on.query:
        return {"query_parameter": {"name": on.query}}
    return {"connection_properties": {"source_ip": True}}


# -- edits


def _edit(made: Json, request: HeaderEdits | None, response: HeaderEdits | None) -> None:
    for side, edits in (("request", request), ("response", response)):
        if edits is None:
            continue
        pairs = [("OVERWRITE_IF_EXISTS_OR_ADD", edits.set), ("APPEND_IF_EXISTS_OR_ADD", edits.add)]
        added = [
            {"header": {"key": name, "value": value.replace("%", "%%")}, "append_action": action,
             "keep_empty_value": True}
            for action, group in pairs
            for name, value in group
            if not _is_authority(name)
        ]  # fmt: skip
        if added:
            made[f"{side}_headers_to_add"] = added
        if removed := [name for name in edits.remove if not _is_authority(name)]:
            made[f"{side}_headers_to_remove"] = removed


def _authority(edits: HeaderEdits | None) -> str | None:
    """Setting `host` rewrites the authority."""
    if edits is None:
        return None
    return next((value for name, value in (*edits.set, *edits.add) if _is_authority(name)), None)


def _is_authority(name: str) -> bool:
    return name.lower() in (":authority", "host")
