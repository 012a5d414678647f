"""Ways between nodes, by delay."""

from __future__ import annotations

from testbed.model.topology import Impairment, Link, Topology
from testbed.runtime.routing import routes
from tests.labs import line


def test_far_node_is_reached_over_the_neighbour() -> None:
    """In a row of three, the first sends to both others by its one link."""
    assert routes(line(3, 0))["n1"] == [("10.0.2.0/24", "172.16.0.1", "to-n2"), ("10.0.3.0/24", "172.16.0.1", "to-n2")]


def test_detour_is_taken_when_it_is_quicker_and_only_in_that_direction() -> None:
    """A direct link that is slow one way only is avoided that way only."""
    row = line(3, 0)
    slow = Link(a="n1", b="n3", a_address="172.16.0.4", b_address="172.16.0.5", a_to_b=Impairment(delay_ms=50))
    ways = routes(Topology(name="t", nodes=row.nodes, workloads=(), services=(), links=(*row.links, slow)))

    assert ("10.0.3.0/24", "172.16.0.1", "to-n2") in ways["n1"]
    assert ("10.0.1.0/24", "172.16.0.4", "to-n1") in ways["n3"]


def test_unlinked_nodes_have_no_routes() -> None:
    """Nothing is routed that no link carries."""
    row = line(2, 0)

    assert routes(Topology(name="t", nodes=row.nodes, workloads=(), services=(), links=())) == {"n1": [], "n2": []}
