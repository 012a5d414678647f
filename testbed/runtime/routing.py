"""Which way packets go between nodes: shortest path by delay over the declared links. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Mapping

from testbed.model.topology import Link, Topology
from testbed.seams import end_name

HOP_MS = 0.001
"""Added per link, so that of two ways without delay the one with fewer links is taken."""


def routes(topology: Topology) -> dict[str, list[tuple[str, str, str]]]:
    """node -> [(destination network, via link address, device)] for every other node that links reach."""
    neighbours: Mapping[str, list[tuple[str, float, Link]]] = {node.name: [] for node in topology.nodes}
    for link in topology.links:
        neighbours[link.a].append((link.b, link.a_to_b.delay_ms + HOP_MS, link))
        neighbours[link.b].append((link.a, link.b_to_a.delay_ms + HOP_MS, link))
    return {node.name: _from(node.name, topology, neighbours) for node in topology.nodes}


def paths(topology: Topology) -> dict[tuple[str, str], tuple[str, ...]]:
    """(node, node) -> nodes that packets from the one to the other pass, both ends included; as `routes` has it."""
    devices = {(node, end_name(k, node)): (k.b if node == k.a else k.a) for k in topology.links for node in (k.a, k.b)}
    networks = {node.network: node.name for node in topology.nodes}
    following = {
        (node, networks[network]): devices[node, device]
        for node, rows in routes(topology).items()
        for network, _, device in rows
    }
    found = {}
    for start, end in following:
        way = [start]
        while way[-1] != end:
            way.append(following[way[-1], end])
        found[start, end] = tuple(way)
    return found


def _from(
    start: str, topology: Topology, neighbours: Mapping[str, list[tuple[str, float, Link]]]
) -> list[tuple[str, str, str]]:
    first: dict[str, Link | None] = {}
    queue: list[tuple[float, int, str, Link | None]] = [(0.0, 0, start, None)]
    pushed = 0  # breaks ties by order of declaration, so that the answer is the same every time
    while queue:
        cost, _, name, link = heapq.heappop(queue)
        if name in first:
            continue
        first[name] = link
        for peer, step, out in neighbours[name]:
            if peer not in first:
                pushed += 1
                heapq.heappush(queue, (cost + step, pushed, peer, link or out))
    answer = []
    for node in topology.nodes:
        if (link := first.get(node.name)) is not None:
            via = link.b_address if link.a == start else link.a_address
            answer.append((node.network, via, end_name(link, start)))
    return answer
