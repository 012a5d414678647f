"""Which identities' certificates this ztunnel holds: of the workloads on its node, and of no other (facts/hbone 2.9).

A certificate is fetched before its first workload opens its listeners, and forgotten once the last one has left: who
takes the process over then finds nothing to speak as. Where the files are is in config.json, which the deployer writes
anew before a workload joins.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from pathlib import Path

from planes.mesh import scrub
from planes.mesh.tls import IdentityContexts, KeyFiles
from testbed.errors import PeerError, TestbedError


class Certificates:
    def __init__(self, files: Callable[[], dict[str, KeyFiles]], keylog: Path | None = None) -> None:
        """`files` reads what the deployer gives now, by SPIFFE URI."""
        self._files = files
        self._keylog = keylog
        self._held: dict[str, IdentityContexts] = {}

    @property
    def held(self) -> list[str]:
        return sorted(self._held)

    def fetch(self, uri: str) -> IdentityContexts:
        """The contexts of `uri`, loaded if they are not here yet. Raises PeerError, UsageError."""
        held = self._held.get(uri)
        if held is None:
            given = self._files()
            if uri not in given:
                raise PeerError(f"no certificate for {uri}; the deployer gave {', '.join(given) or 'none'}")
            held = self._held[uri] = IdentityContexts(uri, given[uri], self._keylog)
            _leave_one_copy([given[uri]])
        return held

    def fetch_all(self) -> None:
        """All that the deployer gives."""
        given = self._files()
        self._held |= {uri: IdentityContexts(uri, files, self._keylog) for uri, files in given.items()}
        _leave_one_copy(given.values())

    def keep_only(self, wanted: Collection[str]) -> bool:
        """Forgets the others; whether there were any. A key is gone once nothing that was made with it is left."""
        forgotten = set(self._held).difference(wanted)
        for uri in forgotten:
            del self._held[uri]
        return bool(forgotten)

    def reload(self, warn: Callable[[str], None]) -> set[str]:
        """Those that changed. What cannot be read stays as it was."""
        renewed: set[str] = set()
        for uri, contexts in self._held.items():
            try:
                if contexts.reload():
                    renewed.add(uri)
            except TestbedError as cause:
                warn(f"renewal: {cause}; the old certificate stays")
        _leave_one_copy(self._held[uri].files for uri in renewed)
        return renewed


def _leave_one_copy(loaded: Iterable[KeyFiles]) -> None:
    """Of the keys in these files: the one that OpenSSL works with, and clears."""
    wanted: list[bytearray] = []
    for files in loaded:
        with suppress(OSError):  # gone again, or being replaced: the next look loads it anew
            wanted += scrub.secrets(files.key)
    scrub.erase(wanted)
