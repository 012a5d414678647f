"""What becomes of one request, as a value: forwarded, passed through, or answered on the spot. Pure."""

from __future__ import annotations

from enum import StrEnum

from planes.l7.edit import FieldEdit
from planes.l7.message import Fields, Request
from planes.l7.retry import DEFAULT as DEFAULT_RETRY
from planes.l7.retry import RetryPolicy
from planes.l7.view import Cluster
from testbed.model.traffic import GRPC_CODES, Fault


class Kind(StrEnum):
    FORWARD = "forward"
    PASSTHROUGH = "passthrough"
    """To the connection's original destination, by a host nobody knows."""
    RESPOND = "respond"


class Decision:
    """What becomes of one request. Shared between requests where nothing in it is theirs: do not change it."""

    __slots__ = (
        "authority", "body", "cluster", "delay_s", "fields", "flag", "kind", "mirrors", "path", "request_edits",
        "response_edits", "retry", "route", "status", "timeout_s",
    )  # fmt: skip

    def __init__(
        self,
        kind: Kind,
        *,
        cluster: Cluster | None = None,
        route: str = "",
        status: int = 0,
        body: bytes = b"",
        fields: Fields | None = None,
        flag: str = "",
    ) -> None:
        self.kind = kind
        self.cluster = cluster
        """None unless FORWARD."""
        self.route = route
        """Its name, for logs; `default` where no resource says anything."""
        self.status = status
        self.body = body
        self.fields: Fields = fields or []
        """With `status` and `body` the answer of RESPOND."""
        self.flag = flag
        """Envoy's response flag: NR (no route), NC (no cluster), FI (fault injected), DI beside a delay."""
        self.path: bytes | None = None
        """Instead of the request's, if rewritten."""
        self.authority: bytes | None = None
        self.timeout_s: float | None = None
        """Of the whole, from the request's last byte to the answer's; None is none."""
        self.retry: RetryPolicy | None = None
        self.request_edits: tuple[FieldEdit, ...] = ()
        self.response_edits: tuple[FieldEdit, ...] = ()
        self.mirrors: tuple[Cluster, ...] = ()
        """Send a copy to each, authority with `-shadow` (see `shadow_authority`), answers thrown away."""
        self.delay_s = 0.0
        """An injected delay, before anything else is done; no timeout covers it."""

    def copy(self) -> Decision:
        new = Decision(self.kind, cluster=self.cluster, route=self.route, status=self.status, body=self.body)
        new.fields, new.flag, new.path, new.authority = self.fields, self.flag, self.path, self.authority
        new.timeout_s, new.retry = self.timeout_s, self.retry
        new.request_edits, new.response_edits = self.request_edits, self.response_edits
        new.mirrors, new.delay_s = self.mirrors, self.delay_s
        return new

    def __repr__(self) -> str:
        what = self.cluster or self.status or "original destination"
        return f"<Decision {self.kind} {what} by {self.route or 'no route'}>"


NOT_FOUND = Decision(Kind.RESPOND, status=404, flag="NR")
BLACK_HOLE = Decision(Kind.RESPOND, status=502, route="block_all")
PASSTHROUGH = Decision(Kind.PASSTHROUGH, route="allow_any")
PASSTHROUGH.retry = DEFAULT_RETRY


def aborted(fault: Fault, decision: Decision, delay_s: float, request: Request) -> Decision:
    """Envoy's fault filter; a gRPC status is told as such to gRPC clients."""
    body, fields, status = b"fault filter abort", [(b"content-type", b"text/plain")], fault.abort_status or 503
    if fault.abort_grpc_status is not None:
        number = grpc_code(fault.abort_grpc_status)
        body, status = b"", 200
        fields = [(b"content-type", b"application/grpc"), (b"grpc-status", b"%d" % number),
                  (b"grpc-message", b"fault filter abort")]  # fmt: skip
    answer = Decision(Kind.RESPOND, status=status, body=body, fields=fields, route=decision.route, flag="FI")
    answer.delay_s = delay_s
    answer.response_edits = decision.response_edits
    return answer


def grpc_code(name: str) -> int:
    """Raises ValueError for a name that is none; numbers are taken as they are."""
    return int(name) if name.isdigit() else GRPC_CODES.index(name.upper())


def shadow_authority(authority: bytes) -> bytes:
    """Envoy's mark of a mirrored request: `-shadow` after the host, before the port."""
    host, colon, port = authority.rpartition(b":")
    if colon and port.isdigit():
        return host + b"-shadow:" + port
    return authority + b"-shadow"
