"""The slow evaluator against tables by hand, and what our proxies judge by against the slow evaluator.

Both sides get the same YAML. One reads it by `yaml.safe_load` and `verify.oracle`, which knows nothing of this project;
the other goes the whole way of a lab: policy file, topology, the view or the `l7` object that is pushed, the proxy's
own decision.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from planes.l7.place import l7_view
from planes.l7.view import L7View
from planes.mesh.view import MeshView
from planes.ztunnel.decisions import ViewDecisions
from planes.ztunnel.place import mesh_view
from testbed import policyfile, topofile
from testbed.model.httppath import normalize
from testbed.model.identity import Identity
from testbed.model.l4policy import Connection
from testbed.model.l7policy import PolicySet
from testbed.model.policy import Mode
from testbed.verify import oracle
from testbed.verify.oracle import Call, Gateway, Message, Pod

TOPOLOGY = topofile.parse(
    """\
name: two
nodes: {a: {}}
workloads:
  web: {node: a, namespace: shop, serviceAccount: web, labels: {tier: front}, app: {kind: http-echo, ports: [8080]}}
  till: {node: a, namespace: bank, serviceAccount: till, app: {kind: http-echo, ports: [8080]}}
services:
  web:
    namespace: shop
    ports: [{port: 80, targetPort: 8080, protocol: http}]
    workloads: [web]
    waypoint: {name: gate, node: a}
""",
    "two.yml",
)
WEB, TILL = TOPOLOGY.workload("web"), TOPOLOGY.workload("till")
SERVICE = TOPOLOGY.service("web")
POD = Pod(namespace="shop", labels=dict(WEB.labels))
GATE = Gateway(name="gate", namespace="shop", service="web", service_namespace="shop")


@dataclass
class Head:
    """As the proxies' evaluator wants it."""

    method: bytes
    authority: bytes
    path: bytes
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)


# -- tables by hand: where the rules of the two kinds of proxies part, and what is said in one line of the facts


def policy(
    spec: str, *, namespace: str = "shop", name: str = "p", kind: str = "AuthorizationPolicy", **meta: str
) -> str:
    notes = "".join(f", {key}: {value}" for key, value in meta.items())
    return (
        f"apiVersion: security.istio.io/v1\nkind: {kind}\n"
        f"metadata: {{name: {name}, namespace: {namespace}{notes}}}\nspec: {spec}\n"
    )


def peer(spec: str, *, namespace: str = "shop", name: str = "p") -> str:
    return policy(spec, namespace=namespace, name=name, kind="PeerAuthentication")


