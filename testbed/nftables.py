"""What is captured and what services are, as nf_tables rules; `apply` puts them into a namespace.

The rules are Istio's: the in-pod ones of ztunnel (`in_pod_capture`), the sidecar's (`sidecar_capture`), from Istio's
iptables golden files; and a stand-in for kube-proxy (`service_dnat`). Every table is ours by its name and is replaced
as a whole, so applying twice leaves one copy. Building is pure; the bytes are in `nftmessages`, the kernel in
`nftcommit`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from testbed import nftmessages as nft
from testbed.model.topology import Service, Topology
from testbed.nftcommit import apply
from testbed.nftmessages import Batch

__all__ = [
    "CAPTURE_TABLE", "SERVICE_TABLE", "Batch", "VirtualPort", "apply", "in_pod_capture", "no_mark_routes",
    "node_capture", "removal",
    "service_dnat", "sidecar_capture", "virtual_ports",
]  # fmt: skip

MARK = 0x539
"""On every socket of ztunnel, and of a sidecar that has no user id of its own."""
CONNECTION_MARK = 0x111
OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT = 15001, 15006, 15008
PASSTHROUGH_SOURCE = "127.0.0.6"
"""Source of a sidecar's inbound connections to its own application."""
CAPTURE_TABLE, SERVICE_TABLE = "meshbed_capture", "meshbed_services"


def in_pod_capture(outbound_port: int = OUTBOUND_PORT, inbound_port: int = INBOUND_PORT) -> Batch:
    """Ztunnel's in-pod rules for one workload's namespace, with the route that returns replies to spoofed source
    addresses.

    A packet of ztunnel's (mark 0x539) marks its connection 0x111; the application's replies get that mark back and
    are routed to this host by table 100, wherever their destination address lives.
    """
    t = nft.Table(CAPTURE_TABLE)
    t.chain("prerouting_mangle", "filter", nft.PREROUTING, -150)
    t.rule("remember ztunnel's connections", nft.marked(MARK), nft.set_connection_mark(CONNECTION_MARK))
    t.chain("output_mangle", "route", nft.OUTPUT, -150)
    t.rule("restore the mark for replies", nft.connection_marked(CONNECTION_MARK), nft.restore_mark())
    t.chain("prerouting_nat", "nat", nft.PREROUTING, -100)
    t.rule(
        "inbound to ztunnel",
        *(nft.tcp(), nft.destination("127.0.0.1", equal=False), nft.port(HBONE_PORT, equal=False)),
        *(nft.marked(MARK, equal=False), nft.redirect(inbound_port)),
    )
    t.chain("output_nat", "nat", nft.OUTPUT, -100)
    t.rule("replies stay", nft.marked(CONNECTION_MARK), nft.accept())
    elsewhere = nft.destination("127.0.0.1", equal=False)
    t.rule("the workload's own address stays", nft.out_by_loopback(), elsewhere, nft.accept())
    t.rule(
        "outbound to ztunnel",
        *(nft.tcp(), elsewhere, nft.marked(MARK, equal=False), nft.redirect(outbound_port)),
    )
    return Batch(tables=t.messages, routes=(nft.local_route(), nft.mark_rule(CONNECTION_MARK)))


