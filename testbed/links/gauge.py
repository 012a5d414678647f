"""What links really do: RTT and loss by probes from node a to the link's far end, all links at once.

ICMP echoes answered by the far node's kernel; replies are stamped by the near node's kernel, so this process's own
wake-ups do not count. Probes are spaced by a low-discrepancy sequence: a period that divides the delay would make
every send meet a delivery, which costs 30 us. Nothing is read while probes are out.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from testbed.links.delayline import Shape, stationary_loss
from testbed.links.devices import in_netns
from testbed.links.ends import open_nodes
from testbed.model.experiment import LinkReading
from testbed.model.topology import Impairment, Link
from testbed.seams import LiveLink, RunningLab

PROBES = 200
PROBES_PER_S = 2500
"""In total, over all links: 5,000 frames a second are what a wire process forwards with half a core."""
LEAST_SPACING_S = 0.0045
GOLDEN = 0.6180339887
PROBE_BYTES = 98
"""Ethernet, IPv4 and ICMP headers and 56 bytes, as ping's."""
ICMP_ECHO, ICMP_ECHO_REPLY = 8, 0
SO_TIMESTAMPNS, SO_RCVBUFFORCE = 35, 33
TOLERANCE_MS, TOLERANCE_SHARE = 0.3, 0.05
LOSS_SIGMAS = 4.0
GRACE_S = 0.25
_STAMP = struct.Struct("qq")


@dataclass(slots=True)
class Probed:
    """Raw results of one link: RTT in ns of each answered probe, in order of arrival."""

    sent: int = 0
    rtts_ns: list[int] = field(default_factory=list)


def measure(lab: RunningLab, live: Sequence[LiveLink], *, probes: int = PROBES) -> list[LinkReading]:
    """Probes all links at once; about a second for up to a dozen links, longer for more."""
    probed = probe(lab, [one.link for one in live], probes=probes)
    return [judge(one.link, its, backend=one.backend) for one, its in zip(live, probed, strict=True)]


def judge(link: Link, probed: Probed, *, backend: str = "") -> LinkReading:
    """Asked beside measured. Tolerance: 0.3 ms or 5 % (and the jitter) in the median, four sigma in loss."""
    asked_rtt_ms, tolerance_ms = asked(link)
    ordered = sorted(probed.rtts_ns)
    p50_ms, p90_ms = percentile(ordered, 0.5) / 1e6, percentile(ordered, 0.9) / 1e6
    kept = [1.0 - stationary_loss(Shape.of(direction)) for direction in (link.a_to_b, link.b_to_a)]
    asked_loss = 1.0 - kept[0] * kept[1]
    missing = probed.sent - len(ordered)
    # Without an answer only the loss can be judged, and only where loss was asked for.
    within_delay = abs(p50_ms - asked_rtt_ms) <= tolerance_ms if ordered else asked_loss > 0
    slack = LOSS_SIGMAS * math.sqrt(probed.sent * asked_loss * (1 - asked_loss) * clumping(link)) + 1
    within_loss = abs(missing - probed.sent * asked_loss) <= slack
    return LinkReading(
        link=link.name,
        asked_rtt_ms=asked_rtt_ms,
        rtt_p50_ms=p50_ms,
        rtt_p90_ms=p90_ms,
        asked_loss=asked_loss,
        loss=missing / probed.sent if probed.sent else 0.0,
        probes=probed.sent,
        within_tolerance=within_delay and within_loss,
        backend=backend,
    )


def asked(link: Link) -> tuple[float, float]:
    """RTT of a probe as asked, and how far off its median may be; ms."""
    rtt_ms = link.rtt_ms + sum(_serialised_ms(direction) for direction in (link.a_to_b, link.b_to_a))
    jitter_ms = link.a_to_b.jitter_ms + link.b_to_a.jitter_ms
    return rtt_ms, max(TOLERANCE_MS, TOLERANCE_SHARE * rtt_ms) + jitter_ms


def percentile(ordered: Sequence[int], share: float) -> float:
    """Nearest rank; NaN of nothing."""
    if not ordered:
        return math.nan
    return float(ordered[max(0, math.ceil(share * len(ordered)) - 1)])


