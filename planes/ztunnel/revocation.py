"""Peers whose certificates were taken back: refused at their handshake, cut where they are connected (facts/hbone 1.2).

One file, looked at as the view is. Without one, or before there is one, nobody is on it; one that cannot be read
changes nothing but the log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from planes.mesh import crl
from planes.mesh.metrics import Reporter
from planes.mesh.session import HboneSession
from planes.mesh.watch import Stamp

REASON = "the certificate was revoked"


class Revocation:
    def __init__(self, file: Path, warn: Callable[[str], None]) -> None:
        self.file = file
        self._warn = warn
        self._revoked: frozenset[crl.Key] = frozenset()
        self.rejected: Counter[Reporter] = Counter()
        """Connections, by who refused or cut them."""

    def stamp(self) -> Stamp:
        try:
            status = self.file.stat()
        except FileNotFoundError:
            return None
        return status.st_mtime_ns, status.st_ino

    def load(self) -> None:
        try:
            self._revoked = crl.revoked(self.file.read_bytes())
        except FileNotFoundError:
            self._revoked = frozenset()
        except (OSError, ValueError) as cause:
            self._warn(f"{self.file}: {cause}; the list of revoked certificates stays as it was")

    def refuses(self, certificate: bytes) -> bool:
        """Asked once a handshake, with the peer's certificate in DER; one that cannot be read is nobody's friend."""
        try:
            return bool(self._revoked) and crl.key_of(certificate) in self._revoked
        except ValueError:
            return True

    def cut(self, sessions: Iterable[HboneSession]) -> None:
        """Those whose peer is on the list by now, with all their tunnels, at once."""
        for session in list(sessions):
            if self.refuses(session.peer_certificate):
                self.rejected[Reporter.SOURCE if session.connection.client else Reporter.DESTINATION] += 1
                session.cut(f"connection closed: {REASON}")

    def render(self) -> str:
        return "".join(
            f'istio_crl_policy_rejections_total{{reporter="{reporter}"}} {count}\n'
            for reporter, count in sorted(self.rejected.items())
        )
