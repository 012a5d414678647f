"""The devices of links: veth pairs born in their namespaces, addressed, up, removed and made again.

The messages are `testbed.netlink`'s; here is what links do with them. Ends have addresses of hardware
that follow from their IP address, so the far end's neighbour entry needs no look-up.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from testbed import netlink
from testbed.acks import acknowledgements
from testbed.errors import MachineError
from testbed.netlink import attribute as attribute  # the encoders of qdiscs take it from here

T = TypeVar("T")
libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNET = 0x40000000
RTM_NEWROUTE, RTM_GETROUTE = netlink.RTM_NEWROUTE, 26
NLM_REQUEST, NLM_DUMP, NLM_REPLACE, NLM_CREATE = netlink.REQUEST, 0x300, netlink.REPLACE, netlink.CREATE
NLMSG_ERROR, NLMSG_DONE = 2, 3
RTA_OIF, RTPROT_KERNEL = 4, 2
RTM_GETLINK, IFLA_OPERSTATE, OPERSTATE_UP = 18, 16, 6
SETTLE_S = 1.0
SIOCETHTOOL, ETHTOOL_STSO, ETHTOOL_SGSO = 0x8946, 0x1F, 0x24
MESSAGES_A_SEND = 32
"""Acknowledgements of a longer batch may overrun the socket's buffer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One end of a veth pair. `index` 0 lets the kernel choose."""

    netns: int
    """Descriptor of the namespace it is born in."""
    name: str
    mac: bytes
    index: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Port:
    """What to make of an end inside a node: its addresses and how it sends."""

    name: str
    address: str
    peer_address: str
    segmentation_offload: bool
    """False makes the kernel cut TCP super-frames before the link, so that one loss is one frame."""


def mac_of(address: str) -> bytes:
    """A locally administered unicast hardware address that holds the IPv4 address."""
    return b"\x02\x6d" + socket.inet_aton(address)


# ---- messages


def message(kind: int, body: bytes, flags: int = netlink.CREATE | netlink.EXCL) -> bytes:
    return netlink.encode(netlink.Message(kind, flags, body, ""), 0)


def _end(end: End) -> netlink.End:
    return netlink.End(name=end.name, index=end.index, mac=end.mac.hex(), namespace_fd=end.netns)


def new_pair(a: End, b: End) -> bytes:
    return netlink.encode(netlink.veth(_end(a), _end(b)), 0)


def up(index: int) -> bytes:
    return netlink.encode(netlink.link_up(index), 0)


def remove(index: int) -> bytes:
    return netlink.encode(netlink.link_delete(index), 0)


def new_address(index: int, address: str) -> bytes:
    return netlink.encode(netlink.address(index, address, 31), 0)


def new_neighbour(index: int, address: str) -> bytes:
    return netlink.encode(netlink.neighbour(index, address, mac_of(address).hex()), 0)


# ---- doing


def in_netns(netns: int, work: Callable[[], T]) -> T:
    """Runs `work` in a helper thread inside the namespace; descriptors it opens stay valid here."""
    result: list[T] = []
    failure: list[BaseException] = []

    def body() -> None:
        try:
            if libc.setns(netns, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), f"setns: {os.strerror(ctypes.get_errno())}")
            result.append(work())
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]


def netlink_socket() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    sock.settimeout(10.0)
    return sock


def transact(sock: socket.socket, messages: Sequence[bytes], what: str) -> None:
    """Sends all and waits for each acknowledgement. Raises MachineError with the kernel's first refusal."""
    refused = 0
    for start in range(0, len(messages), MESSAGES_A_SEND):
        batch = messages[start : start + MESSAGES_A_SEND]
        sock.send(b"".join(batch))
        left = len(batch)
        while left:
            for _, errno in acknowledgements(sock.recv(1 << 16)):
                left -= 1
                refused = refused or errno
    if refused:
        cause = OSError(refused, os.strerror(refused))
        raise MachineError(f"{what}: the kernel refused: {cause.strerror}") from cause


def _replies(data: bytes) -> list[tuple[int, bytes]]:
    replies, offset = [], 0
    while offset < len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        replies.append((kind, data[offset + 16 : offset + length]))
        offset += (length + 3) & ~3
    return replies


def make_pairs(pairs: Sequence[tuple[End, End]]) -> None:
    """Creates all pairs, each end in place, down."""
    with contextlib.closing(in_netns(pairs[0][0].netns, netlink_socket)) as sock:
        names = f"{pairs[0][0].name}…" if len(pairs) > 1 else pairs[0][0].name
        transact(sock, [new_pair(a, b) for a, b in pairs], f"veth pairs ({len(pairs)}, first {names})")


