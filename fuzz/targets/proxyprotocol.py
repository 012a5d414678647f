"""The PROXY header we write, read back by its definition (version 2, 2.2): nothing in it can end it early."""

from __future__ import annotations

import ipaddress
import struct

from planes.mesh import proxyprotocol


def check(data: bytes) -> None:
    """4 or 16 bytes of each address by the first byte's bits, two ports, the rest an identity."""
    if len(data) < 37:
        return
    sizes = [16 if data[0] & bit else 4 for bit in (1, 2)]
    source = ipaddress.ip_address(data[1 : 1 + sizes[0]])
    destination = ipaddress.ip_address(data[17 : 17 + sizes[1]])
    ports = struct.unpack(">HH", data[33:37])
    identity = data[37:].decode("latin-1")
    if len(identity.encode()) > 60_000:
        return
    wire = proxyprotocol.header((str(source), ports[0]), (str(destination), ports[1]), identity)
    assert wire[:12] == b"\r\n\r\n\x00\r\nQUIT\n" and wire[12] == 0x21
    family, size = wire[13] >> 4, int.from_bytes(wire[14:16])
    assert size == len(wire) - 16, "a length that is not the header's"
    at = 16
    if source.version == destination.version:
        length = len(source.packed)
        assert family == (1 if length == 4 else 2)
        assert wire[at : at + 2 * length] == source.packed + destination.packed
        assert struct.unpack_from(">HH", wire, at + 2 * length) == ports
        at += 2 * length + 4
    else:
        assert family == 0
    if identity:
        kind, length = struct.unpack_from(">BH", wire, at)
        assert kind == proxyprotocol.IDENTITY and wire[at + 3 : at + 3 + length].decode() == identity
        at += 3 + length
    assert at == len(wire)
