"""Which capture points a pair's traffic has to appear at."""

from __future__ import annotations

from testbed.model.topology import App, Link, Node, Service, Topology, Workload
from testbed.seams import Sandbox
from testbed.verify.segments import LOCAL, WIRE, capture_points, lay_out

NODES = tuple(Node(name=n, zone="z", address=f"10.0.{i}.1", network=f"10.0.{i}.0/24") for i, n in enumerate("abc", 1))
WORKLOADS = tuple(
    Workload(
        name=f"w{i}",
        group="w",
        namespace="default",
        service_account="w",
        node=node.name,
        address=f"10.0.{i}.2",
        app=App(kind="idle"),
    )
    for i, node in enumerate(NODES, 1)
)
TOPOLOGY = Topology(
    name="chain",
    nodes=NODES,
    workloads=WORKLOADS,
    services=(Service(name="s", namespace="default", address="10.96.0.10", ports=(), endpoints=("w3",)),),
    links=tuple(Link(a=a, b=b, a_address="", b_address="") for a, b in ("ab", "bc")),
)


def names(found: object) -> list[str]:
    return [s.name for s in found]


def test_the_way_leads_over_every_link_in_between() -> None:
    """Both veths and each link, in the order of travel, also backwards."""
    layout = lay_out(TOPOLOGY, {"w1": "v1", "w3": "v3"}, local=["w1"])

    assert names(layout.crossed("w1", "w3", WIRE)) == ["a:v1", "a:to-b", "b:to-c", "c:v3"]
    assert names(layout.crossed("w3", "w1", WIRE)) == ["c:v3", "b:to-c", "a:to-b", "a:v1"]
    assert names(layout.crossed("w1", "w3", LOCAL)) == ["w1:lo"]
    assert layout.addresses["w3"] == {"10.0.3.2", "10.96.0.10"}


def test_proxies_with_an_address_are_places_too() -> None:
    """A waypoint has a veth like a workload."""
    layout = lay_out(TOPOLOGY, {"w1": "v1", "wp": "v9"}, extra={"wp": ("b", "10.0.2.9")})

    assert names(layout.crossed("w1", "wp", WIRE)) == ["a:v1", "a:to-b", "b:v9"]


def test_capture_points_take_the_namespace_of_their_sandbox() -> None:
    """The veth is watched from its node."""
    sandboxes = {n: Sandbox(name=n, kind="node", netns=f"/proc/1/fd/{n}", address="") for n in "abc"}

    points = capture_points(lay_out(TOPOLOGY, {"w3": "v3"}).segments, sandboxes)

    assert (points[0].sandbox, points[0].netns, points[0].device) == ("c", "/proc/1/fd/c", "v3")
