from __future__ import annotations

import os
import ssl
import stat
import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from testbed.model.identity import Identity
from testbed.pki import BACKDATE_S, CertificateAuthority, Leaf, due, holder, write_identity

NOW = 1_700_000_000.0
WHO = Identity("cluster.local", "default", "server")


@pytest.fixture(scope="module")
def ca() -> CertificateAuthority:
    return CertificateAuthority(now=NOW)


def test_the_root_is_named_by_its_trust_domain_and_may_only_sign(ca: CertificateAuthority) -> None:
    """Issuer `O=<trust domain>`, as Istio's; P-256; a path of leaves only."""
    root = x509.load_pem_x509_certificate(ca.bundle)

    assert root.subject.rfc4514_string() == root.issuer.rfc4514_string() == "O=cluster.local"
    assert isinstance(root.public_key().curve, ec.SECP256R1)
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    root.verify_directly_issued_by(root)


def test_a_leaf_has_istios_profile(ca: CertificateAuthority) -> None:
    """Empty subject and so a critical SAN with exactly one URI; both usages; valid a day, from a minute ago."""
    leaf = ca.issue(WHO, now=NOW)
    certificate = x509.load_pem_x509_certificate(leaf.cert_pem)
    extensions = certificate.extensions
    san = extensions.get_extension_for_oid(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    set_bits = [n for n in ("digital_signature", "key_encipherment", "content_commitment", "data_encipherment",
                            "key_agreement", "key_cert_sign", "crl_sign") if getattr(usage, n)]  # fmt: skip

    assert certificate.subject.rfc4514_string() == ""
    assert san.critical
    assert list(san.value) == [x509.UniformResourceIdentifier("spiffe://cluster.local/ns/default/sa/server")]
    assert set_bits == ["digital_signature", "key_encipherment"]
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH,
    }  # fmt: skip
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert certificate.not_valid_after_utc.timestamp() == leaf.not_after == NOW + 24 * 3600
    assert certificate.not_valid_before_utc.timestamp() == NOW - BACKDATE_S
    assert certificate.signature_hash_algorithm.name == "sha256"


def test_the_key_is_pkcs8_and_never_printed(ca: CertificateAuthority) -> None:
    """ztunnel reads no other form; and a repr may end in a log."""
    leaf = ca.issue(WHO, now=NOW)

    assert leaf.key_pem.startswith(b"-----BEGIN PRIVATE KEY-----")
    assert "PRIVATE" not in repr(leaf)


def test_renewal_is_due_at_half_of_life(ca: CertificateAuthority) -> None:
    """Also for short ones, counted from the issue and not from the backdated start."""
    leaf = ca.issue(WHO, now=NOW, lifetime_s=10)

    assert [due(leaf, NOW + s) for s in (0, 4.9, 5, 10)] == [False, False, True, True]


def verified(tmp_path: Path, leaf: Leaf, bundle: bytes, purpose: str, at: float = NOW) -> bool:
    """OpenSSL's word: an implementation that is not the one that signed."""
    (tmp_path / "leaf").write_bytes(leaf.cert_pem)
    (tmp_path / "roots").write_bytes(bundle)
    command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-attime", str(int(at)), "-CAfile",
               str(tmp_path / "roots"), str(tmp_path / "leaf")]  # fmt: skip
    return subprocess.run(command, capture_output=True, timeout=20).returncode == 0


def test_openssl_accepts_a_leaf_in_both_roles(ca: CertificateAuthority, tmp_path: Path) -> None:
    """Strictly checked, as server and as client."""
    leaf = ca.issue(WHO, now=NOW)

    assert verified(tmp_path, leaf, ca.bundle, "sslserver")
    assert verified(tmp_path, leaf, ca.bundle, "sslclient")


def test_openssl_refuses_an_expired_leaf_and_one_of_another_authority(ca: CertificateAuthority, tmp_path: Path) -> None:
    """An authority of the same name is another one: its key differs."""
    leaf = ca.issue(WHO, now=NOW, lifetime_s=10)

    assert not verified(tmp_path, leaf, ca.bundle, "sslserver", at=NOW + 11)
    assert not verified(tmp_path, leaf, CertificateAuthority(now=NOW).bundle, "sslserver")


