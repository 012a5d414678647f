"""Which netlink messages and sysctls make a topology's sandboxes: the plan of a lab, pure.

Every workload has one veth: `eth0` inside, `port_name(workload)` in its node. It is routed, not bridged, and both ends
know each other's hardware address for good, so that a lab has no ARP, no flooding, and no traffic that nobody sent.
"""

from __future__ import annotations

import ipaddress
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from testbed import netlink
from testbed.model.topology import Topology
from testbed.netlink import End, Message

NODE, WORKLOAD, PROXY = "node", "workload", "proxy"
FIRST_PORT = 10
"""Index of a node's first workload port; `eth0` is 2 in every workload, lo is 1 everywhere."""
FIRST_LATE_PORT = 10_000
"""Of sandboxes that come into a lab that is up: far from what the kernel gave to the ends of links meanwhile."""

SYSCTLS = (
    ("ipv6/conf/all/disable_ipv6", "1"),  # no router solicitations or MLD in captures
    ("ipv6/conf/default/disable_ipv6", "1"),
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/rp_filter", "0"),  # redirected and transparent packets arrive from "wrong" sides
    ("ipv4/conf/default/rp_filter", "0"),  # `default` is what devices made later begin with
    ("ipv4/conf/lo/rp_filter", "0"),
    ("ipv4/conf/all/route_localnet", "1"),  # a redirect to 127.0.0.1 may come in from eth0
    ("ipv4/conf/default/route_localnet", "1"),
    ("ipv4/conf/all/accept_local", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/ip_unprivileged_port_start", "0"),  # port 80 without a capability
    ("ipv4/ip_nonlocal_bind", "1"),
)
IN_WORKLOADS = tuple(item for item in SYSCTLS if item[0] != "ipv4/ip_forward")


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """A sandbox to be; `index` is the position of its namespace in the keeper, `node` its own or its node's name."""

    name: str
    kind: str
    address: str
    node: str
    index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Messages for one namespace, sent in order."""

    namespace: int
    messages: tuple[Message, ...]


def port_name(workload: str) -> str:
    """The node's end of a workload's veth, at most 15 bytes; a long name keeps its head and gets a checksum for a
    tail.
    """
    name = f"w-{workload}"
    return name if len(name.encode()) <= 15 else f"w-{workload[:6]}-{zlib.crc32(workload.encode()) & 0xFFFFFF:06x}"


def hardware(kind: int, address: str) -> str:
    """A locally administered address that says whose end it is: kind 0 the workload's, 1 the node's."""
    return bytes([2, kind, *netlink.ipv4(address)]).hex(":")


def plan(topology: Topology, extra: Sequence[tuple[str, str, str]]) -> list[Planned]:
    """Nodes first, then workloads, then `extra` (name, node, address). Raises ValueError for a name used twice."""
    rows = [(node.name, NODE, node.address, node.name) for node in topology.nodes]
    rows += [(workload.name, WORKLOAD, workload.address, workload.node) for workload in topology.workloads]
    rows += [(name, PROXY, address, node) for name, node, address in extra]
    seen: set[str] = set()
    nodes = {node.name for node in topology.nodes}
    for name, _, _, node in rows:
        if name in seen:
            raise ValueError(f"two sandboxes are called {name!r}; give one of them another name")
        if node not in nodes:
            raise ValueError(
                f"sandbox {name!r} is on node {node!r}, which does not exist; nodes: {', '.join(sorted(nodes))}"
            )
        seen.add(name)
    return [Planned(name=n, kind=k, address=a, node=at, index=i) for i, (n, k, a, at) in enumerate(rows)]


def batches(sandboxes: Sequence[Planned], base: int) -> list[Batch]:
    """All pairs first (one batch), then each namespace's own messages. Namespace `i` is descriptor `base + i`."""
    nodes = {s.name: s for s in sandboxes if s.kind == NODE}
    inside: dict[int, list[Message]] = {}
    for node in nodes.values():
        inside[node.index] = [netlink.link_up(1), netlink.address(1, node.address, 32)]
    guests = enumerate((s for s in sandboxes if s.kind != NODE), FIRST_PORT)
    return _with_guests(list(guests), nodes, inside, base)


def late_batches(guests: Sequence[Planned], sandboxes: Sequence[Planned], base: int) -> list[Batch]:
    """As `batches`, of guests that come to nodes which are there already."""
    nodes = {s.name: s for s in sandboxes if s.kind == NODE}
    numbered = [(FIRST_LATE_PORT + guest.index, guest) for guest in guests]
    return _with_guests(numbered, nodes, {nodes[guest.node].index: [] for guest in guests}, base)


def _with_guests(
    guests: Sequence[tuple[int, Planned]], nodes: Mapping[str, Planned], inside: dict[int, list[Message]], base: int
) -> list[Batch]:
    pairs: list[Message] = []
    for number, guest in guests:
        node = nodes[guest.node]
        ours, theirs = hardware(0, guest.address), hardware(1, guest.address)
        pairs.append(
            netlink.veth(
                End(name="eth0", index=2, mac=ours, namespace_fd=base + guest.index),
                End(name=port_name(guest.name), index=number, mac=theirs, namespace_fd=base + node.index),
            )
        )
        inside[node.index] += [
            netlink.link_up(number),
            netlink.route(guest.address, 32, index=number, source=node.address),
            netlink.neighbour(number, guest.address, ours),
        ]
        inside[guest.index] = [
            netlink.link_up(1),
            netlink.address(2, guest.address, 32),
            netlink.link_up(2),
            netlink.route(node.address, 32, index=2, source=guest.address),
            netlink.neighbour(2, node.address, theirs),
            netlink.route("0.0.0.0", 0, index=2, via=node.address, source=guest.address, onlink=True),
        ]
    first = [Batch(namespace=0, messages=tuple(pairs))] if pairs else []
    return first + [Batch(namespace=index, messages=tuple(messages)) for index, messages in inside.items()]


def rearranged(sandboxes: Sequence[Planned], extra: Sequence[tuple[str, str, str]]) -> tuple[list[Planned], ...]:
    """(those that stay, those that go, those that come) where the guests of kind PROXY are to be `extra`.

    Who comes gets numbers in a row, above all that stay, for the keeper makes namespaces in a row.
    Raises ValueError as `plan`.
    """
    wanted = {(name, address, node) for name, node, address in extra}
    gone = [s for s in sandboxes if s.kind == PROXY and (s.name, s.address, s.node) not in wanted]
    stay = [s for s in sandboxes if s not in gone]
    nodes = {s.name for s in stay if s.kind == NODE}
    came: list[Planned] = []
    free = max(s.index for s in stay) + 1
    for name, node, address in extra:
        if any((s.name, s.address, s.node, s.kind) == (name, address, node, PROXY) for s in stay):
            continue
        if name in {s.name for s in (*stay, *came)}:
            raise ValueError(f"two sandboxes are called {name!r}; give one of them another name")
        if node not in nodes:
            raise ValueError(
                f"sandbox {name!r} is on node {node!r}, which does not exist; nodes: {', '.join(sorted(nodes))}"
            )
        came.append(Planned(name=name, kind=PROXY, address=address, node=node, index=free + len(came)))
    return stay, gone, came


def sysctls(sandboxes: Sequence[Planned]) -> list[list[tuple[str, bytes]]]:
    """(path, value) of each namespace, in the order of its index."""
    by_kind = {
        forwards: [(f"/proc/sys/net/{key}", value.encode()) for key, value in (SYSCTLS if forwards else IN_WORKLOADS)]
        for forwards in (True, False)
    }
    return [by_kind[sandbox.kind == NODE] for sandbox in sandboxes]


def route_batches(
    ways: Mapping[str, Sequence[tuple[str, str, str]]],
    sandboxes: Sequence[Planned],
    indexes: Mapping[str, Mapping[str, int]],
) -> list[Batch]:
    """`routing.routes` as messages; `indexes` says node -> device -> index.

    An `extra` outside its node's network gets a /32.
    """
    nodes = {s.name: s for s in sandboxes if s.kind == NODE}
    strays: dict[str, list[tuple[str, str]]] = {}
    for network in {network for rows in ways.values() for network, _, _ in rows}:
        inside = ipaddress.ip_network(network)
        home = next((n.name for n in nodes.values() if ipaddress.ip_address(n.address) in inside), None)
        strays[network] = [
            (s.address, "32")
            for s in sandboxes
            if s.node == home and s.kind != NODE and ipaddress.ip_address(s.address) not in inside
        ]
    result = []
    for name, node in nodes.items():
        messages = []
        for network, via, device in ways.get(name, ()):
            for destination, prefix in [network.split("/"), *strays[network]]:
                messages.append(
                    netlink.route(
                        destination, int(prefix), index=indexes[name][device], via=via, source=node.address, onlink=True
                    )
                )
        if messages:
            result.append(Batch(namespace=node.index, messages=tuple(messages)))
    return result