def sidecar_capture(
    uid: int | None,
    *,
    excluded_inbound_ports: Sequence[int] = (15090, 15021, 15020),
    outbound_port: int = OUTBOUND_PORT,
    inbound_port: int = INBOUND_PORT,
) -> Batch:
    """Istio's sidecar rules for one workload's namespace; the proxy is known by its user id, not by a mark.

    None: where all programs share one id it is by its mark after all; the packets that these rules see are the same.
    """
    own, another = (
        (nft.marked(MARK), nft.marked(MARK, equal=False))
        if uid is None
        else (nft.owner(uid), nft.owner(uid, equal=False))
    )
    t = nft.Table(CAPTURE_TABLE)
    t.chain("prerouting_nat", "nat", nft.PREROUTING, -100)
    for port in (HBONE_PORT, *excluded_inbound_ports):
        t.rule(f"port {port} is left alone", nft.tcp(), nft.port(port), nft.accept())
    t.rule("inbound to the sidecar", nft.tcp(), nft.redirect(inbound_port))
    t.chain("output_nat", "nat", nft.OUTPUT, -100)
    lo = nft.out_by_loopback()
    t.rule("inbound passthrough", lo, nft.source(PASSTHROUGH_SOURCE), nft.accept())
    t.rule(
        "a call to itself through the sidecar",
        *(lo, nft.tcp(), nft.destination("127.0.0.1", equal=False), nft.port(HBONE_PORT, equal=False), own),
        nft.redirect(inbound_port),
    )
    t.rule("the application on loopback", lo, another, nft.accept())
    t.rule("the sidecar itself", own, nft.accept())
    t.rule("loopback stays", nft.destination("127.0.0.1"), nft.accept())
    t.rule("outbound to the sidecar", nft.tcp(), nft.redirect(outbound_port))
    return Batch(tables=t.messages)


def node_capture(sources: Sequence[str], proxy: str, *, outbound_port: int = OUTBOUND_PORT) -> Batch:
    """Rules for a node's namespace: what `sources` (addresses of its workloads) send by TCP goes to the proxy at
    `proxy`, an address of the node.

    Ahead of `service_dnat`, so that the proxy learns which service was called. A redirect would not do: a workload's
    veth has no address in its node.
    """
    t = nft.Table(CAPTURE_TABLE)
    t.chain("prerouting_nat", "nat", nft.PREROUTING, -110)
    for source in sources:
        t.rule(f"{source} to the node's proxy", nft.tcp(), nft.source(source), nft.dnat(proxy, outbound_port))
    return Batch(tables=t.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualPort:
    """A service's address and port with the endpoints that stand behind it."""

    address: str
    port: int
    endpoints: tuple[tuple[str, int], ...]


def virtual_ports(topology: Topology, services: Iterable[Service] | None = None) -> list[VirtualPort]:
    """Those of the given services, or of all."""
    addresses = {w.name: w.address for w in topology.workloads}
    return [
        VirtualPort(
            address=service.address,
            port=port.port,
            endpoints=tuple((addresses[name], port.target_port) for name in service.endpoints),
        )
        for service in (topology.services if services is None else services)
        for port in service.ports
    ]


def service_dnat(services: Iterable[VirtualPort]) -> Batch:
    """Kube-proxy's part in a node's namespace: each new TCP connection to a service goes to a random endpoint, all
    alike.

    A port without endpoints gets no rule: its address then has no route, and the connection fails.
    """
    t = nft.Table(SERVICE_TABLE)
    ports = [service for service in services if service.endpoints]
    for chain, hook in (("prerouting_nat", nft.PREROUTING), ("output_nat", nft.OUTPUT)):
        t.chain(chain, "nat", hook, -100)
        for service in ports:
            match = (nft.tcp(), nft.destination(service.address), nft.port(service.port))
            # As kube-proxy's: the i-th of those left takes 1/left, the last one all; so each has the same chance.
            for index, (address, port) in enumerate(service.endpoints):
                left = len(service.endpoints) - index
                chance = (nft.random_below(left), nft.equals(struct.pack("=I", 0))) if left > 1 else ()
                name = f"{service.address}:{service.port} to {address}:{port} ({chain})"
                t.rule(name, *match, *chance, nft.dnat(address, port))
    return Batch(tables=t.messages)


def removal(table: str) -> Batch:
    """Takes one of our tables away; no error when it is not there."""
    return Batch(tables=nft.Table(table).messages[:2])


def no_mark_routes() -> Batch:
    """Takes away the routes of `in_pod_capture`; no error where there are none."""
    return Batch(routes=(nft.withdrawn(nft.mark_rule(CONNECTION_MARK)), nft.withdrawn(nft.local_route())))