def configure(netns: int, ports: Sequence[Port]) -> None:
    """Addresses ends inside a node's namespace and takes them up."""

    def work() -> None:
        batch: list[bytes] = []
        for port in ports:
            index = socket.if_nametoindex(port.name)
            _disable_ipv6(port.name)
            if not port.segmentation_offload:
                _offload(port.name, False)
            batch += [new_address(index, port.address), up(index), new_neighbour(index, port.peer_address)]
        with contextlib.closing(netlink_socket()) as sock:
            transact(sock, batch, f"link ends {', '.join(port.name for port in ports)}")

    in_netns(netns, work)


def set_up(netns: int, names: Sequence[str]) -> None:
    """Takes bare devices up, IPv6 off, as the middle of wires wants them."""

    def work() -> None:
        for name in names:
            _disable_ipv6(name)
        with contextlib.closing(netlink_socket()) as sock:
            transact(sock, [up(socket.if_nametoindex(name)) for name in names], f"devices {', '.join(names)}")

    in_netns(netns, work)


def settle(netns: int, names: Sequence[str] = ()) -> None:
    """Waits until these devices (all, where none is named) pass frames.

    Once both ends of a pair are up a worker of the kernel connects them; until it has, which on a busy machine can take
    many ms, frames are dropped silently. A device that is not running after a second is left as it is.
    """

    def work() -> None:
        end_s = time.monotonic() + SETTLE_S
        with contextlib.closing(netlink_socket()) as sock:
            for name in names or [name for _, name in socket.if_nameindex() if name != "lo"]:
                while not _running(sock, name) and time.monotonic() < end_s:
                    time.sleep(0.0005)

    in_netns(netns, work)


def _running(sock: socket.socket, name: str) -> bool:
    """Since Linux 6.8 to ask lets the kernel do at once what the worker has not done yet. Flags would not do: a device
    that nobody looked at yet counts as running."""
    try:
        body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, socket.if_nametoindex(name), 0, 0)
    except OSError:  # gone meanwhile
        return True
    sock.send(struct.pack("=IHHII", 16 + len(body), RTM_GETLINK, NLM_REQUEST, 0, 0) + body)
    return any(
        kind == NLMSG_ERROR or struct.pack("=HHB", 5, IFLA_OPERSTATE, OPERSTATE_UP) in payload[16:]
        for kind, payload in _replies(sock.recv(1 << 16))
    )


def delete(netns: int, name: str) -> None:
    """Removes a device, and so its peer."""

    def work() -> None:
        with contextlib.closing(netlink_socket()) as sock:
            transact(sock, [remove(socket.if_nametoindex(name))], f"device {name}")

    in_netns(netns, work)


def index_of(netns: int, name: str) -> int:
    """0 when there is no such device."""

    def work() -> int:
        try:
            return socket.if_nametoindex(name)
        except OSError:
            return 0

    return in_netns(netns, work)


def set_offload(netns: int, name: str, on: bool) -> None:
    in_netns(netns, lambda: _offload(name, on))


def routes_via(netns: int, index: int) -> list[bytes]:
    """The IPv4 routes over a device, but those the kernel adds with an address, as messages that add them again."""

    def work() -> list[bytes]:
        routes = []
        with contextlib.closing(netlink_socket()) as sock:
            body = struct.pack("=BBBBBBBBI", socket.AF_INET, *[0] * 8)
            sock.send(struct.pack("=IHHII", 16 + len(body), RTM_GETROUTE, NLM_REQUEST | NLM_DUMP, 0, 0) + body)
            done = False
            while not done:
                for kind, payload in _replies(sock.recv(1 << 17)):
                    done = done or kind in (NLMSG_DONE, NLMSG_ERROR)
                    oif = struct.pack("=HHi", 8, RTA_OIF, index)
                    if kind == RTM_NEWROUTE and payload[5] != RTPROT_KERNEL and oif in payload[12:]:
                        routes.append(message(RTM_NEWROUTE, payload, NLM_CREATE | NLM_REPLACE))
        return routes

    return in_netns(netns, work)


def add_routes(netns: int, routes: Sequence[bytes]) -> None:
    def work() -> None:
        with contextlib.closing(netlink_socket()) as sock:
            transact(sock, routes, "routes put back after a link was made again")

    if routes:
        in_netns(netns, work)


def _disable_ipv6(device: str) -> None:
    """Else an idle link carries MLD, DAD and router solicitations: 16 frames in 20 s."""
    with contextlib.suppress(OSError), open(f"/proc/sys/net/ipv6/conf/{device}/disable_ipv6", "w") as switch:
        switch.write("1")


def _offload(device: str, on: bool) -> None:
    """Segmentation offload by ioctl; the checksum offload stays, AF_PACKET carries its state in the vnet header."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for command in (ETHTOOL_STSO, ETHTOOL_SGSO):
            value = ctypes.create_string_buffer(struct.pack("=II", command, int(on)))
            request = struct.pack("=16sQ16x", device.encode(), ctypes.addressof(value))
            with contextlib.suppress(OSError):  # a kernel without it sends whole super-frames: less exact, not wrong
                fcntl.ioctl(sock, SIOCETHTOOL, request)
