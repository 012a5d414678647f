"""Netlink's acknowledgements: sending chunks of messages and reading one answer for each.

Apart from `netlink` because a lab's keeper needs nothing else of it, and must start in milliseconds.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Protocol

    class Socket(Protocol):
        def send(self, data: bytes, /) -> int: ...
        def recv(self, size: int, /) -> bytes: ...


NLMSG_ERROR = 2


def acknowledgements(data: bytes) -> Iterator[tuple[int, int]]:
    """(sequence, errno) of each acknowledgement in a datagram; errno 0 is a yes. Other messages are passed over."""
    offset = 0
    while offset + 16 <= len(data):
        length, kind, _, sequence, _ = struct.unpack_from("=IHHII", data, offset)
        if length < 16 or offset + length > len(data):
            raise ValueError(f"netlink message of length {length} at byte {offset} of {len(data)}")
        if kind == NLMSG_ERROR:
            yield sequence, -struct.unpack_from("=i", data, offset + 16)[0]
        offset += (length + 3) & ~3


def exchange(sock: Socket, parts: Iterable[tuple[int, bytes]]) -> list[tuple[int, int]]:
    """Sends each (count, bytes) and reads `count` acknowledgements; returns the refused as (sequence, errno)."""
    refused = []
    for count, data in parts:
        sock.send(data)
        while count > 0:
            for sequence, errno in acknowledgements(sock.recv(65536)):
                count -= 1
                if errno:
                    refused.append((sequence, errno))
    return refused