FRONT = "selector: {matchLabels: {tier: front}}"
TO_SERVICE = 'targetRefs: [{group: "", kind: Service, name: web}]'
FORWARDED = (("x-forwarded-for", "192.0.2.9, 192.0.2.1"), ("x-user", "jane"))
GET_A = Message(path="/b/../a", host="web.shop", headers=FORWARDED)
TABLE = [
    # (what, YAML, identity, ztunnel, sidecar, waypoint)
    ("nothing", "", "web", True, True, True),
    ("no rules allow nothing", policy("{}"), "web", False, False, True),
    ("an empty rule allows all", policy("{rules: [{}]}"), None, True, True, True),
    ("no rules deny nothing", policy("{action: DENY}"), "web", True, True, True),
    ("an empty rule denies all", policy("{action: DENY, rules: [{}]}"), "web", False, False, True),
    ("a selector is nothing to a waypoint", policy(f"{{{FRONT}}}"), "web", False, False, True),
    ("another's selector", policy("{selector: {matchLabels: {tier: back}}}"), "web", True, True, True),
    ("targetRefs are nothing to others", policy(f"{{{TO_SERVICE}}}"), "web", True, True, False),
    ("of a Gateway", policy("{targetRefs: [{kind: Gateway, name: gate, group: gateway.networking.k8s.io}]}"), "web",
     True, True, False),
    ("of its class, in the root", policy("{targetRefs: [{kind: GatewayClass, name: istio-waypoint, group: x}]}",
     namespace="istio-system"), "web", True, True, False),
    ("of its class, elsewhere", policy("{targetRefs: [{kind: GatewayClass, name: istio-waypoint, group: x}]}"), "web",
     True, True, True),
    ("another namespace", policy("{}", namespace="bank"), "web", True, True, True),
    ("the root is the mesh", policy("{}", namespace="istio-system"), "web", False, False, True),
    ("AUDIT", policy("{action: AUDIT, rules: [{}]}"), "web", True, True, True),
    ("on trial", policy("{}", annotations='{istio.io/dry-run: "true"}'), "web", True, True, True),
    ("L7 ALLOW shuts a ztunnel", policy("{rules: [{to: [{operation: {methods: [GET]}}]}]}"), "web", False, True, True),
    ("and so does one with more in it",
     policy("{rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {methods: [GET]}}]}]}"), "web", False,
     True, True),
    ("mixed in one operation too",
     policy('{rules: [{to: [{operation: {methods: [GET], ports: ["8080"]}}]}]}'), "web", False, True, True),
    ("whom it was forwarded for last",
     policy("{rules: [{from: [{source: {remoteIpBlocks: [192.0.2.1]}}]}]}"), "web", False, True, True),
    ("and not first",
     policy("{action: DENY, rules: [{from: [{source: {remoteIpBlocks: [192.0.2.9]}}]}]}"), "web", True, True, True),
    ("a way around",
     policy("{action: DENY, rules: [{to: [{operation: {notPaths: [/a]}}]}]}"), "web", True, True, True),
    ("L7 DENY is lost there", policy("{action: DENY, rules: [{to: [{operation: {paths: [/a]}}]}]}"), "web", True, False,
     True),
    ("mixed in one operation it denies more",
     policy('{action: DENY, rules: [{to: [{operation: {paths: [/b], ports: ["8080"]}}]}]}'), "web", False, True, True),
    ("mixed in two clauses it is lost",
     policy('{action: DENY, rules: [{from: [{source: {namespaces: [shop]}}], to: [{operation: {paths: [/a]}}]}]}'),
     "web", True, False, True),
    ("who is not there is not somebody", policy('{action: DENY, rules: [{from: [{source: {notPrincipals: ["*"]}}]}]}'),
     None, False, False, True),
    ("a namespace that is not", policy("{action: DENY, rules: [{from: [{source: {notNamespaces: [shop]}}]}]}"), None,
     False, False, True),
    ("accounts are of the policy's namespace", policy("{rules: [{from: [{source: {serviceAccounts: [web]}}]}]}"), "web",
     True, True, True),
    ("another's account", policy("{rules: [{from: [{source: {serviceAccounts: [bank/web]}}]}]}"), "web", False, False,
     True),
    ("STRICT and plain", peer("{mtls: {mode: STRICT}}"), None, False, False, True),
    ("STRICT and proved", peer("{mtls: {mode: STRICT}}"), "web", True, True, True),
    ("DISABLE is PERMISSIVE at a ztunnel", peer("{mtls: {mode: DISABLE}}"), "web", True, False, True),
    ("port before workload",
     peer(f'{{{FRONT}, mtls: {{mode: STRICT}}, portLevelMtls: {{"8080": {{mode: PERMISSIVE}}}}}}'),
     None, True, True, True),
    ("the oldest wins", peer("{mtls: {mode: PERMISSIVE}}") + "---\n" + peer("{mtls: {mode: STRICT}}", name="q"), None,
     True, True, True),
    ("namespace before mesh",
     peer("{mtls: {mode: STRICT}}", namespace="istio-system") + "---\n" + peer("{mtls: {mode: PERMISSIVE}}"), None,
     True, True, True),
]  # fmt: skip


@pytest.mark.parametrize(("text", "who", "ztunnel", "sidecar", "waypoint"), [t[1:] for t in TABLE],
                         ids=[t[0] for t in TABLE])  # fmt: skip
def test_tables_by_hand(text: str, who: str | None, ztunnel: bool, sidecar: bool, waypoint: bool) -> None:
    """Both evaluators give what was written down by hand from the facts."""
    call = call_of(Identity("cluster.local", "shop", who) if who else None, "10.0.1.9", GET_A, "")

    assert by_the_oracle(text)(call) == (ztunnel, sidecar, waypoint)
    assert by_the_proxies(text)(call) == (ztunnel, sidecar, waypoint)


Three = tuple[bool, bool, bool]
"""At the ztunnel, the sidecar, the waypoint."""


def call_of(identity: Identity | None, source: str, message: Message | None, sni: str) -> Call:
    return Call(
        source_ip=source, destination_ip=WEB.address, port=8080, message=message, sni=sni,
        principal=str(identity).removeprefix("spiffe://") if identity else None,
    )  # fmt: skip


def by_the_oracle(text: str) -> Callable[[Call], Three]:
    documents = [d for d in yaml.safe_load_all(text) if d]

    def judged(call: Call) -> Three:
        return (
            oracle.at_ztunnel(documents, POD, replace(call, message=None)).allowed,
            oracle.at_sidecar(documents, POD, call).allowed,
            oracle.at_waypoint(documents, GATE, replace(call, destination_ip=SERVICE.address, port=80)).allowed,
        )

    return judged