def probe(lab: RunningLab, links: Sequence[Link], *, probes: int = PROBES) -> list[Probed]:
    results = [Probed() for _ in links]
    if not links:
        return results
    spacing_s = max(LEAST_SPACING_S, len(links) / PROBES_PER_S)
    with contextlib.ExitStack() as stack:
        sockets = []
        with open_nodes(lab, links) as nodes:
            for link in links:
                sock = in_netns(nodes[link.a], lambda address=link.b_address: open_prober(address))
                sockets.append(stack.enter_context(sock))
        marks = [(os.getpid() + index) & 0xFFFF for index in range(len(links))]
        sent_ns: list[dict[int, int]] = [{} for _ in links]
        start_s = time.monotonic()
        for number in range(probes):
            for index, sock in enumerate(sockets):
                at_s = start_s + (number + index / len(sockets) + 0.5 * (number * GOLDEN % 1.0)) * spacing_s
                time.sleep(max(0.0, at_s - time.monotonic()))
                packet = echo(marks[index], number)
                sent_ns[index][number] = time.time_ns()
                with contextlib.suppress(OSError):  # a dead link: unreachable; counts as lost
                    sock.send(packet)
        slowest_ms = max(k.rtt_ms + 3 * (k.a_to_b.jitter_ms + k.b_to_a.jitter_ms) + _queues_ms(k) for k in links)
        time.sleep(slowest_ms / 1000 + GRACE_S)
        for result, sock, mark, sent in zip(results, sockets, marks, sent_ns, strict=True):
            result.sent = probes
            result.rtts_ns = list(replies(sock, mark, sent).values())
    return results


def open_prober(address: str) -> socket.socket:
    """A socket for echoes to an address, made where the calling thread is; the kernel stamps what comes back."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 4 << 20)
    with contextlib.suppress(OSError):  # the link is gone: each send will fail, all count as lost
        sock.connect((address, 0))
    sock.setblocking(False)
    return sock


def echo(mark: int, number: int) -> bytes:
    """An echo request; raw sockets of several processes see all replies, so `mark` says whose it is."""
    body = struct.pack("!BBHHH", ICMP_ECHO, 0, 0, mark, number) + bytes(56)
    total = sum(struct.unpack(f"!{len(body) // 2}H", body))
    total = (total & 0xFFFF) + (total >> 16)
    return body[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + body[4:]


def replies(sock: socket.socket, mark: int, sent_ns: dict[int, int]) -> dict[int, int]:
    """RTT in ns by the probe's number, in order of arrival; what is found is taken out of `sent_ns`."""
    rtts_ns: dict[int, int] = {}
    while True:
        try:
            packet, ancillary, _, _ = sock.recvmsg(2048, 64)
        except OSError:
            return rtts_ns
        kind, _, _, its_mark, number = struct.unpack_from("!BBHHH", packet, (packet[0] & 15) * 4)
        if kind == ICMP_ECHO_REPLY and its_mark == mark and number in sent_ns and ancillary:
            seconds, nanoseconds = _STAMP.unpack(ancillary[0][2])
            rtts_ns[number] = seconds * 1_000_000_000 + nanoseconds - sent_ns.pop(number)


def _serialised_ms(direction: Impairment) -> float:
    return PROBE_BYTES * 8 / (direction.rate_mbit * 1000) if direction.rate_mbit else 0.0


def _queues_ms(link: Link) -> float:
    return sum(direction.queue_ms for direction in (link.a_to_b, link.b_to_a) if direction.rate_mbit)


def clumping(link: Link) -> float:
    """How much wider than binomial bursty loss spreads: (1 + rho) / (1 - rho), rho the chain's memory of one packet."""
    chains = [d.gilbert_elliott for d in (link.a_to_b, link.b_to_a) if d.gilbert_elliott]
    rho = max((max(0.0, 1 - c.p - c.r) for c in chains), default=0.0)
    return (1 + rho) / (1 - rho) if rho < 1 else float("inf")
