"""One-way delays of live links, from the near node's device to the far node's, by the kernel's own stamps.

UDP datagrams from node a to node b. A datagram's departure is stamped where the near device takes it (`veth_xmit`),
its arrival where the far device hands it up; both by one kernel on one clock. Nobody's wake-up and no sender's
system call is in between, so what is left is the link. `Flight.called_ns` is when the program called `send`: what an
application sees adds its own way down the stack, 5-40 us, which a bare veth pair costs as well.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass

from testbed.links.devices import in_netns
from testbed.links.ends import open_nodes
from testbed.links.gauge import GOLDEN, GRACE_S
from testbed.model.topology import Link
from testbed.seams import RunningLab

PORT = 7199
SO_TIMESTAMPNS, SO_RCVBUFFORCE, SO_TIMESTAMPING = 35, 33, 37
IP_RECVERR, MSG_ERRQUEUE = 11, 0x2000
TX_SOFTWARE, SOFTWARE, OPT_ID, OPT_TSONLY = 1 << 1, 1 << 4, 1 << 7, 1 << 11
NS_PER_S = 1_000_000_000
_STAMP = struct.Struct("qq")
_NUMBER = struct.Struct("q")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flight:
    """One datagram, in ns of CLOCK_REALTIME; `arrived_ns` is None when it was lost."""

    called_ns: int
    left_ns: int
    arrived_ns: int | None


def fly(
    lab: RunningLab, links: Sequence[Link], *, count: int, spacing_s: float, payload_bytes: int = 22
) -> list[list[Flight]]:
    """Sends `count` datagrams over each link from a to b, the links in turn; each `spacing_s` after its link's last.

    Spaced by a low-discrepancy sequence, as a period that divides the delay makes each send meet a delivery.
    """
    with contextlib.ExitStack() as stack:
        near, far = [], []
        with open_nodes(lab, links) as nodes:
            for link in links:
                far.append(stack.enter_context(in_netns(nodes[link.b], lambda at=link.b_address: _receiver(at))))
                near.append(stack.enter_context(in_netns(nodes[link.a], lambda to=link.b_address: _sender(to))))
        called_ns: list[list[int]] = [[] for _ in links]
        left_ns: list[dict[int, int]] = [{} for _ in links]
        start_s = time.monotonic()
        for number in range(count):
            for index, sock in enumerate(near):
                at_s = start_s + (number + index / len(near) + 0.5 * (number * GOLDEN % 1.0)) * spacing_s
                while (ahead_s := at_s - time.monotonic()) > 0:
                    time.sleep(ahead_s)
                datagram = _NUMBER.pack(number) + bytes(payload_bytes - _NUMBER.size)
                called_ns[index].append(time.time_ns())
                sock.send(datagram)
                left_ns[index].update(_departures(sock))
        slowest_ms = max(k.a_to_b.delay_ms + 3 * k.a_to_b.jitter_ms + k.a_to_b.queue_ms for k in links)
        time.sleep(slowest_ms / 1000 + GRACE_S)
        flights = []
        for index, (sock, its_near) in enumerate(zip(far, near, strict=True)):
            left_ns[index].update(_departures(its_near))
            arrived_ns = _arrivals(sock)
            flights.append(
                [
                    Flight(called_ns=called, left_ns=left_ns[index][number], arrived_ns=arrived_ns.get(number))
                    for number, called in enumerate(called_ns[index])
                    if number in left_ns[index]
                ]
            )
        return flights


def burst(lab: RunningLab, link: Link, *, count: int, payload_bytes: int) -> list[int]:
    """Sends datagrams from a to b back to back; when each that arrived did, in order. For rates."""
    with open_nodes(lab, [link]) as nodes:
        far = in_netns(nodes[link.b], lambda: _receiver(link.b_address))
        near = in_netns(nodes[link.a], lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    with far, near:
        near.connect((link.b_address, PORT))
        for number in range(count):
            near.send(_NUMBER.pack(number) + bytes(payload_bytes - _NUMBER.size))
        time.sleep((link.a_to_b.delay_ms + link.a_to_b.queue_ms) / 1000 + GRACE_S)
        return sorted(_arrivals(far).values())


def errors_us(flights: Sequence[Flight], asked_ms: float) -> list[float]:
    """Achieved minus asked, sorted, of those that arrived."""
    return sorted(f.arrived_ns / 1e3 - f.left_ns / 1e3 - asked_ms * 1e3 for f in flights if f.arrived_ns is not None)


def _sender(to: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, TX_SOFTWARE | SOFTWARE | OPT_ID | OPT_TSONLY)
    sock.connect((to, PORT))
    return sock


def _receiver(at: str) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    sock.bind((at, PORT))
    sock.setblocking(False)
    return sock


def _departures(sock: socket.socket) -> dict[int, int]:
    """Number of the datagram → when it left, as far as the socket's error queue says."""
    left_ns = {}
    while True:
        try:
            _, ancillary, _, _ = sock.recvmsg(1, 256, MSG_ERRQUEUE | socket.MSG_DONTWAIT)
        except OSError:
            return left_ns
        stamps = {(level, kind): data for level, kind, data in ancillary}
        stamp, about = stamps.get((socket.SOL_SOCKET, SO_TIMESTAMPING)), stamps.get((socket.IPPROTO_IP, IP_RECVERR))
        if stamp and about:
            seconds, nanoseconds = _STAMP.unpack_from(stamp)
            number = struct.unpack_from("=IBBBBII", about)[6]  # sock_extended_err.ee_data
            left_ns[number] = seconds * NS_PER_S + nanoseconds


def _arrivals(sock: socket.socket) -> dict[int, int]:
    arrived_ns = {}
    while True:
        try:
            datagram, ancillary, _, _ = sock.recvmsg(2048, 64)
        except OSError:
            return arrived_ns
        seconds, nanoseconds = _STAMP.unpack(ancillary[0][2])
        arrived_ns[_NUMBER.unpack_from(datagram)[0]] = seconds * NS_PER_S + nanoseconds
