"""TCP connections of a namespace ended from outside, both of their ends told so, by sock_diag's SOCK_DESTROY.

Capture rules look at the first packet of a connection and never again. So what was open before they came, or before
they changed, goes past them for as long as it lives, and only this ends it. Layouts: linux/inet_diag.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from testbed.errors import MachineError
from testbed.runtime.enter import in_netns

_SOCK_DIAG, _BY_FAMILY, _DESTROY = 4, 20, 21
_ERROR, _DONE = 2, 3
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_ALIVE = sum(1 << state for state in (1, 2, 3, 4, 5, 8, 9))
"""ESTABLISHED, SYN_SENT, SYN_RECV, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK: not those that listen or wait out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """One socket of a connection, as the kernel knows it."""

    identity: bytes
    """inet_diag_sockid: ports, addresses, device, cookie."""
    remote: str
    uid: int


def end(netns: str, *, spared: Callable[[int], bool]) -> int:
    """Ends every IPv4 TCP connection of the namespace to another address than loopback's, but those of spared user
    ids; how many. Raises MachineError where the kernel cannot.
    """

    def work() -> int:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _SOCK_DIAG) as asked:
            asked.settimeout(5.0)
            return sum(_end(asked, one) for one in opened(asked) if not spared(one.uid))

    return in_netns(netns, work)


def opened(asked: socket.socket) -> list[Opened]:
    """Those of the socket's namespace that leave the namespace. Raises MachineError where the kernel tells none."""
    asked.send(_message(_BY_FAMILY, _REQUEST | _DUMP, _request(_ALIVE, bytes(48))))
    found: list[Opened] = []
    done = False
    while not done:
        for kind, payload in _parts(asked.recv(1 << 17)):
            if kind == _ERROR and (code := -struct.unpack_from("=i", payload)[0]):
                raise MachineError(
                    f"connections of before cannot be listed ({os.strerror(code)}), and would go on past the capture "
                    "rules; ./inv lab.down and lab.up instead of another plane"
                )
            done = done or kind in (_DONE, _ERROR)
            if kind == _BY_FAMILY:
                identity = payload[4:52]
                remote = socket.inet_ntop(socket.AF_INET, identity[20:24])
                (uid,) = struct.unpack_from("=I", payload, 64)
                found.append(Opened(identity=identity, remote=remote, uid=uid))
    return [one for one in found if not one.remote.startswith("127.")]


def _end(asked: socket.socket, one: Opened) -> int:
    asked.send(_message(_DESTROY, _REQUEST | _ACK, _request(1, one.identity)))
    for kind, payload in _parts(asked.recv(1 << 16)):
        if kind != _ERROR:
            continue
        code = -struct.unpack_from("=i", payload)[0]
        if code == errno.EOPNOTSUPP:
            raise MachineError(
                "connections of before go on past the capture rules: this kernel cannot end them (it was made without "
                "CONFIG_INET_DIAG_DESTROY); ./inv lab.down and lab.up instead of another plane"
            )
        if code not in (0, errno.ENOENT):
            raise MachineError(f"a connection to {one.remote} could not be ended: {os.strerror(code)}")
        return int(code == 0)
    return 0


def _request(states: int, identity: bytes) -> bytes:
    return struct.pack("=BBBxI", socket.AF_INET, socket.IPPROTO_TCP, 0, states) + identity


def _message(kind: int, flags: int, body: bytes) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, offset)
        yield kind, data[offset + 16 : offset + length]
        offset += max(16, (length + 3) & ~3)
