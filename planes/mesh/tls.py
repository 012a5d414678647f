"""Mesh TLS: contexts for an identity's key and certificate, and who the peer proved to be.

TLS 1.3 only, ALPN `h2`, no SNI, no session resumption, peer certificate required in both roles (facts/hbone 1.2).
Names are not checked by the TLS library: the URI SANs are read right after the handshake, before a byte is written.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from planes.mesh import scrub
from testbed.errors import UsageError

SIDECAR_SUITES = "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-RSA-AES256-GCM-SHA384:" + (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256"
)
"""Of TLS 1.2, as Istio's sidecars take them (facts/hbone 4.2)."""


READ_AGAIN = 5
"""Times that files are read which are replaced meanwhile; each takes a tenth of a millisecond, a renewal far longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFiles:
    """PEM files of one identity."""

    certificate: Path
    """Leaf, then intermediates."""
    key: Path
    """PKCS#8."""
    roots: Path

    def stamp(self) -> tuple[int, ...]:
        """Changes when the files do; what renewal watches."""
        seen = [path.stat() for path in (self.certificate, self.key, self.roots)]
        return tuple(number for one in seen for number in (one.st_mtime_ns, one.st_ino))

    def read(self) -> Credentials:
        """All three as of one moment, if there is one: what is replaced meanwhile is read again. Raises OSError."""
        tries = READ_AGAIN
        while True:
            tries -= 1
            try:
                stamp = self.stamp()
                key = _text(self.key)
                made = Credentials(
                    certificate=self.certificate.read_bytes(), key=key, roots=self.roots.read_bytes(), stamp=stamp
                )
                if not tries or stamp == self.stamp():
                    return made
            except FileNotFoundError:  # between two generations
                if not tries:
                    raise


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """PEM texts of one identity."""

    certificate: bytes
    key: bytearray = field(repr=False)
    roots: bytes
    stamp: tuple[int, ...]

    def load(self, context: ssl.SSLContext) -> None:
        """Raises ssl.SSLError or ValueError for what does not fit together."""
        # OpenSSL as Python has it takes a key from a file only; this one is nowhere but in memory.
        memory = os.memfd_create("identity", os.MFD_CLOEXEC)
        try:
            os.writev(memory, (self.certificate, b"\n", self.key))
            context.load_cert_chain(f"/proc/self/fd/{memory}")
        finally:
            os.close(memory)
        context.load_verify_locations(cadata=self.roots.decode("ascii"))


def _text(file: Path) -> bytearray:
    """Whole, and in no other place of this process."""
    with open(file, "rb", buffering=0) as source:
        text = bytearray(os.fstat(source.fileno()).st_size)
        source.readinto(text)
    return text


