"""AuthorizationPolicy at L7 proxies: truth tables of every field, the order of actions, and agreement with L4."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.model import l4policy
from testbed.model.identity import Identity
from testbed.model.l4policy import Connection
from testbed.model.l7policy import PolicySet
from testbed.model.policy import Action, AuthorizationPolicy, Condition, Operation, Rule, Source, to_l4

CLIENT = Identity("cluster.local", "shop", "web")


@dataclass
class Head:
    method: bytes = b"GET"
    authority: bytes = b"b.shop.svc.cluster.local:8080"
    path: bytes = b"/"
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)


def connection(
    identity: Identity | None = CLIENT, source: str = "10.0.1.2", port: int = 8080, sni: str = ""
) -> Connection:
    return Connection(source_ip=source, destination_ip="10.0.2.2", destination_port=port, identity=identity, sni=sni)


def policy(*rules: Rule, action: Action = Action.ALLOW, name: str = "p", dry_run: bool = False) -> AuthorizationPolicy:
    return AuthorizationPolicy(name=name, namespace="shop", action=action, rules=rules, dry_run=dry_run)


def allowed(
    rule: Rule, head: Head | None = None, c: Connection | None = None, trust_domain: str = "cluster.local"
) -> bool:
    return PolicySet([policy(rule)], trust_domain=trust_domain).judge(c or connection()).decide(head or Head()).allowed


OPERATIONS = [
    (Operation(methods=("GET",)), Head(method=b"GET"), True),
    (Operation(methods=("GET",)), Head(method=b"get"), False),
    (Operation(methods=("GET", "POST")), Head(method=b"POST"), True),
    (Operation(methods=("*",)), Head(method=b"BREW"), True),
    (Operation(not_methods=("GET",)), Head(method=b"GET"), False),
    (Operation(not_methods=("GET",)), Head(method=b"PUT"), True),
    (Operation(paths=("/a",)), Head(path=b"/a"), True),
    (Operation(paths=("/a",)), Head(path=b"/a/"), False),
    (Operation(paths=("/a",)), Head(path=b"/a?b=/c"), True),
    (Operation(paths=("/a",)), Head(path=b"/A"), False),
    (Operation(paths=("/a*",)), Head(path=b"/ab/c"), True),
    (Operation(paths=("*.html",)), Head(path=b"/x.html?y"), True),
    (Operation(paths=("*.html",)), Head(path=b"/x?y=.html"), False),
    (Operation(paths=("*",)), Head(path=b"/anything"), True),
    (Operation(paths=("/a/{*}/c",)), Head(path=b"/a/b/c"), True),
    (Operation(paths=("/a/{*}/c",)), Head(path=b"/a/b/b/c"), False),
    (Operation(paths=("/a/{*}/c",)), Head(path=b"/a//c"), False),
    (Operation(paths=("/a/{**}",)), Head(path=b"/a/b/c"), True),
    (Operation(paths=("/a/{**}",)), Head(path=b"/a/"), True),
    (Operation(paths=("/a/{**}/z",)), Head(path=b"/a/b/c/z?q"), True),
    (Operation(paths=("/a/{**}",)), Head(path=b"/b/c"), False),
    (Operation(paths=("/x", "/a/{*}")), Head(path=b"/a/b"), True),
    (Operation(not_paths=("/admin*",)), Head(path=b"/admin/x"), False),
    (Operation(not_paths=("/admin*",)), Head(path=b"/x"), True),
    (Operation(hosts=("b.shop",)), Head(authority=b"B.Shop"), True),
    (Operation(hosts=("B.SHOP",)), Head(authority=b"b.shop"), True),
    (Operation(hosts=("b.shop",)), Head(authority=b"b.shop:8080"), False),
    (Operation(hosts=("b.shop:*",)), Head(authority=b"b.shop:8080"), True),
    (Operation(hosts=("*.shop",)), Head(authority=b"b.shop"), True),
    (Operation(hosts=("*",)), Head(authority=b"x"), True),
    (Operation(not_hosts=("b.shop",)), Head(authority=b"b.SHOP"), False),
    (Operation(ports=("8080",)), Head(), True),
    (Operation(ports=("80", "9090")), Head(), False),
    (Operation(not_ports=("8080",)), Head(), False),
    (Operation(methods=("GET",), paths=("/a",)), Head(method=b"GET", path=b"/b"), False),
    (Operation(methods=("GET",), not_paths=("/b",)), Head(method=b"GET", path=b"/a"), True),
    (Operation(), Head(), True),
]


@pytest.mark.parametrize(("operation", "head", "expected"), OPERATIONS)
def test_operation_fields(operation: Operation, head: Head, expected: bool) -> None:
    """Methods and paths exactly, hosts without regard to case and with their port, fields all, values any."""
    assert allowed(Rule(operations=(operation,)), head) is expected


NOBODY = connection(identity=None)
SOURCES = [
    (Source(principals=("cluster.local/ns/shop/sa/web",)), connection(), True),
    (Source(principals=("cluster.local/ns/shop/sa/we",)), connection(), False),
    (Source(principals=("*/ns/shop/sa/web",)), connection(), True),
    (Source(principals=("cluster.local/ns/shop/*",)), connection(), True),
    (Source(principals=("*",)), connection(), True),
    (Source(principals=("*",)), NOBODY, False),
    (Source(not_principals=("*",)), NOBODY, True),
    (Source(not_principals=("cluster.local/ns/shop/sa/web",)), connection(), False),
    (Source(namespaces=("shop",)), connection(), True),
    (Source(namespaces=("sh*",)), connection(), True),
    (Source(namespaces=("*op",)), connection(), True),
    (Source(namespaces=("s.op",)), connection(), False),
    (Source(namespaces=("shop",)), NOBODY, False),
    (Source(not_namespaces=("shop",)), NOBODY, True),
    (Source(not_namespaces=("shop",)), connection(), False),
    (Source(service_accounts=("web",)), connection(), True),
    (Source(service_accounts=("shop/web",)), connection(), True),
    (Source(service_accounts=("other/web",)), connection(), False),
    (Source(not_service_accounts=("web",)), connection(), False),
    (Source(trust_domains=("cluster.local",)), connection(), True),
    (Source(trust_domains=("cluster.*",)), connection(), True),
    (Source(trust_domains=("other",)), connection(), False),
    (Source(not_trust_domains=("other",)), NOBODY, True),
    (Source(ip_blocks=("10.0.1.0/24",)), connection(), True),
    (Source(ip_blocks=("10.0.1.2",)), connection(), True),
    (Source(ip_blocks=("10.0.2.0/24", "fd00::/8")), connection(), False),
    (Source(not_ip_blocks=("10.0.1.0/24",)), connection(), False),
    (Source(request_principals=("*",)), connection(), False),
    (Source(not_request_principals=("*",)), connection(), True),
    (Source(namespaces=("shop",), not_ip_blocks=("10.0.1.2",)), connection(), False),
]


@pytest.mark.parametrize(("source", "c", "expected"), SOURCES)
def test_source_fields(source: Source, c: Connection, expected: bool) -> None:
    """Identities by what the certificate proves; without one no positive field about it holds."""
    assert allowed(Rule(sources=(source,)), c=c) is expected


XFF = b"x-forwarded-for"
REMOTES = [
    (Source(remote_ip_blocks=("10.0.1.2",)), [], True),
    (Source(remote_ip_blocks=("1.2.3.4",)), [(XFF, b"1.2.3.4")], True),
    (Source(remote_ip_blocks=("1.2.3.4",)), [(XFF, b"1.2.3.4, 5.6.7.8")], False),
    (Source(remote_ip_blocks=("5.6.7.8",)), [(XFF, b"1.2.3.4"), (XFF, b"5.6.7.8")], True),
    (Source(remote_ip_blocks=("10.0.1.2",)), [(XFF, b"nonsense")], True),
    (Source(not_remote_ip_blocks=("1.2.3.0/24",)), [(XFF, b"1.2.3.4")], False),
]


@pytest.mark.parametrize(("source", "fields", "expected"), REMOTES)
def test_remote_address_is_the_last_one_forwarded_for(source: Source, fields: list, expected: bool) -> None:
    """The entry before it was written by someone whom nobody vouches for."""
    assert allowed(Rule(sources=(source,)), Head(fields=fields)) is expected
    condition = Condition(key="remote.ip", values=source.remote_ip_blocks, not_values=source.not_remote_ip_blocks)
    assert allowed(Rule(conditions=(condition,)), Head(fields=fields)) is expected


X = "request.headers[X-Team]"
CONDITIONS = [
    (Condition(key=X, values=("a",)), [(b"x-team", b"a")], True),
    (Condition(key=X, values=("a",)), [], False),
    (Condition(key=X, values=("a",)), [(b"x-team", b"a"), (b"x-team", b"b")], True),
    (Condition(key=X, values=("b",)), [(b"x-team", b"a"), (b"x-team", b"b")], True),
    (Condition(key=X, values=("a,b",)), [(b"x-team", b"a"), (b"x-team", b"b")], False),
    (Condition(key=X, values=("a,b",)), [(b"x-team", b"a,b")], True),
    (Condition(key=X, not_values=("b",)), [(b"x-team", b"a"), (b"x-team", b"b")], False),
    (Condition(key=X, values=("*",)), [(b"x-team", b"")], True),
    (Condition(key=X, values=("*",)), [], False),
    (Condition(key=X, values=("a*",)), [(b"x-team", b"abc")], True),
    (Condition(key=X, not_values=("a",)), [], True),
    (Condition(key=X, not_values=("a",)), [(b"x-team", b"a")], False),
    (Condition(key="request.headers[:method]", values=("GET",)), [], True),
    (Condition(key="source.ip", values=("10.0.1.0/24",)), [], True),
    (Condition(key="source.namespace", not_values=("shop",)), [], False),
    (Condition(key="source.principal", values=("cluster.local/ns/shop/sa/web",)), [], True),
    (Condition(key="destination.ip", values=("10.0.2.2",)), [], True),
    (Condition(key="destination.port", values=("8081",)), [], False),
    (Condition(key="connection.sni", values=("*",)), [], False),
    (Condition(key="request.auth.claims[iss]", values=("*",)), [], False),
    (Condition(key="request.auth.claims[iss]", not_values=("x",)), [], True),
]


@pytest.mark.parametrize(("condition", "fields", "expected"), CONDITIONS)
def test_conditions(condition: Condition, fields: list, expected: bool) -> None:
    """Every key of `when`; lines of one name are compared one by one (CVE-2026-26308)."""
    assert allowed(Rule(conditions=(condition,)), Head(fields=fields)) is expected


def test_sni_is_asked_of_the_connection() -> None:
    """As the client wrote it in its ClientHello."""
    rule = Rule(conditions=(Condition(key="connection.sni", values=("*.example.com",)),))

    assert allowed(rule, c=connection(sni="a.example.com"))
    assert not allowed(rule, c=connection(sni="example.org"))


def test_the_default_trust_domain_in_a_policy_means_the_meshs_own() -> None:
    """As istiod rewrites it, so that policies move between meshes."""
    rule = Rule(sources=(Source(principals=("cluster.local/ns/shop/sa/web",)),))
    c = connection(Identity("lab.test", "shop", "web"))

    assert allowed(rule, c=c, trust_domain="lab.test")
    assert not allowed(rule, c=c)


def test_from_to_and_when_must_all_hold() -> None:
    """Clauses of a rule are all needed, sources and operations among themselves are alternatives."""
    rule = Rule(
        sources=(Source(namespaces=("other",)), Source(namespaces=("shop",))),
        operations=(Operation(methods=("PUT",)), Operation(methods=("GET",), paths=("/a",))),
        conditions=(Condition(key=X, values=("a",)),),
    )
    fields = [(b"x-team", b"a")]

    assert allowed(rule, Head(path=b"/a", fields=fields))
    assert not allowed(rule, Head(path=b"/a"))
    assert not allowed(rule, Head(path=b"/b", fields=fields))
    assert not allowed(rule, Head(path=b"/a", fields=fields), connection(Identity("cluster.local", "x", "web")))


def test_deny_goes_before_allow_and_names_itself() -> None:
    """The verdict says which policy it was."""
    everything = Rule()
    admin = Rule(operations=(Operation(paths=("/admin*",)),))
    judge = PolicySet([policy(everything, name="all"), policy(admin, action=Action.DENY, name="no-admin")]).judge(
        connection()
    )

    denied, granted = judge.decide(Head(path=b"/admin")), judge.decide(Head(path=b"/x"))
    assert (denied.allowed, denied.policy, denied.reason) == (
        False,
        "shop/no-admin",
        "explicitly denied by shop/no-admin",
    )
    assert (granted.allowed, granted.policy) == (True, "shop/all")


@pytest.mark.parametrize(
    ("policies", "expected"),
    [
        ([], True),
        ([policy()], False),
        ([policy(action=Action.DENY)], True),
        ([policy(Rule())], True),
        ([policy(Rule(), action=Action.DENY)], False),
        ([policy(Rule(), action=Action.DENY, dry_run=True)], True),
        ([policy(dry_run=True)], True),
        ([policy(Rule(), action=Action.AUDIT)], True),
        ([policy(Rule(), action=Action.CUSTOM)], True),
        ([policy(), policy(Rule(operations=(Operation(methods=("GET",)),)))], True),
        ([policy(), policy(Rule(operations=(Operation(methods=("PUT",)),)))], False),
    ],
)
def test_policies_without_rules_and_those_without_effect(policies: list[AuthorizationPolicy], expected: bool) -> None:
    """An ALLOW that matches nothing shuts the door; dry runs, AUDIT and CUSTOM neither open nor shut it."""
    assert PolicySet(policies).judge(connection()).decide(Head()).allowed is expected


def test_dry_run_and_audit_are_told() -> None:
    """They are for the log of requests that they match."""
    get = Rule(operations=(Operation(methods=("GET",)),))
    judge = PolicySet(
        [
            policy(get, action=Action.DENY, name="try", dry_run=True),
            policy(get, action=Action.AUDIT, name="note"),
            policy(Rule(), name="all"),
        ]
    ).judge(connection())

    verdict = judge.decide(Head())
    assert (verdict.allowed, verdict.policy, verdict.dry_run, verdict.audited) == (
        True, "shop/all", ("shop/try",), ("shop/note",),
    )  # fmt: skip
    assert judge.decide(Head(method=b"PUT")).dry_run == ()


def test_a_verdict_that_no_request_can_change_is_settled_with_the_connection() -> None:
    """So that L4-only policies cost nothing per request."""
    by_namespace = policy(Rule(sources=(Source(namespaces=("shop",)),)))
    by_path = policy(Rule(operations=(Operation(paths=("/a",)),)))

    assert PolicySet([by_namespace]).judge(connection()).fixed is not None
    assert PolicySet([by_namespace]).judge(NOBODY).fixed is not None
    assert PolicySet([by_path]).judge(connection()).fixed is None
    elsewhere = Rule(sources=(Source(namespaces=("x",)),), operations=(Operation(paths=("/a",)),))
    assert PolicySet([policy(elsewhere)]).judge(connection()).fixed is not None
    assert PolicySet([by_namespace, by_path]).judge(connection()).fixed is not None


def test_over_tcp_an_allow_rule_about_http_never_holds_and_a_deny_loses_the_question() -> None:
    """As Istio documents for TCP ports: the first denies, the second denies too much, never too little."""
    path = Operation(paths=("/a",))
    ported = Operation(paths=("/a",), ports=("9999",))

    assert not PolicySet([policy(Rule(operations=(path,)))]).decide_tcp(connection()).allowed
    assert not PolicySet([policy(Rule(operations=(path,)), action=Action.DENY)]).decide_tcp(connection()).allowed
    assert PolicySet([policy(Rule(operations=(ported,)), action=Action.DENY)]).decide_tcp(connection()).allowed
    assert PolicySet([policy(Rule(sources=(Source(namespaces=("shop",)),)))]).decide_tcp(connection()).allowed


# -- agreement with the L4 model

_names = st.sampled_from(["shop", "other", "sh*", "*op"])
_principals = st.sampled_from(["cluster.local/ns/shop/sa/web", "cluster.local/ns/other/sa/x", "*", "*/sa/web", "clus*"])
_accounts = st.sampled_from(["web", "shop/web", "other/x"])
_blocks = st.sampled_from(["10.0.1.0/24", "10.0.1.2", "10.0.9.0/24", "fd00::/8"])
_ports = st.sampled_from(["8080", "9090"])


def _some(values: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(values, max_size=2).map(tuple)


_sources = st.builds(
    Source, principals=_some(_principals), not_principals=_some(_principals), namespaces=_some(_names),
    not_namespaces=_some(_names), service_accounts=_some(_accounts), not_service_accounts=_some(_accounts),
    ip_blocks=_some(_blocks), not_ip_blocks=_some(_blocks),
).filter(lambda s: s != Source())  # fmt: skip
_operations = st.builds(Operation, ports=_some(_ports), not_ports=_some(_ports)).filter(lambda o: o != Operation())
_conditions = st.one_of(
    st.builds(Condition, key=st.just("source.namespace"), values=_some(_names), not_values=_some(_names)),
    st.builds(Condition, key=st.just("destination.port"), values=_some(_ports), not_values=_some(_ports)),
).filter(lambda c: bool(c.values or c.not_values))
_rules = st.builds(
    Rule, sources=st.lists(_sources, max_size=2).map(tuple), operations=st.lists(_operations, max_size=2).map(tuple),
    conditions=st.lists(_conditions, max_size=1).map(tuple),
)  # fmt: skip
_policies = st.lists(
    st.builds(
        AuthorizationPolicy, name=st.sampled_from("abc"), namespace=st.just("shop"),
        action=st.sampled_from([Action.ALLOW, Action.DENY]), rules=st.lists(_rules, max_size=2).map(tuple),
    ),
    max_size=4,
)  # fmt: skip
_connections = st.builds(
    Connection, source_ip=st.sampled_from(["10.0.1.2", "10.0.9.9", "fd00::1"]), destination_ip=st.just("10.0.2.2"),
    destination_port=st.sampled_from([8080, 9090]),
    identity=st.sampled_from([None, CLIENT, Identity("cluster.local", "other", "x")]),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(policies=_policies, c=_connections)
def test_l4_policies_mean_the_same_at_both_layers(policies: list[AuthorizationPolicy], c: Connection) -> None:
    """What ztunnel and a sidecar both can judge, they judge alike, over HTTP and TCP."""
    l4, _ = to_l4(policies, ())
    judged = PolicySet(policies)

    expected = l4policy.decide(l4, c).allowed
    assert judged.judge(c).decide(Head()).allowed is expected
    assert judged.decide_tcp(c).allowed is expected
