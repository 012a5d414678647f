"""What each kind of workload may expect of each other: protection, identity, enforcement. Data, from facts/hbone 4.4.

The tests hold every cell against what happens on the wire and at the servers; docs/hybrid.md prints it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields


@dataclass(frozen=True, slots=True)
class Cell:
    client: str
    server: str
    """A kind, or `sidecar*` for one that listens on HBONE, too."""
    wire: str
    """Between the nodes, called by a service without a waypoint: `clear`, `mtls` (Istio's own) or `hbone`."""
    identity: str
    """What the server's side sees of the client: `client`, `none`, or `-` where nobody looks."""
    strict: str
    """The call under STRICT: `passes` or `refused`."""
    routes: str
    """Who applies a VirtualService of the called service: `client` (its sidecar) or `nobody`."""
    l4: str
    """Who enforces an AuthorizationPolicy that selects the server: `sidecar`, `ztunnel` or `nobody`."""
    l7: str
    """The same with a path in it. A ztunnel drops a DENY that asks for nothing else."""
    waypoint: str
    """A service's waypoint, its routes and policies: `enforces` or `bypassed`."""
    behind: str
    """What the server's side sees through the waypoint: `waypoint`, `none`, `-`; `client` where it is bypassed."""


MATRIX = (
    Cell("sidecar", "sidecar", "mtls", "client", "passes", "client", "sidecar", "sidecar", "bypassed", "client"),
    Cell("sidecar", "sidecar*", "mtls", "client", "passes", "client", "sidecar", "sidecar", "bypassed", "client"),
    Cell("sidecar", "ambient", "hbone", "client", "passes", "client", "ztunnel", "nobody", "bypassed", "client"),
    Cell("sidecar", "none", "clear", "-", "passes", "client", "nobody", "nobody", "bypassed", "-"),
    Cell("ambient", "sidecar", "clear", "none", "refused", "nobody", "sidecar", "sidecar", "enforces", "none"),
    Cell("ambient", "sidecar*", "hbone", "client", "passes", "nobody", "sidecar", "sidecar", "enforces", "waypoint"),
    Cell("ambient", "ambient", "hbone", "client", "passes", "nobody", "ztunnel", "nobody", "enforces", "waypoint"),
    Cell("ambient", "none", "clear", "-", "passes", "nobody", "nobody", "nobody", "enforces", "-"),
    Cell("none", "sidecar", "clear", "none", "refused", "nobody", "sidecar", "sidecar", "bypassed", "none"),
    Cell("none", "sidecar*", "clear", "none", "refused", "nobody", "sidecar", "sidecar", "bypassed", "none"),
    Cell("none", "ambient", "clear", "none", "refused", "nobody", "ztunnel", "nobody", "bypassed", "none"),
    Cell("none", "none", "clear", "-", "passes", "nobody", "nobody", "nobody", "bypassed", "-"),
)


def markdown(cells: Iterable[Cell] = MATRIX) -> str:
    names = [f.name for f in fields(Cell)]
    lines = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    lines += [f"| {' | '.join(getattr(cell, name) for name in names)} |" for cell in cells]
    return "\n".join(lines) + "\n"