class IdentityContexts:
    """The client and server contexts of one identity. Renewal makes new ones: a context never forgets a root."""

    def __init__(
        self, uri: str, files: KeyFiles, keylog: Path | None = None, *, spent: Callable[[bytearray], None] = scrub.clear
    ) -> None:
        """`spent` is given the key's text once it has been loaded, and leaves nothing of it."""
        self.uri = uri
        self.files = files
        self._keylog = keylog
        self._spent = spent
        self._stamp: tuple[int, ...] = ()
        self._more: dict[tuple[int, tuple[str, ...]], ssl.SSLContext] = {}
        self.client: ssl.SSLContext
        self.server: ssl.SSLContext
        """Who listens takes it anew after a `reload` that says so."""
        self.reload()

    def client_for(self, alpn: tuple[str, ...]) -> ssl.SSLContext:
        """For mTLS that is not HBONE: a sidecar's, with these protocols offered."""
        return self._for(ssl.PROTOCOL_TLS_CLIENT, alpn)

    def server_for(self, alpn: tuple[str, ...]) -> ssl.SSLContext:
        return self._for(ssl.PROTOCOL_TLS_SERVER, alpn)

    def _for(self, role: int, alpn: tuple[str, ...]) -> ssl.SSLContext:
        held = self._more.get((role, alpn))
        if held is None:
            held = _server_context(self._keylog) if role == ssl.PROTOCOL_TLS_SERVER else _context(role, self._keylog)
            if role == ssl.PROTOCOL_TLS_SERVER:  # Istio's sidecars take 1.2; what they offer each other is 1.3
                held.minimum_version = ssl.TLSVersion.TLSv1_2
                held.set_ciphers(SIDECAR_SUITES)
            held.set_alpn_protocols(list(alpn))
            try:
                self._load(self.files.read(), held)
            except (OSError, ssl.SSLError, ValueError) as cause:
                raise self._unfit(cause) from cause
            self._more[role, alpn] = held
        return held

    def _load(self, held: Credentials, *contexts: ssl.SSLContext) -> None:
        try:
            for context in contexts:
                held.load(context)
        finally:
            self._spent(held.key)

    def _unfit(self, cause: Exception) -> UsageError:
        return UsageError(
            f"identity {self.uri}: certificate {self.files.certificate}, key or roots cannot be loaded ({cause}); "
            "they must be PEM files that belong together"
        )

    def reload(self) -> bool:
        """Loads the files anew if they changed; False if not. Raises UsageError for files that do not fit.

        What has been shaken hands on stays as it is; handshakes from now on know the new roots and no others.
        """
        try:
            if self.files.stamp() == self._stamp:
                return False
        except OSError:
            pass  # between two generations, or gone: reading says which
        try:
            client, server = _context(ssl.PROTOCOL_TLS_CLIENT, self._keylog), _server_context(self._keylog)
            held = self.files.read()
            self._load(held, client, server)
        except (OSError, ssl.SSLError, ValueError) as cause:
            raise self._unfit(cause) from cause
        self.client, self.server = client, server
        self._more.clear()
        self._stamp = held.stamp
        return True


def _context(protocol: int, keylog: Path | None) -> ssl.SSLContext:
    # Not create_default_context: it brings the system's roots and, in newer Pythons, stricter X.509 flags.
    context = ssl.SSLContext(protocol)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["h2"])
    context.options |= ssl.OP_NO_TICKET
    if keylog is not None:
        context.keylog_filename = str(keylog)
        # CPython's key log callback looks its own socket object up in the SSL, which a transport that calls OpenSSL
        # directly does not set: with a key log the stdlib's objects are used.
        context._aiofastnet_force_fallback_ssl = True  # type: ignore[attr-defined]
    return context


def _server_context(keylog: Path | None) -> ssl.SSLContext:
    context = _context(ssl.PROTOCOL_TLS_SERVER, keylog)
    # A ticket is never redeemed by a peer of the mesh; not sending it saves two records per handshake.
    context.num_tickets = 0
    return context


def spiffe_uris(certificate: dict | None) -> tuple[str, ...]:
    """URI SANs of `ssl_object.getpeercert()`, in order."""
    sans: Iterable[tuple[str, str]] = (certificate or {}).get("subjectAltName", ())
    return tuple(value for kind, value in sans if kind == "URI")


def trust_domain(uri: str) -> str:
    """The trust domain of a SPIFFE URI; empty when it is none."""
    scheme, _, rest = uri.partition("://")
    return rest.partition("/")[0] if scheme == "spiffe" else ""


def server_refusal(uris: tuple[str, ...], own_trust_domain: str) -> str | None:
    """Why a ztunnel server turns a client away: only the trust domain counts; the rest is policy's, later."""
    if any(trust_domain(uri) == own_trust_domain for uri in uris):
        return None
    return f"client identity {', '.join(uris) or 'missing'} is not of trust domain {own_trust_domain}"


def client_refusal(uris: tuple[str, ...], expected: frozenset[str]) -> str | None:
    """Why a ztunnel client turns a server away: one URI SAN must equal one expected identity exactly."""
    if not expected.isdisjoint(uris):
        return None
    wanted = ", ".join(sorted(expected)) or "none"
    return f"server identity {', '.join(uris) or 'missing'} is not expected (expected: {wanted})"