def by_the_proxies(text: str) -> Callable[[Call], Three]:
    """What each of them is told of the file, and what it then says."""
    topology = replace(TOPOLOGY, policies=policyfile.parse(text, "p.yml"))
    ztunnel = ViewDecisions(MeshView.parse(mesh_view(topology, captured=frozenset({"web", "till"}))))
    sidecar = L7View.parse(l7_view(topology, workload=WEB))
    waypoint = L7View.parse(l7_view(topology, waypoint=("shop", "gate"), services=topology.services))

    def judged(call: Call) -> Three:
        identity = f"spiffe://{call.principal}" if call.principal else None
        mode = sidecar.mode(call.port)
        shut = (identity is None and mode is Mode.STRICT) or (identity is not None and mode is Mode.DISABLE)
        return (
            ztunnel.verdict("shop", "web", call.source_ip, call.port, identity).allowed,
            not shut and _judged(sidecar.policies(), call),
            _judged(
                waypoint.policies(f"{SERVICE.namespace}/{SERVICE.hostname}"),
                replace(call, destination_ip=SERVICE.address, port=80),
            ),
        )

    return judged


def _judged(policies: PolicySet, call: Call) -> bool:
    facts = Connection(
        source_ip=call.source_ip, destination_ip=call.destination_ip, destination_port=call.port, sni=call.sni,
        identity=Identity.parse(f"spiffe://{call.principal}") if call.principal else None,
    )  # fmt: skip
    if call.message is None:
        return policies.decide_tcp(facts).allowed
    m = call.message
    lines = [(name.encode(), value.encode()) for name, value in m.headers]
    head = Head(m.method.encode(), m.host.encode(), normalize(m.path.encode()), lines)
    return policies.judge(facts).decide(head).allowed


# -- everything that may stand in a resource


def some(*values: str) -> st.SearchStrategy[list[str]]:
    """Mostly nothing, so that several fields hold together now and then."""
    return st.one_of(st.just([]), st.just([]), st.lists(st.sampled_from(values), min_size=1, max_size=2))


def fields(**of: tuple[str, ...]) -> st.SearchStrategy[dict]:
    """Of each name its values and those of its `not`; at least one is set."""
    both = {key: some(*values) for key, values in of.items()}
    both |= {f"not{key[0].upper()}{key[1:]}": some(*values) for key, values in of.items()}
    return st.fixed_dictionaries(both).map(lambda d: {k: v for k, v in d.items() if v}).filter(bool)


PRINCIPALS = ("cluster.local/ns/shop/sa/web", "*", "*/sa/web", "cluster.local/ns/bank*", "*/till", "x*y", "elsewhere/*")
NAMESPACES = ("shop", "sh*", "*", "*ank", "other")
NETWORKS = ("10.0.0.0/8", "10.0.1.9", "10.0.0.0/24", "fd00::/8", "0.0.0.0/0")
PORTS = ("80", "8080", "9")
SOURCES = fields(
    principals=PRINCIPALS, namespaces=NAMESPACES, serviceAccounts=("web", "bank/till", "shop/web"), ipBlocks=NETWORKS,
    remoteIpBlocks=(*NETWORKS, "1.2.3.4"), requestPrincipals=("*",), trustDomains=("cluster.local", "*", "else*"),
)  # fmt: skip
L4_SOURCES = fields(principals=PRINCIPALS, namespaces=NAMESPACES, serviceAccounts=("web",), ipBlocks=NETWORKS)
OPERATIONS = fields(
    hosts=("web.shop", "WEB.*", "*:80", "*"), ports=PORTS, methods=("GET", "P*", "*T", "*"),
    paths=("/a", "/a*", "*.html", "*", "/a/{*}", "/{**}/b"),
)  # fmt: skip
VALUES = {
    "source.ip": NETWORKS, "source.namespace": NAMESPACES, "source.principal": PRINCIPALS, "remote.ip": NETWORKS,
    "destination.ip": (*NETWORKS, WEB.address, SERVICE.address), "destination.port": PORTS,
    "connection.sni": ("a.example", "*.example", "*"), "request.headers[X-User]": ("jane", "j*", "*", "jane,joe"),
    "request.headers[:method]": ("GET",), "request.auth.claims[iss]": ("*",),
}  # fmt: skip
CONDITIONS = st.sampled_from(sorted(VALUES)).flatmap(
    lambda key: (
        st.fixed_dictionaries({"values": some(*VALUES[key]), "notValues": some(*VALUES[key])})
        .map(lambda d: {"key": key, **{k: v for k, v in d.items() if v}})
        .filter(lambda d: len(d) > 1)
    )
)


def rules(sources: st.SearchStrategy[dict], operations: st.SearchStrategy[dict]) -> st.SearchStrategy[dict]:
    return st.fixed_dictionaries(
        {
            "from": st.lists(st.fixed_dictionaries({"source": sources}), max_size=2),
            "to": st.lists(st.fixed_dictionaries({"operation": operations}), max_size=2),
            "when": st.lists(CONDITIONS, max_size=2),
        }
    ).map(lambda rule: {k: v for k, v in rule.items() if v})


