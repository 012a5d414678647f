"""AuthorizationPolicy as Envoy's RBAC filters take it, for sidecars and waypoints. Pure.

As istiod writes it: a policy per rule; `from` becomes principals, `to` permissions, each `when` a further condition of
its side. What a field means is `testbed.model.l7rules`, which our own proxies ask; a test holds the two together. L4
policies in ztunnel's form are `rbac`.

Left undone: AUDIT and dry runs (nothing logs them), CUSTOM (nobody is asked).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from planes.envoy import rbac
from planes.envoy.parts import Parts
from planes.envoy.pieces import TYPE, Json
from testbed.model.httppath import is_template
from testbed.model.policy import Action, AuthorizationPolicy, Condition, Operation, Rule, Source

PEER_PRINCIPAL = "io.istio.peer_principal"
"""Filter state that carries a tunnel's client into what is inside it (facts/hbone 3.3)."""
Name = Callable[[Json], Json]
"""A string matcher of the client's SPIFFE URI to a principal."""
_ANY: Json = {"any": True}


def by_certificate(matcher: Json) -> Json:
    """The peer's own, of this connection."""
    return {"authenticated": {"principal_name": matcher}}


def by_filter_state(matcher: Json) -> Json:
    """The tunnel's peer's, of a connection inside it."""
    return {"filter_state": {"key": PEER_PRINCIPAL, "string_match": matcher}}


@dataclass(frozen=True, slots=True, kw_only=True)
class Authorization:
    """The policies of one enforcement point."""

    policies: Sequence[AuthorizationPolicy]
    trust_domain: str
    name: Name = by_certificate

    def http_filters(self) -> list[Json]:
        return [rbac.http_filter(name, rules) for name, rules in self._rules(http=True)]

    def network_filters(self, stat_prefix: str) -> list[Json]:
        """For connections that are not HTTP: of an ALLOW policy the rules that ask for requests never hold, of a DENY
        policy only what a connection can answer is asked (`PolicySet.decide_tcp`)."""
        return [rbac.network_filter(name, rules, stat_prefix) for name, rules in self._rules(http=False)]

    def tell_undone(self, parts: Parts) -> None:
        for p in self.policies:
            where = f"AuthorizationPolicy {p.namespace}/{p.name}"
            if p.action in (Action.CUSTOM, Action.AUDIT):
                parts.leave_undone(f"{where}: action {p.action}")
            elif p.dry_run:
                parts.leave_undone(f"{where}: dry run, neither enforced nor logged")

    def _rules(self, *, http: bool) -> Iterable[tuple[str, Json]]:
        for name, action in (("deny", Action.DENY), ("allow", Action.ALLOW)):
            held = [p for p in self.policies if p.action is action and not p.dry_run]
            if held:
                policies = {
                    f"ns[{p.namespace}]-policy[{p.name}]-rule[{number}]": made
                    for p in held
                    for number, rule in enumerate(p.rules)
                    if (made := self._policy(p, rule, http=http)) is not None
                }
                yield name, {"action": str(action), "policies": policies}

    def _policy(self, policy: AuthorizationPolicy, rule: Rule, *, http: bool) -> Json | None:
        made = _Rule(policy.namespace, self.trust_domain, self.name, http=http)
        principals = [made.source(s) for s in rule.sources] or [_ANY]
        permissions = [made.operation(o) for o in rule.operations] or [_ANY]
        who, what = made.conditions(rule.conditions)
        if made.dropped and policy.action is Action.ALLOW:
            return None
        return {
            "principals": [_both("and_ids", "ids", [_one("or_ids", "ids", principals), *who])],
            "permissions": [_both("and_rules", "rules", [_one("or_rules", "rules", permissions), *what])],
        }


