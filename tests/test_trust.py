"""Certificates followed to the roots of a mesh."""

from __future__ import annotations

import datetime
from itertools import count

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from testbed.observe.keylog import Certificate
from testbed.verify.trust import is_vouched_for

NUMBERS = count(1)


class Signer:
    """Somebody with a key and a certificate; `ca`: who may sign others."""

    def __init__(self, name: str, by: Signer | None = None, *, ca: bool = True) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        by = by or self
        start = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        builder = x509.CertificateBuilder(
            issuer_name=by.name, subject_name=self.name, public_key=self.key.public_key(),
            serial_number=next(NUMBERS), not_valid_before=start, not_valid_after=start + datetime.timedelta(days=1),
        ).add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)  # fmt: skip
        self.certificate = builder.sign(by.key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)


def seen(*signers: Signer) -> Certificate:
    chain = tuple(s.certificate.public_bytes(Encoding.DER) for s in signers)
    return Certificate(uris=(), issuer="", sha256="", packets=(), chain=chain)


ROOT = Signer("root")
BETWEEN = Signer("between", ROOT)
NO_AUTHORITY = Signer("workload", ROOT, ca=False)


@pytest.mark.parametrize(
    ("chain", "vouched"),
    [
        ((Signer("leaf", ROOT, ca=False),), True),
        ((Signer("leaf", BETWEEN, ca=False), BETWEEN), True),
        ((Signer("leaf", BETWEEN, ca=False),), False),
        ((Signer("leaf", NO_AUTHORITY, ca=False), NO_AUTHORITY), False),
        ((Signer("leaf", Signer("root"), ca=False),), False),
        ((Signer("leaf", ca=False),), False),
        ((Signer("leaf", Signer("root"), ca=False), ROOT), False),
    ],
    ids=["root", "through another", "link missing", "signed by a workload", "same name", "itself", "root shown only"],
)
def test_only_signatures_count(chain: tuple[Signer, ...], vouched: bool) -> None:
    """Names are anybody's."""
    assert is_vouched_for(seen(*chain), ROOT.pem) is vouched


def test_what_cannot_be_read_is_not_vouched_for() -> None:
    """Neither without roots nor without a certificate."""
    leaf = Signer("leaf", ROOT, ca=False)

    assert not is_vouched_for(seen(leaf), b"no certificate")
    assert not is_vouched_for(Certificate(uris=(), issuer="", sha256="", packets=(), chain=(b"x",)), ROOT.pem)
