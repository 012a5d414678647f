"""The L4 verdict and istiod's conversion, against tables restated by hand from ztunnel's and istiod's rules."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed import topofile
from testbed.model.identity import Identity
from testbed.model.policy import (
    Action,
    AuthorizationPolicy,
    Condition,
    Connection,
    L4Action,
    L4Match,
    L4Policy,
    Mode,
    Operation,
    PeerAuthentication,
    Rule,
    Scope,
    ServiceAccountMatch,
    Source,
    StringMatch,
    TargetRef,
    applicable,
    decide,
    effective_mode,
    policies_for_view,
    to_l4,
)
from testbed.model.topology import App, Workload

CLIENT = Identity("cluster.local", "default", "client")
S = StringMatch.parse


def call(identity: Identity | None = CLIENT, port: int = 8080, source: str = "10.0.1.2") -> Connection:
    return Connection(source_ip=source, destination_ip="10.0.2.2", destination_port=port, identity=identity)


def l4(action: L4Action, *rules: tuple[tuple[L4Match, ...], ...], name: str = "p", dry_run: bool = False) -> L4Policy:
    return L4Policy(name=name, namespace="ns", scope=Scope.NAMESPACE, action=action, rules=rules, dry_run=dry_run)


def one(**values: object) -> tuple[tuple[L4Match, ...], ...]:
    """A rule of one clause of one match."""
    return ((L4Match(**values),),)  # type: ignore[arg-type]


EVERYTHING: tuple[tuple[L4Match, ...], ...] = ()

FIELDS = [
    ("exact principal", {"principals": (S("cluster.local/ns/default/sa/client"),)}, call(), True),
    ("scheme never matches", {"principals": (S("spiffe://cluster.local/ns/default/sa/client"),)}, call(), False),
    ("prefix", {"principals": (S("cluster.local/ns/default/*"),)}, call(), True),
    ("suffix", {"principals": (S("*/sa/client"),)}, call(), True),
    ("other suffix", {"principals": (S("*/sa/server"),)}, call(), False),
    ("presence", {"principals": (S("*"),)}, call(), True),
    ("presence needs an identity", {"principals": (S("*"),)}, call(None), False),
    (
        "empty prefix needs an identity too",
        {"principals": (dataclasses.replace(S("x*"), value=""),)},
        call(None),
        False,
    ),
    ("not principal without identity", {"not_principals": (S("*"),)}, call(None), True),
    ("not principal with identity", {"not_principals": (S("*"),)}, call(), False),
    ("any of the values", {"principals": (S("a"), S("*/sa/client"))}, call(), True),
    ("none of the not-values", {"not_principals": (S("a"), S("*/sa/client"))}, call(), False),
    ("namespace", {"namespaces": (S("default"),)}, call(), True),
    ("no identity is namespace empty", {"namespaces": (S(""),)}, call(None), True),
    ("namespace presence needs one", {"namespaces": (S("*"),)}, call(None), False),
    ("not namespace without identity", {"not_namespaces": (S("default"),)}, call(None), True),
    ("account", {"service_accounts": (ServiceAccountMatch("default", "client"),)}, call(), True),
    ("another account", {"service_accounts": (ServiceAccountMatch("default", "admin"),)}, call(), False),
    ("account of another namespace", {"service_accounts": (ServiceAccountMatch("x", "client"),)}, call(), False),
    (
        "account ignores trust domain",
        {"service_accounts": (ServiceAccountMatch("default", "client"),)},
        call(Identity("elsewhere", "default", "client")),
        True,
    ),
    ("account without identity", {"service_accounts": (ServiceAccountMatch("default", "client"),)}, call(None), False),
    ("not account without identity", {"not_service_accounts": (ServiceAccountMatch("d", "c"),)}, call(None), True),
    ("source network", {"source_ips": ("10.0.1.0/24",)}, call(), True),
    ("source host", {"source_ips": ("10.0.1.3/32",)}, call(), False),
    ("other family", {"source_ips": ("::/0",)}, call(), False),
    ("not source", {"not_source_ips": ("10.0.1.0/24",)}, call(), False),
    ("destination", {"destination_ips": ("10.0.2.2/32",)}, call(), True),
    ("not destination", {"not_destination_ips": ("10.0.2.0/24",)}, call(), False),
    ("port", {"destination_ports": (80, 8080)}, call(), True),
    ("other port", {"destination_ports": (80,)}, call(), False),
    ("not port", {"not_destination_ports": (8080,)}, call(), False),
    ("all fields hold", {"destination_ports": (8080,), "principals": (S("*"),)}, call(), True),
    ("one field fails", {"destination_ports": (80,), "principals": (S("*"),)}, call(), False),
    (
        "positive and negative of a field",
        {"principals": (S("*"),), "not_principals": (S("*/sa/client"),)},
        call(),
        False,
    ),
]


@pytest.mark.parametrize(("values", "connection", "expected"), [f[1:] for f in FIELDS], ids=[f[0] for f in FIELDS])
def test_a_field_compares_as_ztunnel_does(values: dict, connection: Connection, expected: bool) -> None:
    """One row a field and corner of `rbac.rs`."""
    policy = l4(L4Action.DENY, one(**values))

    assert policy.matches(connection) is expected
    assert decide([policy], connection).allowed is not expected


YES, NO, EMPTY = L4Match(destination_ports=(8080,)), L4Match(destination_ports=(1,)), L4Match()
STRUCTURES = [
    ("no rules", (), False),
    ("rule without clauses", ((),), True),
    ("clause without matches", (((),),), True),
    ("lone empty match is skipped", (((EMPTY,),),), False),
    ("empty match beside a good one", (((EMPTY, YES),),), True),
    ("empty match beside a bad one", (((EMPTY, NO),),), False),
    ("matches are alternatives", (((NO, YES),),), True),
    ("clauses all count", (((YES,), (NO,)),), False),
    ("clause of empty match spoils the rule", (((YES,), (EMPTY,)),), False),
    ("clause without matches does not", (((YES,), ()),), True),
    ("rules are alternatives", (((NO,),), ((YES,),)), True),
]


@pytest.mark.parametrize(("rules", "expected"), [s[1:] for s in STRUCTURES], ids=[s[0] for s in STRUCTURES])
def test_rules_clauses_and_matches_combine_as_ztunnel_does(rules: tuple, expected: bool) -> None:
    """OR of AND of OR, with the empty ones at every level."""
    assert l4(L4Action.DENY, *rules).matches(call()) is expected


ALLOW_YES, ALLOW_NO = l4(L4Action.ALLOW, ((YES,),), name="ay"), l4(L4Action.ALLOW, ((NO,),), name="an")
DENY_YES, DENY_NO = l4(L4Action.DENY, ((YES,),), name="dy"), l4(L4Action.DENY, ((NO,),), name="dn")
ORDERS = [
    ([], True, None),
    ([DENY_NO], True, None),
    ([DENY_YES], False, "ns/dy"),
    ([ALLOW_YES], True, "ns/ay"),
    ([ALLOW_NO], False, None),
    ([ALLOW_NO, ALLOW_YES], True, "ns/ay"),
    ([ALLOW_YES, DENY_YES], False, "ns/dy"),
    ([ALLOW_YES, DENY_NO], True, "ns/ay"),
    ([l4(L4Action.ALLOW)], False, None),
    ([l4(L4Action.DENY)], True, None),
    ([l4(L4Action.ALLOW, EVERYTHING, name="all")], True, "ns/all"),
]


@pytest.mark.parametrize(("policies", "allowed", "policy"), ORDERS)
def test_deny_then_allow_then_default(policies: list[L4Policy], allowed: bool, policy: str | None) -> None:
    """Any DENY, else no ALLOW at all, else any ALLOW, else deny; the deciding policy is named."""
    verdict = decide(policies, call())

    assert (verdict.allowed, verdict.policy) == (allowed, policy)


def test_dry_run_is_reported_and_changes_nothing() -> None:
    """A dry-run DENY that matches lets pass, a dry-run ALLOW does not make the default a denial."""
    dry_deny, dry_allow = (l4(a, ((YES,),), name=a.lower(), dry_run=True) for a in (L4Action.DENY, L4Action.ALLOW))
    dry_miss = l4(L4Action.ALLOW, ((NO,),), name="miss", dry_run=True)

    verdict = decide([dry_deny, dry_allow, dry_miss], call())

    assert verdict.allowed and verdict.policy is None
    assert verdict.dry_run == ("ns/deny", "ns/allow")


STRINGS = st.sampled_from(["*", "*client", "cluster*", "default", "cluster.local/ns/default/sa/client", ""]).map(S)
MATCHES = st.builds(
    L4Match,
    principals=st.lists(STRINGS, max_size=2).map(tuple),
    not_principals=st.lists(STRINGS, max_size=1).map(tuple),
    namespaces=st.lists(STRINGS, max_size=1).map(tuple),
    service_accounts=st.lists(st.just(ServiceAccountMatch("default", "client")), max_size=1).map(tuple),
    source_ips=st.lists(st.sampled_from(["10.0.0.0/8", "10.0.1.2/32", "::/0"]), max_size=1).map(tuple),
    not_destination_ips=st.lists(st.just("10.0.2.2/32"), max_size=1).map(tuple),
    destination_ports=st.lists(st.sampled_from([80, 8080]), max_size=2).map(tuple),
)


def _tuples(elements: st.SearchStrategy, size: int) -> st.SearchStrategy:
    return st.lists(elements, max_size=size).map(tuple)


POLICIES = st.builds(
    L4Policy,
    name=st.sampled_from("abc"),
    namespace=st.just("ns"),
    scope=st.sampled_from(Scope),
    action=st.sampled_from(L4Action),
    rules=_tuples(_tuples(_tuples(MATCHES, 2), 2), 2),
    dry_run=st.booleans(),
)
CONNECTIONS = st.builds(
    Connection,
    source_ip=st.sampled_from(["10.0.1.2", "10.9.9.9", "fd00::1"]),
    destination_ip=st.sampled_from(["10.0.2.2", "10.0.2.3"]),
    destination_port=st.sampled_from([80, 8080, 9000]),
    identity=st.sampled_from([None, CLIENT, Identity("other", "default", "client")]),
)
SETS = st.lists(POLICIES, max_size=4)


@given(SETS, POLICIES, CONNECTIONS)
def test_a_matching_deny_wins_over_everything(policies: list[L4Policy], deny: L4Policy, connection: Connection) -> None:
    """Whatever stands beside it and wherever it stands."""
    deny = dataclasses.replace(deny, action=L4Action.DENY, dry_run=False)
    if deny.matches(connection):
        for where in range(len(policies) + 1):
            assert not decide([*policies[:where], deny, *policies[where:]], connection).allowed


@given(SETS, POLICIES, CONNECTIONS)
def test_another_allow_never_lifts_a_deny(policies: list[L4Policy], allow: L4Policy, connection: Connection) -> None:
    """An explicitly denied connection stays so with any ALLOW added."""
    before = decide(policies, connection)
    after = decide([*policies, dataclasses.replace(allow, action=L4Action.ALLOW)], connection)

    if not before.allowed and before.policy is not None:
        assert (after.allowed, after.policy) == (False, before.policy)


@given(SETS, POLICIES, CONNECTIONS)
def test_another_deny_never_allows(policies: list[L4Policy], deny: L4Policy, connection: Connection) -> None:
    """Denials only add up."""
    if not decide(policies, connection).allowed:
        assert not decide([*policies, dataclasses.replace(deny, action=L4Action.DENY)], connection).allowed


@given(st.permutations([ALLOW_YES, ALLOW_NO, DENY_NO]), CONNECTIONS)
def test_order_does_not_matter_for_the_answer(policies: list[L4Policy], connection: Connection) -> None:
    """Only for which policy is named."""
    answers = (ALLOW_YES, ALLOW_NO, DENY_NO)

    assert decide(policies, connection).allowed == decide(answers, connection).allowed


@given(POLICIES)
def test_local_shape_there_and_back(policy: L4Policy) -> None:
    """`from_local` undoes `to_local`, and the compiled rules come along."""
    assert L4Policy.from_local(policy.to_local()) == policy


def test_unknown_match_field_of_the_local_shape_is_refused() -> None:
    """ztunnel refuses unknown keys; a misspelt restriction must not vanish."""
    local = ALLOW_YES.to_local()
    local["rules"] = [[[{"destinationPort": [80]}]]]

    with pytest.raises(ValueError, match="destinationPort"):
        L4Policy.from_local(local)


def test_applicable_takes_global_own_namespace_and_attached() -> None:
    """The three ways in; an attached name that does not exist is skipped."""
    named = {
        name: L4Policy(name=name, namespace=namespace, scope=scope, action=L4Action.DENY)
        for name, namespace, scope in (
            ("mesh", "istio-system", Scope.GLOBAL),
            ("mine", "a", Scope.NAMESPACE),
            ("theirs", "b", Scope.NAMESPACE),
            ("picked", "a", Scope.WORKLOAD_SELECTOR),
            ("unpicked", "a", Scope.WORKLOAD_SELECTOR),
        )
    }
    found = applicable(named.values(), namespace="a", attached=["a/picked", "a/gone"])

    assert {p.name for p in found} == {"mesh", "mine", "picked"}


# -- istiod's conversion


def workload(namespace: str = "a", **labels: str) -> Workload:
    return Workload(
        name="w",
        group="w",
        namespace=namespace,
        service_account="w",
        node="n",
        address="10.0.1.2",
        app=App(kind="idle"),
        labels=tuple(labels.items()),
    )


def convert(rule: Rule, action: Action = Action.ALLOW) -> tuple:
    policy = AuthorizationPolicy(name="p", namespace="a", action=action, rules=(rule,))
    return to_l4([policy], ())[0][0].rules


def test_scope_follows_selector_and_root_namespace() -> None:
    """Global in the root namespace, Namespace elsewhere, WorkloadSelector with a selector (attached where it fits)."""
    resources = [
        AuthorizationPolicy(name="g", namespace="istio-system"),
        AuthorizationPolicy(name="n", namespace="a"),
        AuthorizationPolicy(name="s", namespace="a", selector=(("app", "w"),)),
        AuthorizationPolicy(name="elsewhere", namespace="b", selector=(("app", "w"),)),
        AuthorizationPolicy(name="root", namespace="istio-system", selector=(("app", "w"),)),
    ]
    policies, attached = to_l4(resources, [workload(app="w")])

    assert [str(p.scope) for p in policies] == ["Global", "Namespace", *["WorkloadSelector"] * 3]
    assert attached == {"w": ("a/s", "istio-system/root")}


def test_audit_custom_and_target_refs_are_not_sent() -> None:
    """They are for L7 proxies."""
    resources = [
        AuthorizationPolicy(name="a", namespace="a", action=Action.AUDIT),
        AuthorizationPolicy(name="c", namespace="a", action=Action.CUSTOM, provider="x"),
        AuthorizationPolicy(name="t", namespace="a", target_refs=(TargetRef(kind="Service", name="s"),)),
    ]

    assert to_l4(resources, [workload()]) == ((), {"w": ()})


def test_l4_fields_become_one_clause_each() -> None:
    """`to`, then `from`, then each `when`; accounts without a namespace are of the policy's."""
    rule = Rule(
        sources=(Source(service_accounts=("x", "b/y"), ip_blocks=("10.0.0.1",)),),
        operations=(Operation(ports=("80",)),),
        conditions=(Condition(key="source.namespace", not_values=("c*",)),),
    )
    accounts = (ServiceAccountMatch("a", "x"), ServiceAccountMatch("b", "y"))

    assert convert(rule) == (
        (
            (L4Match(destination_ports=(80,)),),
            (L4Match(service_accounts=accounts, source_ips=("10.0.0.1/32",)),),
            (L4Match(not_namespaces=(S("c*"),)),),
        ),
    )


