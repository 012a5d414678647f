"""Lists of revoked certificates, made and signed by a library, read by ours."""

from __future__ import annotations

import ssl

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from planes.mesh import crl
from testbed.model.identity import Identity
from testbed.pki import CertificateAuthority, Leaf

NOW = 1_700_000_000.0
AUTHORITY, OTHER = (CertificateAuthority(now=NOW, trust_domain=name) for name in ("cluster.local", "other.example"))


def leaf(authority: CertificateAuthority = AUTHORITY) -> Leaf:
    return authority.issue(Identity("cluster.local", "default", "server"), now=NOW)


def serial(one: Leaf) -> int:
    return x509.load_pem_x509_certificate(one.cert_pem).serial_number


def key(one: Leaf) -> crl.Key:
    return crl.key_of(ssl.PEM_cert_to_DER_cert(one.cert_pem.decode()))


def test_who_is_on_a_list_is_revoked() -> None:
    """And nobody else of that authority."""
    taken, kept = leaf(), leaf()
    found = crl.revoked(AUTHORITY.revocation_list([serial(taken), 5], now=NOW))

    assert key(taken) in found and key(kept) not in found and len(found) == 2


def test_a_serial_number_counts_with_its_issuer() -> None:
    """Another authority's list says nothing of this one's certificates."""
    one = leaf()

    assert key(one) not in crl.revoked(OTHER.revocation_list([serial(one)], now=NOW))


def test_an_entry_without_a_serial_number_is_a_value_error() -> None:
    """Whoever reads the file goes on with the list it has; nothing else may come out."""
    name, when = bytes.fromhex("3000"), b"\x17\x0d700101000000Z"
    fields = bytes.fromhex("3000") + name + when + bytes.fromhex("30023000")
    tbs = b"\x30" + bytes([len(fields)]) + fields
    with pytest.raises(ValueError, match="DER"):
        crl.revoked(b"\x30" + bytes([len(tbs)]) + tbs)


def test_a_file_may_hold_many_lists_or_one_in_der() -> None:
    """Text between them is passed over, as in bundles of roots."""
    one, two = leaf(), leaf(OTHER)
    lists = [AUTHORITY.revocation_list([serial(one)], now=NOW), OTHER.revocation_list([serial(two)], now=NOW)]

    assert crl.revoked(b"# both\n" + b"and\n".join(lists)) == {key(one), key(two)}
    assert crl.revoked(ssl.PEM_cert_to_DER_cert(
        lists[0].decode().replace("X509 CRL", "CERTIFICATE")
    )) == {key(one)}  # fmt: skip


def test_an_empty_list_and_an_empty_file_revoke_nobody() -> None:
    """Both are how an authority begins."""
    assert crl.revoked(AUTHORITY.revocation_list([], now=NOW)) == crl.revoked(b"") == frozenset()


@pytest.mark.parametrize(
    "text",
    [b"no list", b"-----BEGIN X509 CRL-----\nMAA=\n", b"-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n",
     b"-----BEGIN X509 CRL-----\nx\n-----END X509 CRL-----\n", b"\x30\x80"],
)  # fmt: skip
def test_what_is_no_list_is_refused(text: bytes) -> None:
    """Silence would mean that nobody is revoked."""
    with pytest.raises(ValueError, match=r"DER|list|base64"):
        crl.revoked(text)


def test_a_certificate_is_no_list() -> None:
    """Nor the other way round is a list taken for a certificate without notice."""
    with pytest.raises(ValueError, match="no list"):
        crl.revoked(ssl.PEM_cert_to_DER_cert(leaf().cert_pem.decode()))


@given(st.binary(max_size=60), st.integers(0, 400))
def test_whatever_comes_is_read_or_a_value_error(junk: bytes, cut: int) -> None:
    """Cut anywhere, with anything behind it."""
    whole = ssl.PEM_cert_to_DER_cert(leaf().cert_pem.decode())
    for read in (crl.revoked, crl.key_of):
        for der in (b"\x30" + junk, whole[:cut] + junk):
            try:
                read(der)
            except ValueError:
                pass
