"""Families: the promised shape for each number, and address plans without a clash."""

from __future__ import annotations

import ipaddress

import pytest

from testbed.errors import UsageError
from testbed.model.topology import Topology
from topologies import families


@pytest.mark.parametrize(
    ("topology", "nodes", "links"),
    [
        (families.star(5), 5, 4),
        (families.line(5), 5, 4),
        (families.mesh(5), 5, 10),
        (families.hosts(1), 1, 0),
        (families.hosts(251), 2, 1),
        (families.hosts(1000), 4, 3),
    ],
    ids=lambda value: value.name if isinstance(value, Topology) else "",
)
def test_shape_and_addresses(topology: Topology, nodes: int, links: int) -> None:
    """As many nodes and links as the family says; every address once and in its node's network."""
    addresses = [w.address for w in topology.workloads] + [n.address for n in topology.nodes]
    addresses += [a for k in topology.links for a in (k.a_address, k.b_address)]

    assert (len(topology.nodes), len(topology.links)) == (nodes, links)
    assert len(set(addresses)) == len(addresses)
    for workload in topology.workloads:
        assert ipaddress.ip_address(workload.address) in ipaddress.ip_network(topology.node(workload.node).network)


def test_hosts_makes_exactly_as_many() -> None:
    """None is lost where a node is full."""
    assert [len(families.hosts(n).workloads) for n in (1, 250, 251, 500, 501)] == [1, 250, 251, 500, 501]


def test_the_client_of_a_line_is_as_far_from_the_server_as_can_be() -> None:
    """Their path crosses every link, each with the delay asked for."""
    topology = families.line(4, delay_ms=2.5)

    assert (topology.workload("client").node, topology.workload("server").node) == ("node-1", "node-4")
    assert [link.rtt_ms for link in topology.links] == [5.0, 5.0, 5.0]


@pytest.mark.parametrize("family", [families.star, families.line, families.mesh])
def test_too_small_a_family_is_a_usage_error(family) -> None:
    """One node has nobody to be joined to."""
    with pytest.raises(UsageError, match="at least 2"):
        family(1)
