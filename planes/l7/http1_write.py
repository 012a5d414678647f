"""Heads of HTTP/1 messages as bytes. What would split a message in two for its reader is never written: Bug instead."""

from __future__ import annotations

import operator
from http import HTTPStatus

from planes.l7.http1_fields import TCHAR
from planes.l7.message import Fields, Request, Response
from testbed.errors import Bug

_VISIBLE = bytes(range(0x21, 0x7F)) + bytes(range(0x80, 0x100))
_is_plain = frozenset((b"content-length", b"te", b"transfer-encoding")).isdisjoint
_name_of = operator.itemgetter(0)
_HARMLESS = bytes(set(range(256)) - set(b"\r\n\0"))
_PHRASES = {status.value: status.phrase.encode() for status in HTTPStatus}
_status_lines = {code: b"HTTP/1.1 %d %b" % (code, _PHRASES.get(code, b"")) for code in range(100, 600)}
_starts: dict[tuple[bytes, bytes, bytes], bytes] = {}
"""What was found fit to be written, as `http1_fields` keeps what was found fit to be read."""
_REPEATED_MAX_BYTES = 256
_MEMO_MAX = 2048
_ANTICIPATES_CONTENT = frozenset((b"POST", b"PUT", b"PATCH"))
_DROPPED_TRAILERS = frozenset(
    (b"connection", b"content-length", b"expect", b"host", b"keep-alive", b"proxy-connection", b"te", b"trailer",
     b"transfer-encoding", b"upgrade")
)  # fmt: skip


def _lines(start: bytes, fields: Fields, start_lines: int) -> bytes:
    """`start` (of `start_lines` lines, the last without its end) and the field lines, without the empty one."""
    head = b"\r\n".join([start, *map(b": ".join, fields), b""])
    if len(head.translate(None, _HARMLESS)) != 2 * (len(fields) + start_lines):
        raise Bug(f"CR, LF or NUL in a head to be written: {head[:200]!r}")
    return head


def _declares(fields: Fields, content_length: int | None) -> bool:
    """Whether a field says `content_length`. What would say otherwise is never written."""
    found = False
    for name, value in fields:
        if name == b"content-length":
            if content_length is None or value != b"%d" % content_length:
                raise Bug("the field content-length and the message's content_length differ")
            found = True
        elif name == b"transfer-encoding":
            raise Bug("transfer-encoding among the fields of a message: the codec writes its own")
    return found


def _framing(declared: bool, has_body: bool, content_length: int | None, chunked: bool, silent: bool) -> bytes:
    """The line that says how the message is framed, or that it has no body; empty where that is `declared`, or need not
    be said (`silent`)."""
    if declared:
        if has_body or silent or content_length == 0:
            return b""
        raise Bug(f"content_length {content_length} of a message without a body")
    if has_body:
        if content_length is not None:
            return b"content-length: %d\r\n" % content_length
        return b"transfer-encoding: chunked\r\n" if chunked else b""
    if silent:
        return b""
    if content_length:
        raise Bug(f"content_length {content_length} of a message without a body")
    return b"content-length: 0\r\n"


def _start(method: bytes, path: bytes, authority: bytes) -> bytes:
    """A request's line and its Host."""
    target = authority if method == b"CONNECT" else path
    if not method or not target or (method + target + authority).translate(None, _VISIBLE):
        raise Bug(f"method, target or authority that cannot be written: {method!r} {target!r} {authority!r}")
    start = b"%b %b HTTP/1.1\r\nhost: %b" % (method, target, authority)
    if len(start) <= _REPEATED_MAX_BYTES:
        if len(_starts) >= _MEMO_MAX:
            _starts.clear()
        _starts[method, path, authority] = start
    return start


def write_request(request: Request) -> bytes:
    method = request.method
    key = (method, request.path, request.authority)
    start = _starts.get(key) or _start(*key)
    fields = request.fields
    if request.upgrade:
        fields = [*fields, (b"connection", b"upgrade"), (b"upgrade", request.upgrade)]
    head = _lines(start, fields, 2)
    silent = not request.has_body and request.content_length is None and method not in _ANTICIPATES_CONTENT
    length = request.content_length
    plain = _is_plain(map(_name_of, fields))
    head += _framing(not plain and _declares(fields, length), request.has_body, length, True, silent)
    if not plain and any(name == b"te" for name, _ in fields):
        head += b"connection: te\r\n"  # RFC 9110 10.1.4
    return head + b"\r\n"


def write_response(response: Response, request: Request, *, chunked: bool, close: bool) -> bytes:
    """`chunked`: a body without a length is chunked; else it lasts until the connection's end."""
    status = response.status
    fields = response.fields
    start = _status_lines.get(status) or b"HTTP/1.1 %d " % status
    if status < 200 or status == 204 or (request.method == b"CONNECT" and status < 300):
        fields = [f for f in fields if f[0] != b"content-length"]  # RFC 9110 8.6
        _declares(fields, None)
        if status == 101:
            fields += ((b"connection", b"upgrade"), (b"upgrade", response.upgrade or request.upgrade))
        head = _lines(start, fields, 1)
    else:
        head = _lines(start, fields, 1)
        silent = status == 304 or request.method == b"HEAD"
        length = response.content_length
        declared = not _is_plain(map(_name_of, fields)) and _declares(fields, length)
        head += _framing(declared, response.has_body and not silent, length, chunked, silent)
    return head + (b"connection: close\r\n\r\n" if close and status >= 200 else b"\r\n")


def write_error(status: int) -> bytes:
    """The answer to a breach; static, so that nothing of the peer's bytes is reflected."""
    phrase = _PHRASES[status]
    return b"%b\r\ncontent-type: text/plain\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (
        _status_lines[status], len(phrase), phrase,
    )  # fmt: skip


def write_last_chunk(trailers: Fields | None) -> bytes:
    if not trailers:
        return b"0\r\n\r\n"
    kept = [f for f in trailers if f[0] not in _DROPPED_TRAILERS and not f[0].translate(None, TCHAR)]
    return _lines(b"0", kept, 1) + b"\r\n"
