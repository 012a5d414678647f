"""What a plane says: which proxies go where, what is captured into them, and what must then be true on the wire.

A `Placement` is data and adds up (`none + x == x`), so hybrid is a sum. Nothing here is applied by the plane itself:
`deploy` writes the files, installs the captures, starts the programs and waits for them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from testbed.model.identity import Identity


class CaptureKind(StrEnum):
    IN_POD = "in-pod"
    """ztunnel: all outbound TCP to 15001, all inbound TCP but 15008 to 15006, mark 0x539 exempt (facts/hbone 2.15)."""
    SIDECAR = "sidecar"
    """Istio's sidecar rules: 15001 and 15006, the proxy's user id exempt (facts/hbone 4.1)."""
    NODE = "node"
    """On the workload's node: all TCP that it sends to 15001 of a proxy in the node's namespace; of what it is sent,
    nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capture:
    """Redirect a workload's traffic into a proxy's ports."""

    workload: str
    kind: CaptureKind
    proxy: str | None = None
    """Name of the proxy: its user id is exempt (sidecar; the deployer gives the ids), its node catches (node)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    """One proxy process.

    It is started as `python -m <program> --config <dir>/config.json` with its folder as its world.
    """

    name: str
    role: str
    """`ztunnel`, `waypoint`, `sidecar`, `gateway`, … or `envoy-<role>`."""
    node: str
    sandbox: str
    """The sandbox it runs in: a node's name (ztunnel), or a workload's (sidecar), or its own (waypoint,
    see `own_address`).
    """
    program: str
    """Dotted module, e.g. `planes.ztunnel`; or `@envoy` for a binary that the deployer resolves."""
    serves: tuple[str, ...]
    """Names of workloads (or services) it acts for."""
    identities: tuple[Identity, ...]
    """Whose keys it is given; the boundary experiments count these."""
    view: dict
    """The mesh as this proxy sees it: ztunnel's LOCAL config shape (`workloads`, `services`, `policies`),
    plain JSON.
    """
    options: dict = field(default_factory=dict)
    """Everything else of config.json: role options, text of other files."""
    own_address: str | None = None
    """A waypoint is a workload of its own: the address it needs in the lab;
    None for proxies that live in others' sandboxes.
    """
    enters: tuple[str, ...] = ()
    """Workloads whose network namespaces are handed to it by descriptor (ztunnel's in-pod model)."""


class Encryption(StrEnum):
    MTLS = "mtls"
    CLEAR = "clear"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """What must be true of traffic from `source` to `destination` on a segment: workloads, proxies with an address of
    their own, or nodes, for what passes a waypoint is two claims, a leg each.

    `segment` is `wire` (between nodes, and from a workload's veth to its node) or `local` (inside a workload's
    sandbox).
    """

    source: str
    destination: str
    segment: str
    encryption: Encryption
    hbone: bool = False
    """CONNECT to port 15008 with `authority`."""
    authority: str | None = None
    client_identity: Identity | None = None
    server_identity: Identity | None = None
    alpn: tuple[str, ...] = ()
    """What the ClientHello must offer, in this order, others between them allowed; empty: not to be judged."""
    alpn_http2: tuple[str, ...] = ()
    """The same of connections for HTTP/2; empty: as `alpn`."""
    sni: str | None = None
    """What the ClientHello must name; None: not to be judged."""
    service: str | None = None
    """The service whose calls this is true of, at `port`; None: of every call between the two."""
    port: int | None = None
    stops: tuple[str, ...] = ()
    """Where such a call stops, this leg being one of its legs: client, proxies with an address of their own, server.
    A proxy in its node's namespace goes by the node's name. Empty: source and destination."""

    @property
    def call(self) -> tuple[str, ...]:
        return self.stops or (self.source, self.destination)


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    plane: str
    proxies: tuple[Proxy, ...] = ()
    captures: tuple[Capture, ...] = ()
    claims: tuple[Claim, ...] = ()

    def __add__(self, other: Placement) -> Placement:
        return Placement(
            plane=self.plane,
            proxies=self.proxies + other.proxies,
            captures=self.captures + other.captures,
            claims=self.claims + other.claims,
        )