L7_RULES = [
    Rule(operations=(Operation(methods=("GET",)),)),
    Rule(operations=(Operation(not_paths=("/x",), ports=("8080",)),)),
    Rule(sources=(Source(request_principals=("*",)),)),
    Rule(sources=(Source(remote_ip_blocks=("10.0.0.0/8",)),)),
    Rule(conditions=(Condition(key="request.headers[x]", values=("y",)),)),
]


@pytest.mark.parametrize("rule", L7_RULES)
def test_allow_rule_with_an_l7_attribute_is_dropped_and_denies_all(rule: Rule) -> None:
    """Fail closed: an ALLOW without rules remains."""
    assert convert(rule) == ()


def test_allow_keeps_its_other_rules() -> None:
    """Only the rule with the L7 attribute goes."""
    rules = (L7_RULES[0], Rule(operations=(Operation(ports=("80",)),)))
    (policy,), _ = to_l4([AuthorizationPolicy(name="p", namespace="a", rules=rules)], ())

    assert policy.rules == (((L4Match(destination_ports=(80,)),),),)


@pytest.mark.parametrize("rule", [L7_RULES[0], *L7_RULES[2:]])
def test_deny_of_l7_attributes_alone_has_no_effect(rule: Rule) -> None:
    """Fail open: an empty match remains, which ztunnel skips (istio issues 61126, 61166, 54275)."""
    (policy,), _ = to_l4([AuthorizationPolicy(name="p", namespace="a", action=Action.DENY, rules=(rule,))], ())

    assert policy.rules != () and decide([policy], call()).allowed


