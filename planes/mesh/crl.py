"""Certificates that their authority took back: lists of them (RFC 5280 5.1), and who is on one. Pure.

Only as much DER is read as that takes. A list's own signature is not: the file is as trusted as the roots beside it.
"""

from __future__ import annotations

import binascii
from collections.abc import Iterator

Key = tuple[bytes, bytes]
"""Issuer and serial number, each as its DER stands in certificate and list."""

_BEGIN, _END = b"-----BEGIN X509 CRL-----", b"-----END X509 CRL-----"
_SEQUENCE, _INTEGER, _UTC_TIME, _GENERALIZED_TIME, _VERSION = 0x30, 0x02, 0x17, 0x18, 0xA0


def revoked(text: bytes) -> frozenset[Key]:
    """Of a PEM file of any number of lists, or of one list in DER. Raises ValueError."""
    if text.startswith(b"\x30"):
        return frozenset(_of_list(text))
    found: set[Key] = set()
    for part in text.split(_BEGIN)[1:]:
        body, end, _ = part.partition(_END)
        if not end:
            raise ValueError("a list has no end line")
        try:
            found.update(_of_list(binascii.a2b_base64(body)))
        except binascii.Error as cause:
            raise ValueError(f"a list is not base64: {cause}") from cause
    if text.strip() and _BEGIN not in text:
        raise ValueError("there is no list of revoked certificates in it")
    return frozenset(found)


def key_of(certificate: bytes) -> Key:
    """Of a certificate in DER. Raises ValueError."""
    fields = list(_values(_only(_values(_only(_values(certificate), _SEQUENCE)), _SEQUENCE)))
    if fields and fields[0][0] == _VERSION:
        del fields[0]
    try:
        (_, serial, _), _, (_, _, issuer) = fields[:3]
    except ValueError as cause:
        raise ValueError("the certificate has no issuer") from cause
    return issuer, serial


def _of_list(der: bytes) -> Iterator[Key]:
    """TBSCertList: version?, signature, issuer, this update, next update?, revoked?, extensions?."""
    fields = list(_values(_only(_values(_only(_values(der), _SEQUENCE)), _SEQUENCE)))
    if fields and fields[0][0] == _INTEGER:
        del fields[0]
    if len(fields) < 3 or fields[2][0] not in (_UTC_TIME, _GENERALIZED_TIME):
        raise ValueError("it is no list of revoked certificates")
    issuer = fields[1][2]
    for tag, content, _ in fields[3:5]:
        if tag == _SEQUENCE:
            for _, entry, _ in _values(content):
                yield issuer, _only(_values(entry), _INTEGER)


def _only(values: Iterator[tuple[int, bytes, bytes]], tag: int) -> bytes:
    found = next(values, None)
    if found is None or found[0] != tag:
        raise ValueError("it is not DER of the kind expected")
    return found[1]


def _values(der: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """(tag, content, all of it) one after another. Raises ValueError."""
    at = 0
    while at < len(der):
        start, head = at, der[at : at + 2]
        if len(head) < 2:
            raise ValueError("DER ends within a length")
        at, size = at + 2, head[1]
        if size & 0x80:
            count = size & 0x7F
            size = int.from_bytes(der[at : at + count], "big")
            at += count
            if not 0 < count <= 4:
                raise ValueError("a DER length of no or of too many bytes")
        if at + size > len(der):
            raise ValueError("DER is longer than its file")
        yield head[0], der[at : at + size], der[start : at + size]
        at += size
