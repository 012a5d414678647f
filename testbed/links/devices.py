"""The devices of links: veth pairs born in their namespaces, addressed, up, removed and made again.

A private rtnetlink encoder of the few messages that links need (linux/rtnetlink.h, if_link.h), and a thread that
enters a namespace. Ends have addresses of hardware that follow from their IP address, so the far end's neighbour
entry needs no look-up.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from testbed.errors import MachineError

T = TypeVar("T")
libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNET = 0x40000000
RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_GETROUTE, RTM_NEWNEIGH = 16, 17, 20, 24, 26, 28
NLM_REQUEST, NLM_ACK, NLM_DUMP, NLM_REPLACE, NLM_EXCL, NLM_CREATE = 0x1, 0x4, 0x300, 0x100, 0x200, 0x400
NLMSG_ERROR, NLMSG_DONE = 2, 3
IFLA_ADDRESS, IFLA_IFNAME, IFLA_LINKINFO, IFLA_NET_NS_FD = 1, 3, 18, 28
IFLA_INFO_KIND, IFLA_INFO_DATA, VETH_INFO_PEER = 1, 2, 1
IFA_ADDRESS, IFA_LOCAL, NDA_DST, NDA_LLADDR, RTA_OIF = 1, 2, 1, 2, 4
NUD_PERMANENT, IFF_UP, RTPROT_KERNEL = 0x80, 1, 2
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


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + bytes(-len(data) % 4)


def message(kind: int, body: bytes, flags: int = NLM_CREATE | NLM_EXCL) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, NLM_REQUEST | NLM_ACK | flags, 0, 0) + body


def _interface(index: int = 0, flags: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, flags, flags)


def _end(end: End) -> bytes:
    return (
        _interface(end.index)
        + attribute(IFLA_IFNAME, end.name.encode() + b"\0")
        + attribute(IFLA_NET_NS_FD, struct.pack("=I", end.netns))
        + attribute(IFLA_ADDRESS, end.mac)
    )


def new_pair(a: End, b: End) -> bytes:
    info = attribute(IFLA_INFO_KIND, b"veth\0") + attribute(IFLA_INFO_DATA, attribute(VETH_INFO_PEER, _end(b)))
    return message(RTM_NEWLINK, _end(a) + attribute(IFLA_LINKINFO, info))


def up(index: int) -> bytes:
    return message(RTM_NEWLINK, _interface(index, IFF_UP), 0)


def remove(index: int) -> bytes:
    return message(RTM_DELLINK, _interface(index), 0)


def new_address(index: int, address: str) -> bytes:
    packed = socket.inet_aton(address)
    body = struct.pack("=BBBBI", socket.AF_INET, 31, 0, 0, index)
    return message(RTM_NEWADDR, body + attribute(IFA_LOCAL, packed) + attribute(IFA_ADDRESS, packed))


def new_neighbour(index: int, address: str) -> bytes:
    body = struct.pack("=BBHiHBB", socket.AF_INET, 0, 0, index, NUD_PERMANENT, 0, 0)
    attributes = attribute(NDA_DST, socket.inet_aton(address)) + attribute(NDA_LLADDR, mac_of(address))
    return message(RTM_NEWNEIGH, body + attributes, NLM_CREATE | NLM_REPLACE)


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
            for kind, payload in _replies(sock.recv(1 << 16)):
                if kind == NLMSG_ERROR:
                    left -= 1
                    refused = refused or -struct.unpack_from("=i", payload)[0]
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