RULES = st.one_of(rules(SOURCES, OPERATIONS), rules(L4_SOURCES, fields(ports=PORTS)))
BARE = st.one_of(
    SOURCES.map(lambda source: {"from": [{"source": dict([next(iter(source.items()))])}]}),
    OPERATIONS.map(lambda operation: {"to": [{"operation": dict([next(iter(operation.items()))])}]}),
    CONDITIONS.map(lambda condition: {"when": [condition]}),
)
"""One question alone."""
SELECTORS = st.sampled_from([None, None, {"tier": "front"}, {"tier": "back"}, {"app": "web", "tier": "front"}])
REFS = st.sampled_from(
    [
        [{"group": "", "kind": "Service", "name": "web"}],
        [{"group": "", "kind": "Service", "name": "other"}],
        [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "gate"}],
        [{"group": "gateway.networking.k8s.io", "kind": "GatewayClass", "name": "istio-waypoint"}],
    ]
)
SPACES = st.sampled_from(["shop", "shop", "shop", "shop", "bank", "istio-system"])
MODES = st.sampled_from(["UNSET", "DISABLE", "PERMISSIVE", "STRICT"])


@st.composite
def authorizations(draw: st.DrawFn) -> dict:
    spec: dict = {"action": draw(st.sampled_from(["ALLOW", "DENY", "DENY", "ALLOW", "AUDIT"]))}
    if held := draw(st.lists(st.one_of(BARE, RULES), max_size=2)):
        spec["rules"] = held
    if draw(st.integers(0, 3)) == 0:
        spec["targetRefs"] = draw(REFS)
    elif selector := draw(SELECTORS):
        spec["selector"] = {"matchLabels": selector}
    metadata = {"namespace": draw(SPACES)}
    if draw(st.integers(0, 5)) == 0:
        metadata["annotations"] = {"istio.io/dry-run": "true"}
    return {"kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec}


@st.composite
def peers(draw: st.DrawFn) -> dict:
    spec: dict = {"mtls": {"mode": draw(MODES)}}
    if selector := draw(SELECTORS):
        spec["selector"] = {"matchLabels": selector}
        ports = draw(st.dictionaries(st.sampled_from([8080, 9]), MODES, max_size=2))
        if ports:
            spec["portLevelMtls"] = {str(port): {"mode": mode} for port, mode in ports.items()}
    # one with a selector in the root namespace is nothing in ambient; what it is to a sidecar the facts do not say
    namespace = draw(SPACES.filter(lambda s: not (selector and s == "istio-system")))
    return {"kind": "PeerAuthentication", "metadata": {"namespace": namespace}, "spec": spec}


@st.composite
def files(draw: st.DrawFn) -> str:
    """Often one document alone: among several most of what one says is hidden by another."""
    most = draw(st.sampled_from([1, 1, 2, 4]))
    documents = draw(st.lists(st.one_of(authorizations(), authorizations(), peers()), min_size=1, max_size=most))
    for number, document in enumerate(documents):
        document["metadata"]["name"] = f"p{number}"
        document["apiVersion"] = "security.istio.io/v1"
    return yaml.safe_dump_all(documents)


IDENTITIES = (
    None, Identity("cluster.local", "shop", "web"), Identity("cluster.local", "bank", "till"),
    Identity("elsewhere", "shop", "web"),
)  # fmt: skip
MESSAGES = (
    None,
    Message(host="web.shop:80"),
    GET_A,
    Message(method="POST", host="WEB.shop", path="/a/b?c=/d", headers=(("x-user", "jane"), ("x-user", "joe"))),
    Message(method="PUT", path="/x.html", headers=(("x-forwarded-for", "1.2.3.4, 10.0.1.9"), ("x-user", ""))),
    Message(path="/q/../%61/./x/../b", host="c.shop"),
    Message(path="/z/b", headers=(("x-forwarded-for", "nonsense"),)),
)
CALLS = [
    call_of(identity, source, message, sni)
    for identity in IDENTITIES
    for source in ("10.0.1.9", "fd00::1")
    for message in MESSAGES
    for sni in ("", "a.example")
]


@settings(
    max_examples=200, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)  # fmt: skip
@given(files())
def test_our_proxies_judge_as_the_oracle_says(text: str) -> None:
    """Any file of policies, every caller, every request: at the ztunnel, at the sidecar and at the waypoint."""
    slow, ours = by_the_oracle(text), by_the_proxies(text)

    for call in CALLS:
        assert slow(call) == ours(call), call
