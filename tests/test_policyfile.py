"""Istio resources as files: read field by field, refused with a place, and told where a plane does not honour them."""

from __future__ import annotations

import pytest

from testbed import policyfile
from testbed.errors import TopologyError
from testbed.model.policy import (
    Action,
    AuthorizationPolicy,
    Condition,
    Mode,
    Operation,
    PeerAuthentication,
    Rule,
    Source,
    TargetRef,
)
from testbed.policyfile import OtherResource

HEAD = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: p, namespace: n}\n"


def problems(text: str) -> list[str]:
    with pytest.raises(TopologyError) as caught:
        policyfile.parse(text, "p.yml")
    return caught.value.problems


def authorization(spec: str) -> AuthorizationPolicy:
    (resource,) = policyfile.parse(HEAD + "spec: " + spec, "p.yml")
    assert isinstance(resource, AuthorizationPolicy)
    return resource


def test_authorization_policy_with_every_kind_of_field() -> None:
    """The whole resource comes through, L7 fields too."""
    (resource,) = policyfile.parse(
        """\
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicy
metadata: {name: p, namespace: n, labels: {x: y}, annotations: {istio.io/dry-run: "true"}}
spec:
  selector: {matchLabels: {app: web}}
  action: DENY
  rules:
    - from:
        - source: {principals: ["*"], notNamespaces: [a], ipBlocks: [10.0.0.0/8], serviceAccounts: [n/s]}
        - source: {requestPrincipals: ["iss/sub"], trustDomains: [td]}
      to:
        - operation: {ports: ["8080"], methods: [GET], notPaths: [/x*]}
      when:
        - {key: "request.headers[x]", values: [y]}
        - {key: destination.port, notValues: ["1"]}
""",
        "p.yml",
    )

    assert resource == AuthorizationPolicy(
        name="p",
        namespace="n",
        action=Action.DENY,
        selector=(("app", "web"),),
        dry_run=True,
        rules=(
            Rule(
                sources=(
                    Source(
                        principals=("*",), not_namespaces=("a",), ip_blocks=("10.0.0.0/8",), service_accounts=("n/s",)
                    ),
                    Source(request_principals=("iss/sub",), trust_domains=("td",)),
                ),
                operations=(Operation(ports=("8080",), methods=("GET",), not_paths=("/x*",)),),
                conditions=(
                    Condition(key="request.headers[x]", values=("y",)),
                    Condition(key="destination.port", not_values=("1",)),
                ),
            ),
        ),
    )


def test_absent_rules_and_an_empty_rule_differ() -> None:
    """None matches nothing, `[{}]` matches everything."""
    assert authorization("{}").rules == ()
    assert authorization("{rules: [{}]}").rules == (Rule(),)


def test_peer_authentication_with_ports() -> None:
    """Modes by port; namespace `default` when none is said; UNSET when no mode is."""
    (resource,) = policyfile.parse(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\n"
        'spec: {selector: {matchLabels: {a: b}}, portLevelMtls: {"80": {mode: STRICT}, "81": {}}}\n',
        "p.yml",
    )

    assert resource == PeerAuthentication(
        name="p", namespace="default", selector=(("a", "b"),), port_modes=((80, Mode.STRICT), (81, Mode.UNSET))
    )


def test_both_spellings_of_target_refs() -> None:
    """`targetRef` is the older one."""
    expected = (TargetRef(kind="Service", name="s"),)

    assert authorization("{targetRefs: [{kind: Service, name: s}]}").target_refs == expected
    assert authorization("{targetRef: {kind: Service, name: s}}").target_refs == expected


def test_a_file_may_hold_several_documents_and_kinds() -> None:
    """Empty documents are passed over; L7 kinds are kept whole."""
    route = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: v}\nspec: {hosts: [h]}\n"
    resources = policyfile.parse(f"---\n{HEAD}---\n---\n{route}", "p.yml")

    assert resources[0].name == "p"
    assert resources[1] == OtherResource(
        kind="ServiceEntry", name="v", namespace="default", spec_json='{"hosts": ["h"]}'
    )


