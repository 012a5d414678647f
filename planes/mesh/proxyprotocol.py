"""The header that tells an application behind a tunnel who calls whom: PROXY protocol, version 2. Pure.

As ztunnel writes it (facts/hbone 1.10): the caller's TCP address, what it asked for, and its identity where one was
proved, as a value of type 0xD0 (of those that the protocol leaves to applications).
"""

from __future__ import annotations

import ipaddress
import struct

IDENTITY = 0xD0
_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_VERSION_AND_PROXY = 0x21
_STREAM = 0x01
_INET, _INET6 = 0x10, 0x20
"""Added to how it is carried; neither: addresses of two families, which the header cannot hold."""


def header(source: tuple[str, int], destination: tuple[str, int], identity: str) -> bytes:
    """Of a stream from `source` to `destination`; `identity` is empty where none was proved."""
    ends = [ipaddress.ip_address(host) for host, _ in (source, destination)]
    family, addresses = 0, b""
    if ends[0].version == ends[1].version:
        family = _INET if ends[0].version == 4 else _INET6
        addresses = ends[0].packed + ends[1].packed + struct.pack(">HH", source[1], destination[1])
    told = identity.encode()
    values = struct.pack(">BH", IDENTITY, len(told)) + told if told else b""
    size = len(addresses) + len(values)
    return _SIGNATURE + struct.pack(">BBH", _VERSION_AND_PROXY, family | _STREAM, size) + addresses + values
