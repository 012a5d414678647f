"""What must come of attempts, by hand, for every kind of component; and which attempts there are."""

from __future__ import annotations

import pytest

from testbed import planespec, topofile
from testbed.attack.attempts import Place, attempts
from testbed.attack.model import Component, World, components, expected
from testbed.model.l4policy import Connection
from testbed.model.policy import applicable, decide, to_l4

TOPOLOGY = topofile.load("deny-default")
ALLOWED = {("client", "catalog"), ("web", "cart"), ("web", "catalog"), ("cart", "web"), ("cart", "vault")}


def world(plane: str) -> World:
    return World(topology=TOPOLOGY, proxies=planespec.place(plane, TOPOLOGY).proxies)


def component(plane: str, role: str) -> tuple[World, Component]:
    made = world(plane)
    return made, next(c for c in components(made, app="web", neighbour="node-m") if c.role == role)


def test_what_policy_allows_is_what_its_file_says() -> None:
    """Five calls, written here by hand; all else is denied."""
    assert set(world("none").flows) == ALLOWED


@pytest.mark.parametrize("destination", ["web", "cart", "catalog", "ledger", "vault"])
def test_what_policy_allows_is_what_istiods_conversion_and_ztunnels_rules_allow(destination: str) -> None:
    """The model reads the resources by itself; the planes' evaluator must come to the same."""
    made, workload = world("ambient"), TOPOLOGY.workload(destination)
    policies, attached = to_l4(TOPOLOGY.policies, TOPOLOGY.workloads)
    named = applicable(policies, namespace=workload.namespace, attached=attached.get(destination, ()))
    for source in TOPOLOGY.workloads:
        call = Connection(
            source_ip=source.address, destination_ip=workload.address, destination_port=8080,
            identity=source.identity(TOPOLOGY.trust_domain),
        )  # fmt: skip

        assert made.allowed(source.name, destination) == decide(named, call).allowed


@pytest.mark.parametrize(
    ("plane", "role", "names"),
    [
        ("none", "app", []),
        ("sidecar", "sidecar", ["web"]),
        ("ambient", "ztunnel", ["cart", "client", "web"]),
        ("ambient", "waypoint", ["waypoint"]),
        ("node-l7", "node-l7", ["node-l7-node-a"]),
    ],
)
def test_keys_are_those_of_whom_it_serves(plane: str, role: str, names: list[str]) -> None:
    """That is the first half of a blast radius."""
    made, one = component(plane, role)
    accounts = [*(w.name for w in TOPOLOGY.workloads), "waypoint", "node-l7-node-a", "node-l7-node-b"]

    assert [n for n in sorted(accounts) if expected(made, one, f"key/{n}").got] == names


REACHED = {
    ("none", "app", "reach/plain/nobody/vault"): True,
    ("sidecar", "app", "reach/plain/web/catalog"): False,
    ("sidecar", "app", "reach/service/web/catalog"): True,
    ("sidecar", "app", "reach/service/web/vault"): False,
    ("sidecar", "sidecar", "reach/as/web/cart"): True,
    ("sidecar", "sidecar", "reach/as/web/vault"): False,
    ("ambient", "app", "reach/plain/web/catalog"): True,
    ("ambient", "ztunnel", "reach/as/cart/vault"): True,
    ("ambient", "ztunnel", "reach/as/client/vault"): False,
    ("ambient", "ztunnel", "reach/plain/nobody/cart"): False,
    ("ambient", "waypoint", "reach/as/waypoint/catalog"): True,
    ("ambient", "waypoint", "reach/as/waypoint/vault"): False,
    ("node-l7", "node-l7", "reach/plain/nobody/vault"): True,
    ("node-l7", "node-l7", "reach/told/cart/vault"): True,
    ("node-l7", "node-l7", "reach/told/catalog/vault"): False,
    ("node-l7", "neighbour", "reach/plain/nobody/ledger"): True,
    ("ambient", "neighbour", "reach/plain/nobody/ledger"): False,
    ("ambient-l4", "app", "secret/catalog/service"): True,
    ("ambient", "app", "secret/catalog/service"): False,
    ("ambient", "app", "secret/catalog/pod"): True,
    ("sidecar", "app", "secret/catalog/pod"): False,
    ("ambient", "ztunnel", "secret-key/web>catalog"): True,
    ("ambient", "ztunnel", "secret-key/cart>catalog"): False,
    ("ambient", "waypoint", "read/web>catalog"): True,
    ("ambient", "waypoint", "read/web>cart"): False,
    ("sidecar", "sidecar", "read/cart>vault"): False,
    ("ambient", "ztunnel", "lost/cart>vault"): True,
    ("none", "neighbour", "read/cart>vault"): True,
    ("none", "neighbour", "read/web>cart"): False,
    ("none", "neighbour", "tamper/web>catalog"): True,
    ("sidecar", "neighbour", "replay/web>catalog"): False,
    ("node-l7", "neighbour", "spoof/client>catalog"): True,
    ("ambient", "neighbour", "spoof/client>catalog"): False,
    ("none", "app", "spoof/client>catalog"): False,
    ("sidecar", "app", "admin-own"): True,
    ("ambient", "app", "admin-own"): False,
    ("ambient", "app", "udp/catalog"): True,
    ("ambient", "app", "mark"): False,
    ("ambient", "ztunnel", "mark"): True,
    ("ambient", "app", "agent"): False,
    ("ambient", "ztunnel", "agent"): True,
    ("sidecar", "app", "open-ports"): True,
    ("ambient", "app", "open-ports"): False,
}


@pytest.mark.parametrize(("plane", "role", "attempt"), list(REACHED))
def test_each_kind_of_attempt_by_hand(plane: str, role: str, attempt: str) -> None:
    """One row of each kind where it makes a difference who stands where."""
    assert expected(*component(plane, role), attempt).got is REACHED[plane, role, attempt]


@pytest.mark.parametrize("plane", ["none", "sidecar", "ambient-l4", "ambient", "node-l7"])
@pytest.mark.parametrize(
    "never",
    ["keys-others", "keys-uncovered", "memory-others", "environment", "sockets-others", "admin-keys", "admin-others",
     "certificate/own", "forged/web>cart", "stranger/web>cart", "authority/web>vault", "become/uid", "ipv6"],
)  # fmt: skip
def test_some_things_nobody_may_get(plane: str, never: str) -> None:
    """From no component of any plane."""
    made = world(plane)

    assert not any(expected(made, one, never).got for one in components(made, app="web", neighbour="node-m"))


@pytest.mark.parametrize("plane", ["none", "sidecar", "ambient-l4", "ambient", "node-l7"])
def test_names_of_attempts_are_unique_and_every_component_tries_to_reach_every_workload(plane: str) -> None:
    """A row that overwrites another would be an attempt that nobody counts."""
    made = world(plane)
    for one in components(made, app="web", neighbour="node-m"):
        tried = [a.name for a in attempts(made, one, Place(state="/s", own="/s/own", agents=("/s/z/ztunnel.sock",)))]
        reached = {name.rpartition("/")[2] for name in tried if name.startswith("reach/")}

        assert len(set(tried)) == len(tried)
        assert reached == {w.name for w in TOPOLOGY.workloads if w.app.ports} - {one.sandbox}


def test_every_role_of_the_plane_is_a_component() -> None:
    """And an application, and who lies on the wire."""
    roles = [c.role for c in components(world("ambient"), app="web", neighbour="node-m")]

    assert roles == ["app", "ztunnel", "waypoint", "neighbour"]