MISTAKES = [
    ("{action: DENNY}", "4:16: unknown action ('DENNY')", "did you mean 'DENY'?"),
    ("{rule: []}", "4:8: unknown key in spec of AuthorizationPolicy ('rule')", "did you mean 'rules'?"),
    ("{rules: [{from: [{source: {principal: [x]}}]}]}", "unknown key in source ('principal')", "'principals'?"),
    ("{rules: [{from: [{}]}]}", "from lacks a key ('source')", "add source:"),
    ("{rules: [{from: [{source: {ipBlocks: [10.0.0.300]}}]}]}", "not an address or network", "10.0.1.0/24"),
    ("{rules: [{to: [{operation: {ports: [8080]}}]}]}", "must be text, not a number (8080)", 'write "8080" in quotes'),
    ('{rules: [{to: [{operation: {ports: ["http"]}}]}]}', "not a port ('http')", "1 to 65535"),
    ("{rules: [{when: [{key: source.ipp, values: [x]}]}]}", "unknown condition key ('source.ipp')", "'source.ip'?"),
    ("{rules: [{when: [{key: source.ip, values: [x]}]}]}", "not an address or network ('x')", "10.0.1.0/24"),
    ("{rules: [{when: [{key: source.ip}]}]}", "condition has no values (source.ip)", "add values"),
    ("{action: CUSTOM}", "action and provider do not fit (CUSTOM)", "provider.name"),
    ("{selector: {matchLabels: {}}, targetRefs: []}", "exclude each other", "take one of them out"),
]


@pytest.mark.parametrize(("spec", "what", "mend"), MISTAKES, ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_told_with_place_and_mend(spec: str, what: str, mend: str) -> None:
    """An unknown or wrong field is an error, never a policy that means something else."""
    found = problems(HEAD + "spec: " + spec)

    assert len(found) == 1 and found[0].startswith("p.yml:4:")
    assert what in found[0] and mend in found[0]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("metadata: {name: x}", "has no kind"),
        (HEAD.replace("security.istio.io/v1", "security.istio.io/v2"), "unknown apiVersion ('security.istio.io/v2')"),
        (HEAD.replace("name: p, ", ""), "metadata lacks a key ('name')"),
        (HEAD.replace("AuthorizationPolicy", "AuthorisationPolicy"), "unknown kind ('AuthorisationPolicy')"),
        (HEAD.replace("namespace: n", "annotations: {istio.io/dry-run: 'yes'}"), "not a truth value ('yes')"),
    ],
)
def test_a_wrong_envelope_is_told(text: str, what: str) -> None:
    """Version, kind, metadata."""
    assert any(what in p for p in problems(text))


def test_port_level_without_selector_is_refused() -> None:
    """Istio takes it and ignores it; here an author is told."""
    text = HEAD.replace("AuthorizationPolicy", "PeerAuthentication") + 'spec: {portLevelMtls: {"80": {mode: STRICT}}}'

    assert "has no effect in Istio; add selector" in problems(text)[0]


L7 = "{action: %s, rules: [{to: [{operation: {methods: [GET]%s}}]}]}"


def test_aliases_of_aliases_are_refused_before_they_are_written_out() -> None:
    """Nine lines that stand for a billion values."""
    lines = ["x0: &a0 [a, a, a, a, a, a, a, a, a, a]"]
    lines += [f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    text = "apiVersion: networking.istio.io/v1\nkind: EnvoyFilter\nmetadata: {name: g}\nspec: \n"
    (problem,) = problems(text + "".join(f"  {line}\n" for line in lines))
    assert "aliases stand for" in problem and problem.startswith("p.yml:1:1: ")


def test_aliases_that_stand_for_little_pass() -> None:
    """As people write them."""
    text = "apiVersion: networking.istio.io/v1\nkind: EnvoyFilter\nmetadata: {name: g}\nspec: {a: &x [1, 2], b: *x}\n"
    (resource,) = policyfile.parse(text, "p.yml")
    assert isinstance(resource, OtherResource) and resource.spec_json == '{"a": [1, 2], "b": [1, 2]}'
