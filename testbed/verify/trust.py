"""Whether a certificate that was seen comes from an authority of the mesh: by signatures, not by names. Pure.

Lifetimes are not judged: a capture may be read years after.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from testbed.observe.keylog import Certificate

MAX_CHAIN = 8


def is_vouched_for(certificate: Certificate, roots_pem: bytes) -> bool:
    """Through the certificates that were sent with it, if need be."""
    try:
        roots = x509.load_pem_x509_certificates(roots_pem)
        leaf, *sent = [x509.load_der_x509_certificate(der) for der in certificate.chain]
    except ValueError:
        return False
    return _leads_to(leaf, roots, sent, MAX_CHAIN)


def _leads_to(
    certificate: x509.Certificate, roots: Sequence[x509.Certificate], sent: Sequence[x509.Certificate], left: int
) -> bool:
    if any(_signed(certificate, root) for root in roots):
        return True
    return left > 0 and any(
        _is_authority(one) and _signed(certificate, one) and _leads_to(one, roots, sent, left - 1) for one in sent
    )


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        return False


def _signed(certificate: x509.Certificate, by: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(by)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
