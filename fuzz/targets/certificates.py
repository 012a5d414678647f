"""Certificates and what stands in them: SPIFFE ids, serial numbers, lists of the revoked."""

from __future__ import annotations

from planes.mesh import crl, tls
from testbed.model.identity import Identity
from testbed.observe import keylog


def chain(data: bytes) -> None:
    """The body of a TLS 1.3 Certificate message as the judge sees it, behind its four bytes of type and length."""
    keylog.leaf(b"\x0b" + len(data).to_bytes(3) + data)
    keylog.chosen_alpn(b"\x08" + len(data).to_bytes(3) + data)


def revoked(data: bytes) -> None:
    try:
        found = crl.revoked(data)
    except ValueError:
        found = frozenset()
    assert sum(len(serial) for _, serial in found) <= len(data)
    try:
        crl.key_of(data)
    except ValueError:
        pass


def identity(data: bytes) -> None:
    text = data.decode("latin-1")
    domain = tls.trust_domain(text)
    try:
        read = Identity.parse(text)
    except ValueError:
        pass
    else:
        assert str(read) == text and read.trust_domain == domain, "an identity that is not what it was read from"
    assert tls.client_refusal((text,), frozenset({text})) is None
    assert tls.server_refusal((text,), "cluster.local") is None or domain != "cluster.local"
