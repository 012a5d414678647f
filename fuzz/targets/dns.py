"""Answers of name servers to one question: addresses or a reason, ValueError for what cannot be read."""

from __future__ import annotations

import ipaddress

from planes.mesh import dns

NUMBER, NAME = 7, "files.example.com"


def check(data: bytes) -> None:
    for kind in (dns.A, dns.AAAA):
        try:
            found = dns.answer(data, NUMBER, NAME, kind)
        except ValueError:
            continue
        if found is None:
            continue
        assert len(found.addresses) * 4 <= len(data), "more addresses than the message has room for"
        for address in found.addresses:
            assert ipaddress.ip_address(address).version == (4 if kind == dns.A else 6)
        assert found.ttl_s >= 0 and (found.addresses or found.reason)
