"""Heads as they leave the proxy: what Envoy adds (request id, proto, attempt count, trace), what routes edit. Pure."""

from __future__ import annotations

from collections.abc import Callable

from planes.l7.decision import Decision
from planes.l7.message import Fields, Request, Response, field

REQUEST_ID = b"x-request-id"


def request_id(request: Request) -> bytes | None:
    return field(request.fields, REQUEST_ID)


def outgoing(request: Request, decision: Decision, *, attempt: int, draw: Callable[[], float]) -> Request:
    """A request for the upstream; the one received stays as it was, for another attempt."""
    fields = request.fields
    has_id = has_proto = False
    for name, _ in fields:
        if name == REQUEST_ID:
            has_id = True
        elif name == b"x-forwarded-proto":
            has_proto = True
    added: Fields = []
    if not has_proto:
        added.append((b"x-forwarded-proto", request.scheme))
    if not has_id:
        added.append((REQUEST_ID, uuid4(draw)))
    added.append((b"x-envoy-attempt-count", b"%d" % attempt))
    fields = fields + added
    for edit in decision.request_edits:
        fields = edit.apply(fields)
    return Request(
        request.method, decision.authority or request.authority, decision.path or request.path, fields,
        scheme=request.scheme, version=request.version, has_body=request.has_body,
        content_length=request.content_length, upgrade=request.upgrade, expects_continue=request.expects_continue,
    )  # fmt: skip


def incoming(response: Response, edits: tuple) -> Response:
    fields = response.fields
    for edit in edits:
        fields = edit.apply(fields)
    return Response(
        response.status, fields, version=response.version, has_body=response.has_body,
        content_length=response.content_length, upgrade=response.upgrade,
    )  # fmt: skip


def uuid4(draw: Callable[[], float]) -> bytes:
    """RFC 9562, version 4, of three draws in [0, 1)."""
    a, b, c = int(draw() * (1 << 48)), int(draw() * (1 << 32)), int(draw() * (1 << 42))
    return b"%08x-%04x-4%03x-%04x-%012x" % (
        a >> 16, a & 0xFFFF, b & 0xFFF, 0x8000 | (b >> 12) & 0x3FFF, (c << 6 | b >> 26) & 0xFFFFFFFFFFFF,
    )  # fmt: skip
