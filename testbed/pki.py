"""The lab's CA: a self-signed root per trust domain, and short-lived SPIFFE leaves as Istio's CA issues them.

Profile of facts/hbone 1.2: URI SAN, critical since the subject is empty; key usage digitalSignature and
keyEncipherment; both extended usages, for one certificate serves both roles; P-256 keys, in PKCS#8, the only form
ztunnel reads. Time is an argument; nothing here looks at a clock.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from testbed.model.identity import DEFAULT_TRUST_DOMAIN, Identity

LEAF_LIFETIME_S = 24 * 3600.0
ROOT_LIFETIME_S = 10 * 365 * 24 * 3600.0
BACKDATE_S = 60.0
"""Not-before lies this much earlier, so that a peer whose clock is a little behind accepts a fresh certificate."""

FILES = CERTIFICATE_FILE, KEY_FILE, ROOTS_FILE = "cert.pem", "key.pem", "roots.pem"
_NOW, _GENERATION = "..now", "..of."
"""The link that is switched, and how the folders begin that it leads to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """A certificate with its key, and from when to when it counts (seconds since the epoch)."""

    identity: Identity
    cert_pem: bytes
    key_pem: bytes
    issued_at: float
    not_after: float

    def __repr__(self) -> str:  # a key must not end in a log
        return f"Leaf({self.identity}, not_after={self.not_after:.0f})"


class CertificateAuthority:
    """A root that signs leaves of any identity; the caller decides who may have which."""

    def __init__(self, *, now: float, trust_domain: str = DEFAULT_TRUST_DOMAIN) -> None:
        """A new root each time: two authorities of one name do not trust each other's leaves."""
        self.trust_domain = trust_domain
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain)])
        public = self._key.public_key()
        self._key_id = x509.SubjectKeyIdentifier.from_public_key(public)
        self._root = (
            _validity(x509.CertificateBuilder(), now, ROOT_LIFETIME_S)
            .subject_name(self._name)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(self._key_id, critical=False)
            .sign(self._key, hashes.SHA256())
        )

    def handed_over(self) -> bytes:
        """Its root and private key as PEM, from which `taken_over` makes it again: whoever has this is this CA."""
        return self.bundle + _private(self._key)

    @classmethod
    def taken_over(cls, pem: bytes) -> CertificateAuthority:
        """The authority that another process handed over."""
        made = cls.__new__(cls)
        made._root = x509.load_pem_x509_certificate(pem)
        key = serialization.load_pem_private_key(pem[len(made.bundle) :], None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        made._key, made._name = key, made._root.subject
        made._key_id = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        (organisation,) = made._name.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)
        made.trust_domain = str(organisation.value)
        return made

    @property
    def bundle(self) -> bytes:
        """The trust bundle: the root as PEM."""
        return self._root.public_bytes(serialization.Encoding.PEM)

    def revocation_list(self, serials: Iterable[int], *, now: float) -> bytes:
        """A CRL of leaves that this authority takes back, as PEM."""
        moment = datetime.fromtimestamp(now, UTC)
        builder = x509.CertificateRevocationListBuilder(issuer_name=self._name)
        builder = builder.last_update(moment).next_update(moment + timedelta(seconds=ROOT_LIFETIME_S))
        for serial in serials:
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(moment).build()
            builder = builder.add_revoked_certificate(one)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def issue(self, identity: Identity, *, now: float, lifetime_s: float = LEAF_LIFETIME_S) -> Leaf:
        """A leaf with a key of its own. The identity may be of another trust domain: tests need such wrong ones."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _validity(x509.CertificateBuilder(), now, lifetime_s)
        certificate = (
            builder.subject_name(x509.Name([]))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            # RFC 5280 4.2.1.6: with an empty subject the alternative name must be critical.
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True, key_encipherment=True), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._key_id), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        return Leaf(
            identity=identity,
            cert_pem=certificate.public_bytes(serialization.Encoding.PEM),
            key_pem=_private(key),
            issued_at=now,
            not_after=certificate.not_valid_after_utc.timestamp(),
        )


def due(leaf: Leaf, now: float) -> bool:
    """Whether to renew: at half of its life, as ztunnel does."""
    return now >= leaf.issued_at + (leaf.not_after - leaf.issued_at) / 2


def write_identity(folder: Path, leaf: Leaf, bundle: bytes, uid: int) -> None:
    """`cert.pem`, `key.pem`, `roots.pem` in `folder`, readable by `uid` alone, all three replaced in one step.

    They are links through one to a folder of their own, as in a mounted Secret of Kubernetes: who opens one beside that
    step may meet the next generation, but with all files read before and after it, nobody takes a key for a
    certificate that is not its own. Only root can give files to another uid.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=folder, prefix=_GENERATION))  # 0700 from its birth
    _fill(made, leaf, bundle, 0o600)
    if uid != os.geteuid():
        for path in (folder, made, *made.iterdir()):
            os.chown(path, uid, -1)
    _switch(folder, made)


def entrust(folder: Path, uid: int, readers: int) -> None:
    """From now on a process of user `uid` renews what is in `folder`, and those of group `readers` can only read it.

    Whatever is made in such a folder belongs to that group, so the one that writes needs no right over others' files.
    """
    for place in (folder, (folder / _NOW).resolve()):
        os.chown(place, uid, readers)
        place.chmod(0o2750)


def rewrite_identity(folder: Path, leaf: Leaf, bundle: bytes) -> None:
    """As `write_identity`, in a folder that was entrusted to this process."""
    made = folder / f"{_GENERATION}{os.urandom(8).hex()}"
    before = os.umask(0o027)  # mode by birth: to change it afterwards would take the group's inheritance away
    try:
        made.mkdir()
        _fill(made, leaf, bundle, 0o640)
    finally:
        os.umask(before)
    _switch(folder, made)


def _fill(made: Path, leaf: Leaf, bundle: bytes, mode: int) -> None:
    for name, content in ((ROOTS_FILE, bundle), (KEY_FILE, leaf.key_pem), (CERTIFICATE_FILE, leaf.cert_pem)):
        with open(os.open(made / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode), "wb") as file:
            file.write(content)


def _switch(folder: Path, made: Path) -> None:
    """`made` becomes what the names lead to; what they led to is gone."""
    now = folder / _NOW
    old = os.readlink(now) if now.is_symlink() else None
    fresh = folder / f"{_NOW}.{made.name}"
    fresh.symlink_to(made.name)
    fresh.replace(now)
    for name in FILES:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"{_NOW}/{name}")
    if old is not None:
        shutil.rmtree(folder / old, ignore_errors=True)


def holder(file: Path) -> Path:
    """The folder of an identity that has this file, whether it was found by its name or behind the links."""
    return file.parent.parent if file.parent.name.startswith(_GENERATION) else file.parent


def not_after(certificate: Path) -> float:
    """When the leaf of a `cert.pem` ends, in seconds since the epoch. Raises OSError or ValueError."""
    return x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc.timestamp()


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _validity(builder: x509.CertificateBuilder, now: float, lifetime_s: float) -> x509.CertificateBuilder:
    start = datetime.fromtimestamp(now, UTC)
    return builder.not_valid_before(start - timedelta(seconds=BACKDATE_S)).not_valid_after(
        start + timedelta(seconds=lifetime_s)
    )


def _usage(
    *,
    digital_signature: bool = False,
    key_encipherment: bool = False,
    key_cert_sign: bool = False,
    crl_sign: bool = False,
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_encipherment=key_encipherment,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
