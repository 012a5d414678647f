"""Where waypoints are placed, whom they serve, and what the rest of the mesh is told of them."""

from __future__ import annotations

import pytest

from planes.mesh.view import MeshView
from planes.waypoint.place import waypoints
from testbed import topofile
from testbed.errors import TopologyError, UsageError
from testbed.planespec import place

HEAD = "name: t\nnodes: {node-a: {}, node-b: {}}\nlinks: [{between: [node-a, node-b]}]\n"
APP = "app: {kind: http-echo, ports: [8080]}"
PORTS = "ports: [{port: 80, targetPort: 8080, protocol: http}]"
SHOP = f"""{HEAD}
namespaces: {{whole: {{waypoint: {{node: node-b, for: all, replicas: 2}}}}}}
workloads:
  client: {{node: node-a}}
  web: {{node: node-a, {APP}}}
  own: {{node: node-a, {APP}, waypoint: {{name: guard, node: node-b, for: workload}}}}
  also: {{node: node-b, {APP}, waypoint: {{name: guard, node: node-b, for: workload}}}}
  member: {{node: node-b, namespace: whole, {APP}}}
  special: {{node: node-b, namespace: whole, {APP}, waypoint: {{name: apart, node: node-a, for: all}}}}
services:
  web: {{{PORTS}, workloads: [web], waypoint: {{name: waypoint, node: node-a}}}}
  web-too: {{{PORTS}, workloads: [web], waypoint: {{name: waypoint, node: node-a}}}}
  unnamed: {{{PORTS}, workloads: [web], waypoint: {{node: node-a}}}}
  direct: {{{PORTS}, workloads: [web]}}
  member: {{namespace: whole, {PORTS}, workloads: [member]}}
"""


def parsed(text: str = SHOP):
    return topofile.parse(text, "t.yml")


def test_those_that_name_one_waypoint_share_it() -> None:
    """By namespace and name; a namespace's is for whoever in it names no other."""
    found = {(w.namespace, w.name): w for w in waypoints(parsed())}

    assert {
        key: ([s.name for s in w.services], [v.name for v in w.workloads], w.node) for key, w in found.items()
    } == {
        ("default", "guard"): ([], ["own", "also"], "node-b"),
        ("default", "waypoint"): (["web", "web-too"], [], "node-a"),
        ("default", "unnamed-waypoint"): (["unnamed"], [], "node-a"),
        ("whole", "waypoint"): (["member"], ["member"], "node-b"),
        ("whole", "apart"): ([], ["special"], "node-a"),
    }


ACCOUNTS = f"""{HEAD}
namespaces:
  default:
    waypoint: {{node: node-b, for: all}}
    serviceAccounts:
      web: {{waypoint: {{node: node-a, for: all, replicas: 2}}}}
      job: {{waypoint: {{name: jobs, node: node-b, for: workload}}}}
      twin: {{waypoint: {{name: shared, node: node-a}}}}
      pair: {{waypoint: {{name: shared, node: node-a}}}}
  other: {{}}
workloads:
  web-1: {{node: node-a, serviceAccount: web, {APP}}}
  web-2: {{node: node-b, serviceAccount: web, {APP}}}
  own: {{node: node-b, serviceAccount: web, {APP}, waypoint: {{name: apart, node: node-a, for: all}}}}
  job: {{node: node-b, serviceAccount: job, {APP}}}
  twin: {{node: node-b, serviceAccount: twin, {APP}}}
  pair: {{node: node-b, serviceAccount: pair, {APP}}}
  rest: {{node: node-b, {APP}}}
  far: {{node: node-b, namespace: other, serviceAccount: web, {APP}}}
services:
  both: {{{PORTS}, workloads: [web-1, web-2]}}
  mine: {{{PORTS}, workloads: [web-1, rest], waypoint: {{name: apart, node: node-a, for: all}}}}
  jobs-of: {{{PORTS}, workloads: [job]}}
  twins: {{{PORTS}, workloads: [twin, pair]}}
  rest: {{{PORTS}, workloads: [rest]}}
  far: {{namespace: other, {PORTS}, workloads: [far]}}
"""


def test_a_service_account_has_a_waypoint() -> None:
    """For what runs under it and services of nothing else; it goes before the namespace's and after an own one."""
    topology = parsed(ACCOUNTS)
    found = {(w.namespace, w.name): w for w in waypoints(topology)}

    assert {
        key: ([s.name for s in w.services], [v.name for v in w.workloads], len(w.pods)) for key, w in found.items()
    } == {
        ("default", "web-waypoint"): (["both"], ["web-1", "web-2"], 2),
        ("default", "apart"): (["mine"], ["own"], 1),
        ("default", "jobs"): ([], ["job"], 1),
        ("default", "shared"): (["twins"], [], 1),
        ("default", "waypoint"): (["jobs-of", "rest"], ["twin", "pair", "rest"], 1),
    }
    assert topology.service("far").waypoint is None and topology.workload("far").waypoint is None


