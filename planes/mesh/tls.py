"""Mesh TLS: contexts for an identity's key and certificate, and who the peer proved to be.

TLS 1.3 only, ALPN `h2`, no SNI, no session resumption, peer certificate required in both roles (facts/hbone 1.2).
Names are not checked by the TLS library: the URI SANs are read right after the handshake, before a byte is written.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from testbed.errors import UsageError


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
        return tuple(path.stat().st_mtime_ns for path in (self.certificate, self.key, self.roots))


class IdentityContexts:
    """The client and server contexts of one identity. Renewal makes new ones: a context never forgets a root."""

    def __init__(self, uri: str, files: KeyFiles, keylog: Path | None = None) -> None:
        self.uri = uri
        self.files = files
        self._keylog = keylog
        self._stamp: tuple[int, ...] = ()
        self.client: ssl.SSLContext
        self.server: ssl.SSLContext
        """Who listens takes it anew after a `reload` that says so."""
        self.reload()

    def reload(self) -> bool:
        """Loads the files anew if they changed; False if not. Raises UsageError for files that do not fit.

        What has been shaken hands on stays as it is; handshakes from now on know the new roots and no others.
        """
        try:
            stamp = self.files.stamp()
            if stamp == self._stamp:
                return False
            made = [_context(role, self._keylog) for role in (ssl.PROTOCOL_TLS_CLIENT, ssl.PROTOCOL_TLS_SERVER)]
            for context in made:
                context.load_cert_chain(self.files.certificate, self.files.key)
                context.load_verify_locations(self.files.roots)
        except (OSError, ssl.SSLError) as cause:
            raise UsageError(
                f"identity {self.uri}: certificate {self.files.certificate}, key or roots cannot be loaded ({cause}); "
                "they must be PEM files that belong together"
            ) from cause
        self.client, self.server = made
        # A ticket is never redeemed by a peer of the mesh; not sending it saves two records per handshake.
        self.server.num_tickets = 0
        self._stamp = stamp
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
