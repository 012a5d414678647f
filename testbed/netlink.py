"""rtnetlink as bytes: veth pairs, addresses, routes, neighbours; and one batched round trip.

The encoders are pure. A veth pair is born in its two namespaces at once, under chosen indexes, so no name is ever
looked up.
`transact` sends many messages per system call and reads every acknowledgement; a refusal names the message that was
refused.
Source: linux/rtnetlink.h, if_link.h, neighbour.h; a veth that is created up is refused (ENOTCONN), so `up` comes after.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from testbed.acks import exchange
from testbed.errors import MachineError

RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWNEIGH = 16, 17, 20, 24, 28
REQUEST, ACK, REPLACE, EXCL, CREATE = 0x1, 0x4, 0x100, 0x200, 0x400
IFF_UP = 1
AF_INET = 2
RT_SCOPE_UNIVERSE, RT_SCOPE_LINK, RT_TABLE_MAIN, RTPROT_STATIC, RTN_UNICAST = 0, 253, 254, 4, 1
RTNH_F_ONLINK = 4
NUD_PERMANENT = 0x80
CHUNK = 32
"""Messages per send: their acknowledgements (a kernel buffer each) fit a default receive buffer several times over."""


@dataclass(frozen=True, slots=True)
class Message:
    """A request without its sequence number, and what it asks for, in words for an error."""

    kind: int
    flags: int
    body: bytes
    what: str


def attribute(kind: int, data: bytes) -> bytes:
    length = 4 + len(data)
    return struct.pack("=HH", length, kind) + data + b"\0" * (-length & 3)


def _u32(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("=I", value))


def _text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def ipv4(address: str) -> bytes:
    """Four bytes of dotted text. Raises ValueError."""
    try:
        return socket.inet_pton(AF_INET, address)
    except OSError as error:
        raise ValueError(f"not an IPv4 address: {address!r}") from error


def mac(text: str) -> bytes:
    octets = bytes.fromhex(text.replace(":", ""))
    if len(octets) != 6:
        raise ValueError(f"not a MAC address: {text!r}")
    return octets


@dataclass(frozen=True, slots=True, kw_only=True)
class End:
    """One end of a veth pair, before it exists.

    The namespace is a descriptor of the *sending* process, or a process id.
    """

    name: str
    index: int = 0
    """0 lets the kernel choose."""
    mac: str | None = None
    namespace_fd: int | None = None
    namespace_pid: int | None = None
    mtu: int | None = None


def _interface(index: int = 0, flags: int = 0, change: int = 0) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, flags, change)


def _end(end: End) -> bytes:
    if not 0 < len(end.name.encode()) <= 15:
        raise ValueError(f"device name {end.name!r} is not 1 to 15 bytes long")
    parts = [_interface(end.index), _text(3, end.name)]
    if end.mac is not None:
        parts.append(attribute(1, mac(end.mac)))
    if end.mtu is not None:
        parts.append(_u32(4, end.mtu))
    if end.namespace_fd is not None:
        parts.append(_u32(28, end.namespace_fd))
    if end.namespace_pid is not None:
        parts.append(_u32(19, end.namespace_pid))
    return b"".join(parts)


def veth(a: End, b: End) -> Message:
    """A pair whose ends appear straight in their namespaces, so that no name ever meets the host's."""
    peer = attribute(2, attribute(1, _end(b)))
    return Message(
        RTM_NEWLINK, CREATE | EXCL, _end(a) + attribute(18, _text(1, "veth") + peer), f"veth {a.name} <-> {b.name}"
    )


def link_up(index: int) -> Message:
    return Message(RTM_NEWLINK, 0, _interface(index, IFF_UP, IFF_UP), f"device {index} up")


def link_delete(index: int) -> Message:
    return Message(RTM_DELLINK, 0, _interface(index), f"delete device {index}")


def address(index: int, ip: str, prefix: int) -> Message:
    octets = ipv4(ip)
    head = struct.pack("=BBBBI", AF_INET, prefix, 0, 0, index)
    return Message(
        RTM_NEWADDR, CREATE | REPLACE, head + attribute(2, octets) + attribute(1, octets),
        f"address {ip}/{prefix} on device {index}",
    )  # fmt: skip


def route(
    destination: str,
    prefix: int,
    *,
    index: int,
    via: str | None = None,
    source: str | None = None,
    onlink: bool = False,
) -> Message:
    """Without `via` the destination is on the device itself (scope link);
    `onlink` takes `via` for reachable unasked.
    """
    scope = RT_SCOPE_UNIVERSE if via else RT_SCOPE_LINK
    flags = RTNH_F_ONLINK if onlink else 0
    head = struct.pack("=BBBBBBBBI", AF_INET, prefix, 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, flags)
    parts = [head, _u32(4, index)]
    if prefix:
        parts.append(attribute(1, ipv4(destination)))
    if via:
        parts.append(attribute(5, ipv4(via)))
    if source:
        parts.append(attribute(7, ipv4(source)))
    what = f"route {destination}/{prefix}" + (f" via {via}" if via else "") + f" on device {index}"
    return Message(RTM_NEWROUTE, CREATE | REPLACE, b"".join(parts), what)


def neighbour(index: int, ip: str, hardware: str) -> Message:
    """A permanent entry: nobody ever asks by ARP, so a lab's first packet is as quick as its second."""
    head = struct.pack("=BxxxiHBB", AF_INET, index, NUD_PERMANENT, 0, 0)
    return Message(
        RTM_NEWNEIGH, CREATE | REPLACE, head + attribute(1, ipv4(ip)) + attribute(2, mac(hardware)),
        f"neighbour {ip} on device {index}",
    )  # fmt: skip


def encode(message: Message, sequence: int) -> bytes:
    flags = REQUEST | ACK | message.flags
    return struct.pack("=IHHII", 16 + len(message.body), message.kind, flags, sequence, 0) + message.body


def chunks(messages: Sequence[Message]) -> list[tuple[int, bytes]]:
    """(count, bytes) for each send; sequence numbers are positions in `messages`."""
    return [
        (len(part), b"".join(encode(m, start + i) for i, m in enumerate(part)))
        for start in range(0, len(messages), CHUNK)
        for part in [messages[start : start + CHUNK]]
    ]


def explain(where: str, messages: Sequence[Message], refused: Sequence[tuple[int, int]]) -> MachineError:
    """The error for refused (position, errno) pairs: the first in full, the rest counted."""
    position, errno = refused[0]
    more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
    mend = {1: "; run as root or in a user namespace", 95: "; this kernel lacks the device kind"}.get(errno, "")
    return MachineError(f"{where}: {messages[position].what}: {os.strerror(errno)}{more}{mend}")


def open_socket() -> socket.socket:
    """A route socket of the calling thread's network namespace."""
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)


def transact(sock: socket.socket, messages: Sequence[Message], *, where: str) -> None:
    """All messages in order, in few system calls. Raises MachineError naming the first refused one."""
    if refused := exchange(sock, chunks(messages)):
        raise explain(where, messages, refused)