@pytest.mark.parametrize(
    ("accounts", "told"),
    [
        ("web: {waypoint: {node: node-a}}", "stands for service accounts of different waypoints .default: none, web: "),
        ("web: {waypoint: {node: node-a}}, default: {waypoint: {node: node-a}}", "default: default-way.*, web: web-"),
        ("wbe: {waypoint: {node: node-a}}", "no workload of namespace default runs under .*'wbe'.*did you mean.*web"),
        ("web: {waypoint: {node: node-c}}", "no node of that name"),
        ("web: {waypoints: {node: node-a}}", "did you mean.*waypoint"),
        ("web: {}", "waypoint"),
        ("web: {waypoint: {node: node-a, for: account}}", "what a waypoint is for"),
    ],
)
def test_contradictions_of_accounts_are_told_at_the_door(accounts: str, told: str) -> None:
    """A waypoint that would see some of a service's calls is none of today's."""
    workloads = f"  web: {{node: node-a, serviceAccount: web, {APP}}}\n  rest: {{node: node-a, {APP}}}\n"
    text = f"{HEAD}namespaces: {{default: {{serviceAccounts: {{{accounts}}}}}}}\nworkloads:\n{workloads}"
    with pytest.raises(TopologyError, match=told):
        parsed(f"{text}services: {{s: {{{PORTS}, workloads: [web, rest]}}}}\n")


def test_every_replica_has_a_name_and_an_address_of_its_own() -> None:
    """Also where two namespaces call theirs alike; none is a workload's."""
    pods = [pod for w in waypoints(parsed()) for pod in w.pods]

    assert len({name for name, _ in pods}) == len({address for _, address in pods}) == len(pods) == 6
    assert not {address for _, address in pods} & {w.address for w in parsed().workloads}


def test_ztunnels_are_told_where_to_go() -> None:
    """Services and workloads name the waypoint's service, whose endpoints are the replicas."""
    view = MeshView.parse(place("ambient", parsed()).proxies[0].view)
    services = {s.name: str(s.waypoint) for s in view.services if s.waypoint}
    workloads = {w.name: str(w.waypoint) for w in view.workloads if w.waypoint}
    member = view.service_by_key("whole/member.whole.svc.cluster.local")

    assert services == {
        "web": "default/waypoint.default.svc.cluster.local:15008",
        "web-too": "default/waypoint.default.svc.cluster.local:15008",
        "unnamed": "default/unnamed-waypoint.default.svc.cluster.local:15008",
        "member": "whole/waypoint.whole.svc.cluster.local:15008",
    }
    assert set(workloads) == {"own", "also", "member", "special"}
    assert len(view.endpoints(view.destination(member.waypoint))) == 2


def test_a_waypoint_holds_one_identity_and_its_own_rules() -> None:
    """Its service account is called as itself."""
    proxies = {p.name: p for p in place("ambient", parsed()).proxies if p.role == "waypoint"}

    assert {str(i) for i in proxies["waypoint.guard"].identities} == {"spiffe://cluster.local/ns/default/sa/guard"}
    assert proxies["waypoint.waypoint-default"].options["l7"]["serves"] == [
        "default/web.default.svc.cluster.local", "default/web-too.default.svc.cluster.local",
    ]  # fmt: skip


def test_left_out_means_that_nobody_has_heard_of_it() -> None:
    """The mesh is that of ambient-l4: traffic goes direct."""
    left_out, l4 = place("ambient:waypoints=left-out", parsed()), place("ambient-l4", parsed())

    assert [p.view for p in left_out.proxies] == [p.view for p in l4.proxies]
    assert {p.role for p in left_out.proxies} == {"ztunnel"}


def test_missing_means_that_it_is_named_and_cannot_be_found() -> None:
    """Services keep the name, the view lacks what it names."""
    view = MeshView.parse(place("ambient:waypoints=missing", parsed()).proxies[0].view)
    web = view.service_by_key("default/web.default.svc.cluster.local")

    assert web.waypoint is not None
    assert view.destination(web.waypoint) is None


@pytest.mark.parametrize(
    ("waypoints", "told"),
    [
        (["node: node-a, for: workload"], "for: service"),
        (["node: node-c"], "no node of that name"),
        (["name: s0, node: node-a"], "a waypoint is a service, too; rename one"),
        (["name: web, node: node-a"], "is taken by a w"),
        (["name: w, node: node-a", "name: w, node: node-a, for: all"], "described in two ways"),
    ],
)
def test_contradictions_are_told_at_the_door(waypoints: list[str], told: str) -> None:
    """Each with its place and mend."""
    services = "".join(
        f"  s{number}: {{{PORTS}, workloads: [web], waypoint: {{{waypoint}}}}}\n"
        for number, waypoint in enumerate(waypoints)
    )
    with pytest.raises(TopologyError, match=told):
        parsed(f"{HEAD}workloads: {{web: {{node: node-a, {APP}}}}}\nservices:\n{services}")


def test_a_workloads_waypoint_must_be_for_workloads() -> None:
    """The default is for services, and would never be passed."""
    with pytest.raises(TopologyError, match="for: workload or for: all"):
        parsed(f"{HEAD}workloads: {{web: {{node: node-a, {APP}, waypoint: {{node: node-a}}}}}}\n")


def test_a_full_node_has_no_room_for_a_waypoint() -> None:
    """An address is never given twice."""
    many = f"{HEAD}workloads: {{w: {{node: node-a, replicas: 253, {APP}}}}}\n"
    text = f"{many}services: {{s: {{{PORTS}, workloads: [w], waypoint: {{node: node-a}}}}}}\n"
    with pytest.raises(UsageError, match="no address left"):
        waypoints(parsed(text))
    assert waypoints(parsed(text), node="node-b")[0].node == "node-b"