class _Rule:
    """Translates one rule; `dropped` tells that something asked for a request where there is none."""

    def __init__(self, namespace: str, trust_domain: str, name: Name, *, http: bool) -> None:
        self._namespace, self._trust_domain, self._name, self._http = namespace, trust_domain, name, http
        self.dropped = False

    def source(self, s: Source) -> Json:
        ids = [
            *self._who(self._principal, s.principals, s.not_principals),
            *self._who(self._namespace_of, s.namespaces, s.not_namespaces),
            *self._who(self._account, s.service_accounts, s.not_service_accounts),
            *self._who(self._domain, s.trust_domains, s.not_trust_domains),
            *self._who(_direct, s.ip_blocks, s.not_ip_blocks),
            *self._request_ids(_remote, s.remote_ip_blocks, s.not_remote_ip_blocks),
            *self._request_ids(_nobody, s.request_principals, s.not_request_principals),
        ]
        return _both("and_ids", "ids", ids)

    def operation(self, o: Operation) -> Json:
        rules = [
            *self._what(_port, o.ports, o.not_ports),
            *self._request(_method, o.methods, o.not_methods),
            *self._request(_path, o.paths, o.not_paths),
            *self._request(_host, o.hosts, o.not_hosts),
        ]
        return _both("and_rules", "rules", rules)

    def conditions(self, conditions: Iterable[Condition]) -> tuple[list[Json], list[Json]]:
        """(of the client, of what it asks for)."""
        who: list[Json] = []
        what: list[Json] = []
        for c in conditions:
            positive, negative = c.values, c.not_values
            match c.key:
                case "source.ip":
                    who += self._who(_direct, positive, negative)
                case "source.namespace":
                    who += self._who(self._namespace_of, positive, negative)
                case "source.principal":
                    who += self._who(self._principal, positive, negative)
                case "remote.ip":
                    who += self._request_ids(_remote, positive, negative)
                case "destination.ip":
                    what += self._what(_destination, positive, negative)
                case "destination.port":
                    what += self._what(_port, positive, negative)
                case "connection.sni":
                    what += self._what(lambda v: {"requested_server_name": _text(v)}, positive, negative)
                case key if key.startswith("request.headers[") and key.endswith("]"):
                    name = key[len("request.headers[") : -1].lower()
                    what += self._request(lambda v, name=name: _header(name, v), positive, negative)
                case _:
                    what += self._request(lambda v: {"not_rule": _ANY}, positive, negative)
        return who, what

    # -- any of the values, none of the others

    def _who(self, make: Callable[[str], Json], positive: Sequence[str], negative: Sequence[str]) -> Iterable[Json]:
        if positive:
            yield _one("or_ids", "ids", [make(v) for v in positive])
        if negative:
            yield {"not_id": _one("or_ids", "ids", [make(v) for v in negative])}

    def _what(self, make: Callable[[str], Json], positive: Sequence[str], negative: Sequence[str]) -> Iterable[Json]:
        if positive:
            yield _one("or_rules", "rules", [make(v) for v in positive])
        if negative:
            yield {"not_rule": _one("or_rules", "rules", [make(v) for v in negative])}

    def _request(self, make: Callable[[str], Json], positive: Sequence[str], negative: Sequence[str]) -> Iterable[Json]:
        return self._what(make, positive, negative) if self._asks(positive, negative) else ()

    def _request_ids(
        self, make: Callable[[str], Json], positive: Sequence[str], negative: Sequence[str]
    ) -> Iterable[Json]:
        return self._who(make, positive, negative) if self._asks(positive, negative) else ()

    def _asks(self, positive: Sequence[str], negative: Sequence[str]) -> bool:
        self.dropped |= not self._http and bool(positive or negative)
        return self._http

    # -- who calls

    def _principal(self, value: str) -> Json:
        # istiod reads the default trust domain in a policy as the mesh's own, whatever that is called
        if self._trust_domain != "cluster.local" and value.startswith("cluster.local/"):
            value = f"{self._trust_domain}/{value.partition('/')[2]}"
        if value == "*":
            return self._name({"prefix": "spiffe://"})
        if value.startswith("*"):
            return self._name(_regex(f"spiffe://.*{re.escape(value[1:])}"))
        if value.endswith("*"):
            return self._name({"prefix": f"spiffe://{value[:-1]}"})
        return self._name({"exact": f"spiffe://{value}"})

    def _namespace_of(self, value: str) -> Json:
        part = "[^/]*".join(map(re.escape, value.split("*")))
        return self._name(_regex(f"spiffe://[^/]*/ns/{part}/sa/.*"))

    def _account(self, value: str) -> Json:
        namespace, _, account = value.partition("/") if "/" in value else (self._namespace, "", value)
        return self._name(_regex(f"spiffe://[^/]*/ns/{re.escape(namespace)}/sa/{re.escape(account)}"))

    def _domain(self, value: str) -> Json:
        if value == "*":
            part = "[^/]+"
        elif value.startswith("*"):
            part = "[^/]*" + re.escape(value[1:])
        elif value.endswith("*"):
            part = re.escape(value[:-1]) + "[^/]*"
        else:
            part = re.escape(value)
        return self._name(_regex(f"spiffe://{part}/ns/.*"))


def _direct(value: str) -> Json:
    return {"direct_remote_ip": rbac.cidr(value)}


def _remote(value: str) -> Json:
    return {"remote_ip": rbac.cidr(value)}


def _nobody(_: str) -> Json:
    """No token is proven here."""
    return {"not_id": _ANY}


def _destination(value: str) -> Json:
    return {"destination_ip": rbac.cidr(value)}


def _port(value: str) -> Json:
    if value.isascii() and value.isdigit() and int(value) < 65536:
        return {"destination_port": int(value)}
    return {"not_rule": _ANY}


def _method(value: str) -> Json:
    return _present(":method") if value == "*" else {"header": {"name": ":method", "string_match": _text(value)}}


def _host(value: str) -> Json:
    if value == "*":
        return _present(":authority")
    return {"header": {"name": ":authority", "string_match": {**_text(value), "ignore_case": True}}}


def _path(value: str) -> Json:
    if is_template(value):
        return {
            "uri_template": {
                "name": "envoy.path.match.uri_template.uri_template_matcher",
                "typed_config": {
                    "@type": f"{TYPE}.extensions.path.match.uri_template.v3.UriTemplateMatchConfig",
                    "path_template": value.replace("{*}", "*").replace("{**}", "**"),
                },
            }
        }
    return {"url_path": {"path": _text(value)}}


def _header(name: str, value: str) -> Json:
    name = ":authority" if name == "host" else name
    return _present(name) if value == "*" else {"header": {"name": name, "string_match": _text(value)}}


def _present(name: str) -> Json:
    return {"header": {"name": name, "present_match": True}}


def _text(value: str) -> Json:
    """Istio's notation: `*` anything that is not empty, `*x` a suffix, `x*` a prefix."""
    if value == "*":
        return _regex(".+")
    if value.startswith("*"):
        return {"suffix": value[1:]}
    if value.endswith("*"):
        return {"prefix": value[:-1]}
    return {"exact": value}


def _regex(pattern: str) -> Json:
    return {"safe_regex": {"regex": pattern}}


def _one(key: str, inner: str, parts: list[Json]) -> Json:
    return parts[0] if len(parts) == 1 else {key: {inner: parts}}


def _both(key: str, inner: str, parts: Sequence[Json]) -> Json:
    kept = [p for p in parts if p != _ANY]
    return _one(key, inner, kept) if kept else _ANY
