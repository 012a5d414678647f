"""The link maker `netem`: the kernel's own qdisc at both ends of a veth pair, by plain rtnetlink messages.

Layouts: linux/pkt_sched.h (tc_netem_qopt, TCA_NETEM_*), net/sched/sch_netem.c of Linux 6.1. What surprises:

- `netem_change` keeps the old rate where a message has none, so the rate is always sent.
- Jitter reorders, unless a rate is set: then a packet leaves no earlier than the one before. Links keep order, so an
  unlimited link with jitter gets a rate that no veth reaches.
- Without a table jitter is uniform. The normal table is sent here, clamped at three sigma.
- The queue is counted in packets, not in time: the depth of a limited line is right for full frames only.
- Its super-frames are lost and delayed whole, so segmentation offload is switched off where the wire does it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import math
import os
import socket
import struct
from collections.abc import Sequence
from functools import cache
from statistics import NormalDist

from testbed.errors import MachineError
from testbed.links.delayline import JITTER_CLAMP_SIGMAS, Shape
from testbed.links.devices import (
    NLM_CREATE,
    NLM_REPLACE,
    attribute,
    in_netns,
    index_of,
    make_pairs,
    message,
    netlink_socket,
    set_offload,
    transact,
)
from testbed.links.ends import configure_ends, end, make_direct, may_offload, open_nodes
from testbed.links.scratch import open_new_netns
from testbed.model.topology import Impairment, Link
from testbed.seams import LiveLink, RunningLab, end_name

RTM_NEWQDISC, RTM_DELQDISC = 36, 37
TC_H_ROOT, HANDLE = 0xFFFFFFFF, 0x0001_0000
TCA_KIND, TCA_OPTIONS = 1, 2
DELAY_DIST, LOSS, RATE, RATE64, LATENCY64, JITTER64 = 2, 5, 6, 8, 10, 11
LOSS_GILBERT_ELLIOTT = 2
NESTED = 0x8000
"""tc sets it; kernels up to now do not insist."""
U32_MOST = 0xFFFFFFFF
TICK_SHIFT = 6
"""The 32-bit times of tc_netem_qopt count 64 ns; the 64-bit attributes overrule them since Linux 4.15."""
DIST_SCALE, DIST_ENTRIES = 8192, 4096
FULL_FRAME_BYTES = 1514
LIMIT_PACKETS = 100_000
"""The default of 1000 drops at 1000 packets of bandwidth times delay: 2.4 Gbit/s at 5 ms."""
ORDERING_RATE_BPS = 1_000_000_000_000


def probability(share: float) -> int:
    return round(share * U32_MOST)


@cache
def normal_table() -> bytes:
    """The inverse of the normal distribution, as netem draws from it."""
    normal = NormalDist()
    deviates = (normal.inv_cdf((n + 0.5) / DIST_ENTRIES) for n in range(DIST_ENTRIES))
    clamped = (max(-JITTER_CLAMP_SIGMAS, min(JITTER_CLAMP_SIGMAS, z)) for z in deviates)
    return struct.pack(f"={DIST_ENTRIES}h", *(round(z * DIST_SCALE) for z in clamped))


def limit_packets(shape: Shape) -> int:
    """netem counts packets under way and packets waiting in one limit."""
    if not shape.rate_bps:
        return LIMIT_PACKETS
    held_ns = shape.delay_ns + JITTER_CLAMP_SIGMAS * shape.jitter_ns + shape.queue_ns
    return min(LIMIT_PACKETS, max(1, math.ceil(held_ns * shape.rate_bps / (FULL_FRAME_BYTES * 8 * 1e9))))


def options(shape: Shape) -> bytes:
    """The body of TCA_OPTIONS: tc_netem_qopt, then attributes."""
    body = struct.pack(
        "=IIIIII",
        min(U32_MOST, shape.delay_ns >> TICK_SHIFT),
        limit_packets(shape),
        0 if shape.gilbert_elliott else probability(shape.loss),
        0,  # gap
        0,  # duplicate
        min(U32_MOST, shape.jitter_ns >> TICK_SHIFT),
    )
    body += attribute(LATENCY64, struct.pack("=q", shape.delay_ns)) + attribute(
        JITTER64, struct.pack("=q", shape.jitter_ns)
    )
    rate_bps = shape.rate_bps or (ORDERING_RATE_BPS if shape.jitter_ns else 0)
    bytes_per_s = rate_bps // 8
    body += attribute(RATE, struct.pack("=IiIi", min(U32_MOST, bytes_per_s), 0, 0, 0))
    if bytes_per_s > U32_MOST:
        body += attribute(RATE64, struct.pack("=Q", bytes_per_s))
    if shape.gilbert_elliott:
        p, r, loss_bad, loss_good = shape.gilbert_elliott
        # tc_netem_gemodel {p, r, h, k1}: h is the chance to pass in bad, k1 the chance to be lost in good
        chain = struct.pack("=IIII", *(probability(share) for share in (p, r, 1 - loss_bad, loss_good)))
        body += attribute(LOSS | NESTED, attribute(LOSS_GILBERT_ELLIOTT, chain))
    if shape.jitter_ns:
        body += attribute(DELAY_DIST, normal_table())
    return body


def _tcmsg(index: int, handle: int) -> bytes:
    return struct.pack("=BxHiIII", socket.AF_UNSPEC, 0, index, handle, TC_H_ROOT, 0)


def replace_qdisc(index: int, shape: Shape) -> bytes:
    """Makes or changes (in place, keeping what is queued) the root qdisc of a device."""
    body = _tcmsg(index, HANDLE) + attribute(TCA_KIND, b"netem\0") + attribute(TCA_OPTIONS, options(shape))
    return message(RTM_NEWQDISC, body, NLM_CREATE | NLM_REPLACE)


def delete_qdisc(index: int) -> bytes:
    return message(RTM_DELQDISC, _tcmsg(index, HANDLE), 0)


def shape_device(netns: int, name: str, old: Impairment, new: Impairment, where: str) -> None:
    """Raises MachineError, naming the link, where the kernel has no netem."""
    if old.is_plain and new.is_plain:
        return

    def work() -> None:
        index = socket.if_nametoindex(name)
        what = delete_qdisc(index) if new.is_plain else replace_qdisc(index, Shape.of(new))
        with contextlib.closing(netlink_socket()) as sock:
            transact(sock, [what], where)

    try:
        in_netns(netns, work)
    except MachineError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.ENOENT:
            raise MachineError(f"{where}: netem is not in this kernel; use link='wire' or load sch_netem") from error
        raise


class NetemLink:
    """A live link whose two ends carry a qdisc each while impaired."""

    backend = "netem"

    def __init__(self, lab: RunningLab, link: Link) -> None:
        self._lab = lab
        self.link = link

    def __repr__(self) -> str:
        return f"<NetemLink {self.link.name}>"

    def set(self, *, a_to_b: Impairment | None = None, b_to_a: Impairment | None = None) -> None:
        old = self.link
        new = dataclasses.replace(old, a_to_b=a_to_b or old.a_to_b, b_to_a=b_to_a or old.b_to_a)
        with open_nodes(self._lab, [new]) as nodes:
            for node, before, after in ((new.a, old.a_to_b, new.a_to_b), (new.b, old.b_to_a, new.b_to_a)):
                name = end_name(new, node)
                if may_offload(before) != may_offload(after):
                    set_offload(nodes[node], name, may_offload(after))
                shape_device(nodes[node], name, before, after, f"link {new.name}")
        self.link = new

    def alive(self) -> bool:
        with open_nodes(self._lab, [self.link]) as nodes:
            return all(index_of(nodes[node], end_name(self.link, node)) for node in (self.link.a, self.link.b))


class NetemLinks:
    """The `netem` link maker."""

    name = "netem"

    def check(self) -> list[str]:
        """What this machine lacks for it: tried on a scratch device."""
        link = Link(a="a", b="b", a_address="172.16.0.0", b_address="172.16.0.1")
        try:
            netns = open_new_netns()
        except MachineError as error:
            return [str(error)]
        try:
            make_pairs([(end(netns, link, "a"), end(netns, link, "b"))])
            shape_device(netns, "to-a", Impairment(), Impairment(delay_ms=1, loss=0.1), "probe for netem")
        except MachineError as error:
            return [str(error)]
        finally:
            os.close(netns)
        return []

    def join(self, lab: RunningLab, links: Sequence[Link]) -> list[LiveLink]:
        plain = Impairment()
        with open_nodes(lab, links) as nodes:
            make_direct(nodes, links)
            configure_ends(nodes, links)
            for link in links:
                for node, asked in ((link.a, link.a_to_b), (link.b, link.b_to_a)):
                    shape_device(nodes[node], end_name(link, node), plain, asked, f"link {link.name}")
        return [NetemLink(lab, link) for link in links]

    def attach(self, lab: RunningLab, links: Sequence[Link]) -> list[LiveLink]:
        """The live links of a lab that another process joined; `links` as they were declared or last set."""
        return [NetemLink(lab, link) for link in links]
