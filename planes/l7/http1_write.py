"""Heads of HTTP/1 messages as bytes. What would split a message in two for its reader is never written: Bug instead."""

from __future__ import annotations

from http import HTTPStatus

from planes.l7.http1_fields import TCHAR
from planes.l7.message import Fields, Request, Response
from testbed.errors import Bug

_VISIBLE = bytes(range(0x21, 0x7F)) + bytes(range(0x80, 0x100))
_HARMLESS = bytes(set(range(256)) - set(b"\r\n\0"))
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
_status_lines = {code: b"HTTP/1.1 %d %b\r\n" % (code, _PHRASES.get(code, b"")) for code in range(100, 600)}
_ANTICIPATES_CONTENT = frozenset((b"POST", b"PUT", b"PATCH"))
_DROPPED_TRAILERS = frozenset(
    (b"connection", b"content-length", b"expect", b"host", b"keep-alive", b"proxy-connection", b"te", b"trailer",
     b"transfer-encoding", b"upgrade")
)  # fmt: skip


def _lines(start: bytes, fields: Fields, start_lines: int) -> bytes:
    """`start` (of `start_lines` lines) and the field lines, without the empty one."""
    head = b"%b%b\r\n" % (start, b"\r\n".join(map(b": ".join, fields))) if fields else start
    if len(head.translate(None, _HARMLESS)) != 2 * (len(fields) + start_lines):
        raise Bug(f"CR, LF or NUL in a head to be written: {head[:200]!r}")
    if b"\ntransfer-encoding:" in head:
        raise Bug("transfer-encoding among the fields of a message: the codec writes its own")
    return head


def _framed(head: bytes, has_body: bool, content_length: int | None, *, chunked: bool, silent: bool) -> bytes:
    """`head` with its framing field. `silent`: no body, and no field is needed to say so."""
    has_field = b"\ncontent-length:" in head
    if has_field:
        if content_length is None or b"\ncontent-length: %d\r\n" % content_length not in head:
            raise Bug("the field content-length and the message's content_length differ")
        if has_body or silent or content_length == 0:
            return head
        raise Bug(f"content_length {content_length} of a message without a body")
    if has_body:
        if content_length is not None:
            return head + b"content-length: %d\r\n" % content_length
        return head + b"transfer-encoding: chunked\r\n" if chunked else head
    if silent:
        return head
    if content_length:
        raise Bug(f"content_length {content_length} of a message without a body")
    return head + b"content-length: 0\r\n"


def write_request(request: Request) -> bytes:
    method, authority = request.method, request.authority
    target = authority if method == b"CONNECT" else request.path
    if not method or not target or (method + target + authority).translate(None, _VISIBLE):
        raise Bug(f"method, target or authority that cannot be written: {method!r} {target!r} {authority!r}")
    fields = request.fields
    if request.upgrade:
        fields = [*fields, (b"connection", b"upgrade"), (b"upgrade", request.upgrade)]
    head = _lines(b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (method, target, authority), fields, 2)
    silent = not request.has_body and request.content_length is None and method not in _ANTICIPATES_CONTENT
    head = _framed(head, request.has_body, request.content_length, chunked=True, silent=silent)
    if b"\nte:" in head:
        head += b"connection: te\r\n"  # RFC 9110 10.1.4
    return head + b"\r\n"


def write_response(response: Response, request: Request, *, chunked: bool, close: bool) -> bytes:
    """`chunked`: a body without a length is chunked; else it lasts until the connection's end."""
    status = response.status
    fields = response.fields
    start = _status_lines.get(status) or b"HTTP/1.1 %d \r\n" % status
    if status < 200 or status == 204 or (request.method == b"CONNECT" and status < 300):
        fields = [f for f in fields if f[0] != b"content-length"]  # RFC 9110 8.6
        if status == 101:
            fields += ((b"connection", b"upgrade"), (b"upgrade", response.upgrade or request.upgrade))
        head = _lines(start, fields, 1)
    else:
        head = _lines(start, fields, 1)
        silent = status == 304 or request.method == b"HEAD"
        head = _framed(head, response.has_body and not silent, response.content_length, chunked=chunked, silent=silent)
    return head + (b"connection: close\r\n\r\n" if close and status >= 200 else b"\r\n")


def write_error(status: int) -> bytes:
    """The answer to a breach; static, so that nothing of the peer's bytes is reflected."""
    phrase = _PHRASES[status]
    return b"%bcontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (
        _status_lines[status], len(phrase), phrase,
    )  # fmt: skip


def write_last_chunk(trailers: Fields | None) -> bytes:
    if not trailers:
        return b"0\r\n\r\n"
    kept = [f for f in trailers if f[0] not in _DROPPED_TRAILERS and not f[0].translate(None, TCHAR)]
    return _lines(b"0\r\n", kept, 1) + b"\r\n"
