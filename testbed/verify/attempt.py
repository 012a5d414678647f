"""What a probe is asked to try, and what it tells of each try. Values, and their reading from JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from testbed.errors import UsageError

KINDS = ("tcp", "http", "http2", "tls", "mtls", "hbone")
MAX_TIMES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One thing to try, `times` over `connections`."""

    name: str
    kind: str
    """`tcp`: send, read as much back. `http`: a request by HTTP/1.1. `http2`: one by HTTP/2 without TLS. `tls`: shake
    hands. `mtls`: a request inside TLS, as between sidecars. `hbone`: CONNECT over h2 over TLS."""
    address: str
    port: int
    times: int = 1
    connections: int = 1
    timeout_s: float = 3.0
    canary: str = ""
    """Goes into `x-canary` and into the body or payload."""
    path: str = "/"
    method: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    lines: tuple[tuple[str, str], ...] = ()
    """http: further lines of the head, each by itself, of one name too."""
    payload: str = ""
    """tcp, hbone with inner `tcp`: what is sent before the canary."""
    banner: bool = False
    """tcp: the server speaks first; its line is read before anything is sent."""
    authority: str = ""
    """hbone: what CONNECT asks for, `10.0.2.2:8080`."""
    connect_headers: dict[str, str] = field(default_factory=dict)
    """hbone: further headers of the CONNECT, such as `baggage`."""
    inner: str = "http"
    """hbone: what goes through the opened stream: `http`, `tcp` or `none`."""
    cert: str | None = None
    key: str | None = None
    ca: str | None = None
    """Files. No `cert`: none is offered. No `ca`: the server's is not checked (its identity is still told)."""
    server_name: str | None = None
    alpn: tuple[str, ...] = ("h2",)


@dataclass(slots=True, kw_only=True)
class Try:
    """What happened once. Empty or None: it did not come to that."""

    connected: bool = False
    """TCP's handshake was answered; under capture the proxy answers it, so this alone proves nothing."""
    handshake: str = ""
    """`done`, `failed` (we refused theirs, or no TLS came back), `refused` (the peer sent an alert or closed)."""
    tls: str = ""
    """Version and cipher as negotiated."""
    peer_identity: str | None = None
    """First URI of the server certificate's subjectAltName, also when it was not verified."""
    connect_status: int | None = None
    status: int | None = None
    bytes_received: int = 0
    echoed: bool = False
    """tcp: what came back is what was sent."""
    answered_by: str | None = None
    """`x-workload` of the answer."""
    seen_as: str | None = None
    """`x-peer-address` of the answer: whom the application saw calling."""
    error: str = ""
    took_ms: float = 0.0


def parse_attempts(text: str) -> list[Attempt]:
    """Raises UsageError naming the attempt and the field."""
    try:
        items = json.loads(text)
        attempts = [Attempt(**{**item, "alpn": tuple(item.get("alpn", ("h2",)))}) for item in items]
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"probe: the attempts are not a JSON list of attempts: {error}") from error
    for attempt in attempts:
        where = f"probe: attempt {attempt.name!r}"
        if attempt.kind not in KINDS:
            raise UsageError(f"{where}: kind {attempt.kind!r} is not known; known: {', '.join(KINDS)}")
        if not 1 <= attempt.times <= MAX_TIMES or not 1 <= attempt.connections <= attempt.times:
            raise UsageError(f"{where}: times must be 1..{MAX_TIMES}, connections 1..times")
        if attempt.kind == "hbone" and (not attempt.authority or attempt.inner not in ("http", "tcp", "none")):
            raise UsageError(f"{where}: hbone needs an authority, and inner is http, tcp or none")
        if (attempt.cert is None) != (attempt.key is None):
            raise UsageError(f"{where}: cert and key go together")
    return attempts
