"""Authorization as Envoy's RBAC filters take it, from the L4 policies of a view. Pure.

Envoy has a verdict per filter: one that denies what matches, then one that allows only what matches, as istiod orders
them. A rule of ours nests any-of and all-of to four levels with source and destination fields mixed; Envoy keeps the
two apart (`principals`, `permissions`), so each rule is multiplied out to sums first.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterable, Sequence

from planes.envoy.pieces import TYPE, Json
from testbed.model.l4policy import L4Action, L4Match, L4Policy, MatchKind, StringMatch

PortTest = Callable[[int], Json]
_HTTP = f"{TYPE}.extensions.filters.http.rbac.v3.RBAC"
_NETWORK = f"{TYPE}.extensions.filters.network.rbac.v3.RBAC"


def http_filters(policies: Sequence[L4Policy], *, by_authority: bool) -> list[Json]:
    """For a connection manager. `by_authority`: the port judged is that of a CONNECT's authority."""
    return [http_filter(name, rules) for name, rules in _rules(policies, _authority_port if by_authority else _port)]


def network_filters(policies: Sequence[L4Policy], stat_prefix: str) -> list[Json]:
    return [network_filter(name, rules, stat_prefix) for name, rules in _rules(policies, _port)]


def http_filter(name: str, rules: Json) -> Json:
    return {"name": f"envoy.filters.http.rbac.{name}", "typed_config": {"@type": _HTTP, "rules": rules}}


def network_filter(name: str, rules: Json, stat_prefix: str) -> Json:
    return {
        "name": f"envoy.filters.network.rbac.{name}",
        "typed_config": {"@type": _NETWORK, "stat_prefix": f"{stat_prefix}.{name}.", "rules": rules},
    }


def _rules(policies: Sequence[L4Policy], port: PortTest) -> Iterable[tuple[str, Json]]:
    enforced = [p for p in policies if not p.dry_run]
    for name, action, wanted in (("deny", "DENY", L4Action.DENY), ("allow", "ALLOW", L4Action.ALLOW)):
        held = [p for p in enforced if p.action is wanted]
        if held:
            yield (
                name,
                {
                    "action": action,
                    "policies": {f"{p.key}[{i}]": part for p in held for i, part in enumerate(_policy(p, port))},
                },
            )


def _policy(policy: L4Policy, port: PortTest) -> Iterable[Json]:
    for rule in policy.rules:
        clauses = [[m for m in clause if not m.is_empty] for clause in rule if clause]
        for chosen in itertools.product(*clauses):
            permissions = [test for match in chosen for test in _destination(match, port)]
            principals = [test for match in chosen for test in _source(match)]
            yield {
                "permissions": [{"and_rules": {"rules": permissions}} if permissions else {"any": True}],
                "principals": [{"and_ids": {"ids": principals}} if principals else {"any": True}],
            }


def _destination(m: L4Match, port: PortTest) -> Iterable[Json]:
    if m.destination_ports:
        yield {"or_rules": {"rules": [port(p) for p in m.destination_ports]}}
    if m.not_destination_ports:
        yield {"not_rule": {"or_rules": {"rules": [port(p) for p in m.not_destination_ports]}}}
    if m.destination_ips:
        yield {"or_rules": {"rules": [{"destination_ip": cidr(c)} for c in m.destination_ips]}}
    if m.not_destination_ips:
        yield {"not_rule": {"or_rules": {"rules": [{"destination_ip": cidr(c)} for c in m.not_destination_ips]}}}


def _source(m: L4Match) -> Iterable[Json]:
    pairs = (
        ([_name(_principal(v)) for v in m.principals], [_name(_principal(v)) for v in m.not_principals]),
        ([_name(_namespace(v)) for v in m.namespaces], [_name(_namespace(v)) for v in m.not_namespaces]),
        ([_name(_account(v.namespace, v.service_account)) for v in m.service_accounts],
         [_name(_account(v.namespace, v.service_account)) for v in m.not_service_accounts]),
        ([{"direct_remote_ip": cidr(c)} for c in m.source_ips],
         [{"direct_remote_ip": cidr(c)} for c in m.not_source_ips]),
    )  # fmt: skip
    for positive, negative in pairs:
        if positive:
            yield {"or_ids": {"ids": positive}}
        if negative:
            yield {"not_id": {"or_ids": {"ids": negative}}}


def _port(number: int) -> Json:
    return {"destination_port": number}


def _authority_port(number: int) -> Json:
    return {"header": {"name": ":authority", "string_match": {"suffix": f":{number}"}}}


def cidr(text: str) -> Json:
    prefix, _, length = text.partition("/")
    return {"address_prefix": prefix, "prefix_len": int(length or (128 if ":" in prefix else 32))}


def _name(matcher: Json) -> Json:
    return {"authenticated": {"principal_name": matcher}}


def _principal(v: StringMatch) -> Json:
    """Principals are written without their scheme; certificates have it."""
    match v.kind:
        case MatchKind.EXACT:
            return {"exact": f"spiffe://{v.value}"}
        case MatchKind.PREFIX:
            return {"prefix": f"spiffe://{v.value}"}
        case MatchKind.SUFFIX:
            return {"suffix": v.value}
        case _:
            return {"prefix": "spiffe://"}


def _namespace(v: StringMatch) -> Json:
    part = {
        MatchKind.EXACT: re.escape(v.value),
        MatchKind.PREFIX: re.escape(v.value) + "[^/]*",
        MatchKind.SUFFIX: "[^/]*" + re.escape(v.value),
        MatchKind.PRESENCE: "[^/]+",
    }[v.kind]
    return {"safe_regex": {"regex": f"spiffe://[^/]+/ns/{part}/sa/.*"}}


def _account(namespace: str, account: str) -> Json:
    return {"safe_regex": {"regex": f"spiffe://[^/]+/ns/{re.escape(namespace)}/sa/{re.escape(account)}"}}