def test_deny_mixing_in_one_operation_becomes_broader() -> None:
    """`DENY GET at 8080` denies everything at 8080."""
    rule = Rule(operations=(Operation(methods=("GET",), ports=("8080",)),))

    assert convert(rule, Action.DENY) == (((L4Match(destination_ports=(8080,)),),),)


def test_deny_with_a_clause_of_l7_alone_has_no_effect_although_another_clause_is_l4() -> None:
    """`DENY GET from x`: the operation's clause holds nothing any more, so the rule never matches."""
    rule = Rule(sources=(Source(principals=("*",)),), operations=(Operation(methods=("GET",)),))
    (policy,), _ = to_l4([AuthorizationPolicy(name="p", namespace="a", action=Action.DENY, rules=(rule,))], ())

    assert decide([policy], call()).allowed


def peer(namespace: str, mode: Mode = Mode.UNSET, *, name: str = "x", selector: tuple | None = None, **ports: Mode):
    modes = tuple((int(p[1:]), m) for p, m in ports.items())
    return PeerAuthentication(name=name, namespace=namespace, mode=mode, selector=selector, port_modes=modes)


ROOT, W = "istio-system", (("app", "w"),)
STRICT, PERMISSIVE, UNSET, DISABLE = Mode.STRICT, Mode.PERMISSIVE, Mode.UNSET, Mode.DISABLE
PRECEDENCE = [
    ([], False),
    ([peer(ROOT, STRICT)], True),
    ([peer(ROOT, UNSET)], False),
    ([peer("a", STRICT)], True),
    ([peer("b", STRICT)], False),
    ([peer(ROOT, STRICT), peer("a", PERMISSIVE)], False),
    ([peer(ROOT, STRICT), peer("a", DISABLE)], False),
    ([peer(ROOT, STRICT), peer("a", UNSET)], True),
    ([peer("a", PERMISSIVE), peer(ROOT, STRICT)], False),
    ([peer("a", STRICT, name="old"), peer("a", PERMISSIVE, name="new")], True),
    ([peer("a", STRICT), peer("a", PERMISSIVE, selector=W)], False),
    ([peer("a", PERMISSIVE), peer("a", STRICT, selector=W)], True),
    ([peer("a", STRICT), peer("a", UNSET, selector=W)], True),
    ([peer("a", STRICT, selector=(("app", "other"),))], False),
    ([peer(ROOT, STRICT, selector=W)], False),
    ([peer("a", STRICT), peer("a", UNSET, selector=W, p8080=PERMISSIVE)], False),
    ([peer("a", STRICT), peer("a", UNSET, selector=W, p8080=DISABLE)], False),
    ([peer("a", STRICT), peer("a", UNSET, selector=W, p80=PERMISSIVE)], True),
    ([peer("a", PERMISSIVE), peer("a", UNSET, selector=W, p8080=STRICT)], True),
    ([peer("a", PERMISSIVE), peer("a", UNSET, selector=W, p80=STRICT)], False),
    ([peer("a", STRICT, selector=W, p8080=PERMISSIVE, p80=PERMISSIVE)], False),
    ([peer("a", STRICT, selector=W, p80=PERMISSIVE, p81=DISABLE)], True),
    ([peer("a", STRICT, selector=W, p8080=STRICT)], True),
    ([peer("a", PERMISSIVE, selector=W, p8080=STRICT, p80=STRICT)], True),
]


