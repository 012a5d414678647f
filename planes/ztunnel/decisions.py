"""What this proxy decides by: view, route and policy behind one small seam, so that the data path has no rules of its own.

`Decisions` is what the path asks; `ViewDecisions` answers from a `MeshView`. `replace_view` changes the answers atomically.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """The workload a proxy acts for."""

    namespace: str
    name: str
    identity: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboundHop:
    """Where a captured connection goes. `kind` is `tcp`, `hbone` or `refuse`."""

    kind: str
    dial: tuple[str, int] = ("", 0)
    authority: str = ""
    expected: frozenset[str] = frozenset()
    reason: str = ""
    flags: str = "-"
    service_host: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of the destination, by the names metrics use."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InboundTarget:
    """`status` 200: go on to `port` of the workload's own address."""

    status: int
    port: int = 0
    reason: str = ""


class Decisions(Protocol):
    def local(self, namespace: str, name: str) -> Local | None: ...
    def baggage(self, namespace: str, name: str) -> str: ...
    def labels(self, namespace: str, name: str) -> Mapping[str, str]: ...
    def hop(self, namespace: str, name: str, destination: tuple[str, int], draw: float) -> OutboundHop: ...
    def target(self, namespace: str, name: str, authority: str, dialled_ip: str) -> InboundTarget: ...
    def denied(
        self, namespace: str, name: str, source_ip: str, port: int, identity: str | None
    ) -> str | None:
        """Why policy denies, or None."""
        ...