def test_files_are_for_their_owner_only_and_replaced_whole(ca: CertificateAuthority, tmp_path: Path) -> None:
    """0600 files in a 0700 folder, no temporary left, and a reader of the old file keeps the old file."""
    folder = tmp_path / "identity"
    first, second = ca.issue(WHO, now=NOW), ca.issue(WHO, now=NOW)
    write_identity(folder, first, ca.bundle, os.geteuid())
    with (folder / "key.pem").open("rb") as old:
        write_identity(folder, second, ca.bundle, os.geteuid())
        assert old.read() == first.key_pem

    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in folder.iterdir() if not p.name.startswith("..")}
    assert modes == {"cert.pem": 0o600, "key.pem": 0o600, "roots.pem": 0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (made,) = {(folder / name).resolve().parent for name in modes}
    assert {p for p in folder.rglob("*") if not p.is_symlink()} == {made, *(made / name for name in modes)}
    assert {holder(p) for p in folder.rglob("key.pem")} == {folder}
    assert (folder / "key.pem").read_bytes() == second.key_pem


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="giving files to another user needs root")
def test_files_belong_to_the_proxys_user(ca: CertificateAuthority, tmp_path: Path) -> None:
    """So that no application's user, and not the proxy of another, can read them."""
    write_identity(tmp_path / "identity", ca.issue(WHO, now=NOW), ca.bundle, 54321)

    assert {p.stat().st_uid for p in [tmp_path / "identity", *(tmp_path / "identity").iterdir()]} == {54321}


def context(folder: Path, leaf: Leaf, bundle: bytes, *, server: bool) -> ssl.SSLContext:
    write_identity(folder, leaf, bundle, os.geteuid())
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = made.maximum_version = ssl.TLSVersion.TLSv1_3
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    made.load_verify_locations(folder / "roots.pem")
    return made


def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both sides over memory, to the end of the server's check; raises SSLError with the first refusal."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    done: set[int] = set()
    for _ in range(20):
        for number, side in enumerate(sides):
            try:
                side.do_handshake()
                done.add(number)
            except ssl.SSLWantReadError:
                continue
        if len(done) == 2:
            return sides[0], sides[1]
    raise AssertionError("the handshake did not end")


def test_two_identities_shake_hands_with_mutual_verification(tmp_path: Path) -> None:
    """TLS 1.3, each sees the other's SPIFFE URI."""
    import time

    ca = CertificateAuthority(now=time.time())
    other = Identity("cluster.local", "default", "client")
    client = context(tmp_path / "c", ca.issue(other, now=time.time()), ca.bundle, server=False)
    server = context(tmp_path / "s", ca.issue(WHO, now=time.time()), ca.bundle, server=True)
    client_side, server_side = handshake(client, server)

    assert client_side.version() == "TLSv1.3"
    assert client_side.getpeercert()["subjectAltName"] == (("URI", str(WHO)),)
    assert server_side.getpeercert()["subjectAltName"] == (("URI", str(other)),)


def test_a_leaf_of_another_authority_is_refused_by_the_server(tmp_path: Path) -> None:
    """Even when it names the right identity."""
    import time

    now = time.time()
    ca, impostor = CertificateAuthority(now=now), CertificateAuthority(now=now)
    client = context(tmp_path / "c", impostor.issue(WHO, now=now), ca.bundle, server=False)
    server = context(tmp_path / "s", ca.issue(WHO, now=now), ca.bundle, server=True)

    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(client, server)


def test_a_foreign_trust_domain_passes_the_chain_but_shows_itself(ca: CertificateAuthority, tmp_path: Path) -> None:
    """The wrong one that tests need: well signed, so that only the identity check can refuse it."""
    foreign = ca.issue(Identity("elsewhere.test", "default", "server"), now=NOW)

    assert verified(tmp_path, foreign, ca.bundle, "sslclient")
    assert b"PRIVATE" not in foreign.cert_pem
    assert str(foreign.identity).startswith("spiffe://elsewhere.test/")