@pytest.mark.parametrize(("resources", "strict"), PRECEDENCE)
def test_peer_authentication_precedence(resources: list[PeerAuthentication], strict: bool) -> None:
    """What holds for plaintext at 8080 of a workload in `a`; with an identity it is always let in."""
    policies, attached = to_l4(resources, [workload(app="w")])
    mine = applicable(policies, namespace="a", attached=attached["w"])

    assert decide(mine, call(None)).allowed is not strict
    assert decide(mine, call()).allowed
    assert (effective_mode(resources, workload(app="w"), 8080) is Mode.STRICT) is strict


def test_strict_is_the_static_policy_of_the_root_namespace() -> None:
    """As istiod names it; port-level settings get a policy of their own instead."""
    _, attached = to_l4([peer("a", STRICT)], [workload()])
    assert attached == {"w": ("istio-system/istio_converted_static_strict",)}

    _, attached = to_l4([peer("a", STRICT, selector=W, p80=PERMISSIVE)], [workload(app="w")])
    assert attached == {"w": ("a/converted_peer_authentication_x",)}


def test_the_vault_of_two_zones_takes_only_the_client() -> None:
    """The shipped policies: no plaintext, no intruder, and other workloads are left alone."""
    topology = topofile.load("two-zones")
    local, attached = policies_for_view(topology)
    policies = [L4Policy.from_local(p) for p in local]
    vault, server = (
        applicable(policies, namespace=w.namespace, attached=attached[w.name])
        for w in (topology.workload("vault"), topology.workload("server"))
    )
    intruder = topology.workload("intruder").identity()

    assert decide(vault, call(topology.workload("client").identity())).allowed
    assert decide(vault, call(None)).policy == "istio-system/istio_converted_static_strict"
    assert decide(vault, call(intruder)).reason == "allow policies exist, but none allowed"
    assert decide(server, call(None)).allowed and decide(server, call(intruder)).allowed
