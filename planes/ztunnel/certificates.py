"""Which identities' certificates this ztunnel holds: of the workloads on its node, and of no other (facts/hbone 2.9).

A certificate is fetched before its first workload opens its listeners, and forgotten once the last one has left: who
takes the process over then finds nothing to speak as. Where the files are is in config.json, which the deployer writes
anew before a workload joins.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from planes.mesh import scrub
from planes.mesh.tls import IdentityContexts, KeyFiles
from testbed.errors import PeerError, TestbedError


class Certificates:
    def __init__(
        self,
        files: Callable[[], dict[str, KeyFiles]],
        keylog: Path | None = None,
        *,
        scrubbed: Callable[[Iterator[int]], object] = sum,
    ) -> None:
        """`files` reads what the deployer gives now, by SPIFFE URI; `scrubbed` takes all steps of `scrub.sweep`, at
        once or one by one."""
        self._files = files
        self._keylog = keylog
        self._scrubbed = scrubbed
        self._held: dict[str, IdentityContexts] = {}
        self._secrets: list[bytearray] = []
        """Of keys that have been loaded and not yet been looked for."""

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
            held = self._held[uri] = self._loaded(uri, given[uri])
            self._leave_one_copy()
        return held

    def fetch_all(self) -> None:
        """All that the deployer gives."""
        given = self._files()
        self._held |= {uri: self._loaded(uri, files) for uri, files in given.items()}
        self._leave_one_copy()

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
        self._leave_one_copy()
        return renewed

    def _loaded(self, uri: str, files: KeyFiles) -> IdentityContexts:
        return IdentityContexts(uri, files, self._keylog, spent=self._spent)

    def _spent(self, text: bytearray) -> None:
        self._secrets += scrub.secrets(text)

    def _leave_one_copy(self) -> None:
        """Of the keys that have been loaded: the one that OpenSSL works with, and clears."""
        if self._secrets:
            wanted, self._secrets = self._secrets, []
            self._scrubbed(scrub.sweep(wanted))
