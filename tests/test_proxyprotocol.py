"""PROXY headers, read by the text of the protocol (version 2, sections 2.2 and 2.2.7)."""

from __future__ import annotations

import socket

import pytest

from planes.mesh.proxyprotocol import header

START = b"\r\n\r\n\x00\r\nQUIT\n\x21"
IDENTITY = "spiffe://cluster.local/ns/default/sa/client"


def test_a_callers_address_and_identity() -> None:
    """Version 2, PROXY, TCP over IPv4: addresses, ports, and one value of type 0xD0."""
    told = header(("10.0.0.1", 40000), ("10.96.0.1", 80), IDENTITY)

    assert told[:14] == START + b"\x11"
    assert int.from_bytes(told[14:16], "big") == len(told) - 16
    assert told[16:28] == bytes((10, 0, 0, 1, 10, 96, 0, 1)) + b"\x9c\x40\x00\x50"
    assert told[28:] == b"\xd0" + len(IDENTITY).to_bytes(2, "big") + IDENTITY.encode()


def test_ipv6_has_its_own_family() -> None:
    """36 bytes of addresses, and no value where no identity was proved."""
    told = header(("fd00::1", 1), ("fd00::2", 2), "")

    assert told[13] == 0x21 and told[14:16] == b"\x00\x24"
    assert told[16:48] == socket.inet_pton(socket.AF_INET6, "fd00::1") + socket.inet_pton(socket.AF_INET6, "fd00::2")
    assert told[48:] == b"\x00\x01\x00\x02"


@pytest.mark.parametrize("identity", ["", IDENTITY])
def test_addresses_of_two_families_are_left_out(identity: str) -> None:
    """The header cannot hold them: family unspecified, and the identity alone."""
    told = header(("10.0.0.1", 1), ("fd00::2", 2), identity)

    assert told[13] == 0x01
    assert int.from_bytes(told[14:16], "big") == len(told) - 16 == (3 + len(identity) if identity else 0)
