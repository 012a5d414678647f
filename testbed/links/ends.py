"""What both link makers share: a lab's link as two ends in two nodes, made directly or through a middle."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from testbed.links.devices import End, Port, configure, delete, index_of, mac_of, make_pairs, settle
from testbed.model.topology import Impairment, Link
from testbed.seams import RunningLab, end_name

if TYPE_CHECKING:
    from testbed.seams import LiveLink

OFFLOAD_FROM_MBIT = 1000.0


@contextmanager
def open_nodes(lab: RunningLab, links: Iterable[Link]) -> Iterator[dict[str, int]]:
    """Descriptors of the namespaces of all nodes that the links touch, closed at the end."""
    opened: dict[str, int] = {}
    try:
        for node in sorted({node for link in links for node in (link.a, link.b)}):
            opened[node] = lab.open_netns(node)
        yield opened
    finally:
        for fd in opened.values():
            os.close(fd)


def end(netns: int, link: Link, node: str, index: int = 0) -> End:
    address = link.a_address if node == link.a else link.b_address
    return End(netns=netns, name=end_name(link, node), mac=mac_of(address), index=index)


def may_offload(impairment: Impairment) -> bool:
    """Whether the end that sends in this direction may pass super-frames: losing one would lose 45 frames at once."""
    loses = impairment.loss or impairment.gilbert_elliott
    return not (loses or 0 < impairment.rate_mbit < OFFLOAD_FROM_MBIT)


def make_direct(nodes: dict[str, int], links: Sequence[Link]) -> None:
    if links:
        make_pairs([(end(nodes[k.a], k, k.a), end(nodes[k.b], k, k.b)) for k in links])


def configure_ends(nodes: dict[str, int], links: Sequence[Link]) -> None:
    ports: dict[str, list[Port]] = defaultdict(list)
    for link in links:
        for node, mine, theirs, sends in (
            (link.a, link.a_address, link.b_address, link.a_to_b),
            (link.b, link.b_address, link.a_address, link.b_to_a),
        ):
            ports[node].append(
                Port(
                    name=end_name(link, node),
                    address=mine,
                    peer_address=theirs,
                    segmentation_offload=may_offload(sends),
                )
            )
    for node, its in ports.items():
        configure(nodes[node], its)
    for node, its in ports.items():
        settle(nodes[node], [port.name for port in its])


def remove_ends(nodes: dict[str, int], link: Link) -> None:
    """Removes what there is of a link in its nodes."""
    for node in (link.a, link.b):
        if index_of(nodes[node], end_name(link, node)):
            delete(nodes[node], end_name(link, node))


def dead_links(live: Sequence[LiveLink]) -> list[str]:
    """The names of the links that carry nothing any more; a trial over one of them is not valid."""
    return [one.link.name for one in live if not one.alive()]
