"""Heads of HTTP/1 messages, read strictly: pure functions over whole heads.

Everything that two parsers could read differently is refused rather than mended (RFC 9112 11.2): bare CR or LF, NUL and
other controls, folded lines, space before the colon, more than one Host or Content-Length, Content-Length beside
Transfer-Encoding, any transfer coding but one `chunked`. What is lenient: an empty reason phrase, empty lines before a
request line.

Own code rather than llhttp: that one is no faster once names are looked at, cannot pause between pipelined messages
and refuses methods that it does not know (docs/http-conformance.md has the figures).
"""

from __future__ import annotations

import re
from typing import TypeVar

from planes.l7.codec import Breach
from planes.l7.message import Fields, Request, Response

HEAD_MAX_BYTES = 64 * 1024
"""Envoy's default is 60 KiB, nginx's 32, Node's 16."""
START_LINE_MAX_BYTES = 32 * 1024
FIELDS_MAX = 100
"""Envoy's default."""
_LENGTH_DIGITS_MAX = 18
"""Below 2**63, as every peer's signed 64 bits hold."""
_MEMO_MAX = 2048

TCHAR = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_TEXT = b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100))
"""What a line may consist of: `_TEXT` taken away, a well-formed head leaves its line ends only."""
_TARGET = bytes(set(range(0x21, 0x7F)) - {ord("#")})

_METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT", b"TRACE"))

_AUTHORITY = re.compile(
    rb"(?P<host>\[[0-9A-Fa-f:.]{2,45}\]|(?:[A-Za-z0-9\-._~!$&'()*+,;=]|%[0-9A-Fa-f]{2})*)(?::(?P<port>[0-9]{0,5}))?"
)
_ABSOLUTE = re.compile(rb"(?P<scheme>(?i:https?))://(?P<authority>[^/?]*)(?P<path>.*)", re.DOTALL)
_VERSION = re.compile(rb"HTTP/([0-9])\.([0-9])")
_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) ([1-5][0-9]{2})(?: .*)?", re.DOTALL)

_SPECIAL = frozenset(
    (b"connection", b"content-length", b"expect", b"host", b"http2-settings", b"keep-alive", b"proxy-connection", b"te",
     b"transfer-encoding", b"upgrade")
)  # fmt: skip
_NOT_NAMEABLE = _SPECIAL | {b"cache-control", b"close"}
"""Naming these in Connection takes nothing away: each has its own rule, or is meant for all (RFC 9110 7.6.1)."""

_REPEATED = frozenset(
    (b"accept", b"accept-encoding", b"accept-language", b"cache-control", b"connection", b"content-length",
     b"content-type", b"expect", b"host", b"server", b"te", b"transfer-encoding", b"upgrade", b"user-agent", b"vary",
     b"via", b"x-envoy-attempt-count", b"x-forwarded-proto")
)  # fmt: skip
"""Fields whose whole lines come again and again; lines of others (ids, dates, secrets) are not worth remembering."""
_REPEATED_MAX_BYTES = 160

# What peers have sent and was found valid. All are bounded, for the peers choose what is in them; the pure results
# stay true, so one memo serves all connections.
_ordinary_lines: dict[bytes, tuple[bytes, bytes]] = {}
_special_lines: dict[bytes, tuple[bytes, bytes]] = {}
_names: dict[bytes, bytes] = {}
_request_lines: dict[bytes, tuple[bytes, bytes, str]] = {}
_status_lines: dict[bytes, tuple[int, str]] = {}
_authorities: dict[bytes, bool] = {}
_connections: dict[bytes, tuple[bool, bool, bool, frozenset[bytes]]] = {}

K = TypeVar("K")
V = TypeVar("V")


def _remember(memo: dict[K, V], key: K, value: V) -> V:
    if len(memo) >= _MEMO_MAX:
        memo.clear()
    memo[key] = value
    return value


def _name(spelt: bytes) -> bytes:
    """The lower-case name, remembered; raises Breach for what is no token."""
    if not spelt or spelt.translate(None, TCHAR):
        if spelt[:1] in (b" ", b"\t"):
            raise Breach(400, "folded field line")
        raise Breach(400, "space before a colon" if spelt[-1:] in (b" ", b"\t") else "invalid field name")
    lower = spelt.lower()
    return _remember(_names, spelt, lower) if len(spelt) < 64 else lower


def read_fields(lines: list[bytes], text: bytes | None = None) -> tuple[Fields, Fields]:
    """Field lines: those that pass, and those with a meaning for HTTP/1 itself (Content-Length is in both).

    `text`: where `lines` and a start line come from, if its control characters have not been looked for yet. That is
    done once a line is met that is not remembered.
    """
    if len(lines) > FIELDS_MAX:
        raise Breach(431, f"more than {FIELDS_MAX} fields")
    fields: Fields = []
    special: Fields = []
    ordinary = _ordinary_lines.get
    for line in lines:
        read = ordinary(line)
        if read is not None:
            fields.append(read)
            continue
        read = _special_lines.get(line)
        if read is None:
            if text is not None:
                check_controls(text, len(lines))
                text = None
            name, colon, value = line.partition(b":")
            if not colon:
                raise Breach(400, "folded field line" if line[:1] in (b" ", b"\t") else "field line without a colon")
            lower = _names.get(name) or _name(name)
            value = value.strip()  # of white space, only SP and HTAB are left in a checked text
            if lower == b"content-length" and value.isdigit():
                value = value.lstrip(b"0") or b"0"  # one spelling, for what is declared is compared with it
            read = (lower, value)
            is_special = lower in _SPECIAL
            if lower in _REPEATED and len(line) <= _REPEATED_MAX_BYTES:
                _remember(_special_lines if is_special else _ordinary_lines, line, read)
            if not is_special:
                fields.append(read)
                continue
        special.append(read)
        if read[0] == b"content-length":
            fields.append(read)
    return fields, special


def check_controls(text: bytes, line_ends: int) -> None:
    """Raises Breach unless that many CRLF are the only controls in it, tabs apart."""
    if len(text.translate(None, _TEXT)) != 2 * line_ends:
        raise Breach(400, "bare CR or LF, NUL or another control character")


def split_lines(text: bytes) -> list[bytes]:
    """Raises Breach unless CRLF are the only controls in it, tabs apart."""
    lines = text.split(b"\r\n")
    check_controls(text, len(lines) - 1)
    return lines


def read_trailers(text: bytes) -> Fields:
    """Those a recipient may see: never framing, routing or connection fields (RFC 9110 6.5.1)."""
    return [f for f in read_fields(split_lines(text))[0] if f[0] not in (b"content-length", b"trailer")]


def _list_members(value: bytes) -> list[bytes]:
    return [member for part in value.lower().split(b",") if (member := part.strip())]


def _read_connection(value: bytes) -> tuple[bool, bool, bool, frozenset[bytes]]:
    """Of a Connection field: close, keep-alive, upgrade, and which fields go no further (RFC 9110 7.6.1)."""
    options = frozenset(_list_members(value))
    read = (b"close" in options, b"keep-alive" in options, b"upgrade" in options, options - _NOT_NAMEABLE)
    return _remember(_connections, value, read) if len(value) <= _REPEATED_MAX_BYTES else read


def _content_length(before: int | None, value: bytes) -> int:
    if before is not None:
        raise Breach(400, "more than one Content-Length")
    if not value.isdigit() or len(value) > _LENGTH_DIGITS_MAX:  # isdigit of bytes knows ASCII only
        raise Breach(400, "invalid Content-Length")
    return int(value)


def _check_coding(coding: bytes, content_length: int | None, minor: str) -> None:
    codings = _list_members(coding)
    if minor == "1.0":
        raise Breach(400, "Transfer-Encoding in HTTP/1.0")  # RFC 9112 6.1: faulty framing
    if content_length is not None:
        raise Breach(400, "Content-Length beside Transfer-Encoding")
    if not codings or codings[-1] != b"chunked" or codings.count(b"chunked") > 1:
        raise Breach(400, "transfer coding that does not end in one chunked")
    if len(codings) > 1:
        raise Breach(501, "transfer coding other than chunked")


def check_authority(authority: bytes, *, port_needed: bool = False) -> None:
    if authority in _authorities and not port_needed:
        return
    match = _AUTHORITY.fullmatch(authority)
    if match is None or int(match["port"] or 0) > 0xFFFF or (port_needed and not (match["port"] and match["host"])):
        raise Breach(400, "invalid host")
    if len(authority) <= _REPEATED_MAX_BYTES:
        _remember(_authorities, authority, True)


def read_request(head: bytes, scheme: bytes) -> tuple[Request, bool]:
    """A request's head without its last CRLF CRLF; and whether the connection ends with this exchange."""
    lines = head.split(b"\r\n")
    start = lines.pop(0)
    known = _request_lines.get(start)
    if known is None:
        check_controls(head, len(lines))
        known = _read_request_line(start)
        fields, special = read_fields(lines)
    else:
        fields, special = read_fields(lines, head)
    method, target, minor = known

    host = content_length = coding = None
    connection = upgrade = te = expect = b""
    for name, value in special:
        if name == b"host":
            if host is not None:
                raise Breach(400, "more than one Host")
            host = value
        elif name == b"connection":
            connection = connection + b"," + value if connection else value
        elif name == b"content-length":
            content_length = _content_length(content_length, value)
        elif name == b"transfer-encoding":
            coding = value if coding is None else coding + b"," + value
        elif name == b"upgrade":
            upgrade = upgrade + b", " + value if upgrade else value
        elif name == b"te":
            te = te + b"," + value if te else value
        elif name == b"expect":
            expect = expect + b"," + value if expect else value

    if host is None:
        if minor != "1.0":
            raise Breach(400, "no Host")
        host = b""
    elif host not in _authorities:
        check_authority(host)
    if coding is not None:
        _check_coding(coding, content_length, minor)
    close = minor == "1.0"  # RFC 9112 9.3: a proxy keeps no connection with an HTTP/1.0 client
    may_upgrade = False
    if connection:
        closes, _, may_upgrade, named = _connections.get(connection) or _read_connection(connection)
        close = close or closes
        if named:
            fields = [f for f in fields if f[0] not in named]
    if expect:
        if minor == "1.0":
            expect = b""  # RFC 9110 10.1.1: ignored
        elif expect.lower() != b"100-continue":
            raise Breach(417, "unknown expectation")
        else:
            fields.append((b"expect", b"100-continue"))
    if te and b"trailers" in _list_members(te):
        fields.append((b"te", b"trailers"))
    if upgrade:
        upgrade = upgrade.lower()
        if minor == "1.0" or not may_upgrade or b"h2c" in _list_members(upgrade):
            upgrade = b""  # RFC 9110 7.8: ignored in HTTP/1.0, and unless Connection names it; h2c is gone (RFC 9113)

    if method == b"CONNECT":
        check_authority(target, port_needed=True)
        if content_length or coding is not None:
            raise Breach(400, "content in CONNECT")
        host, path = target, b""
    elif target[0] == 0x2F:
        path = target
    else:
        scheme, host, path = _other_form(method, target, scheme, host)
    has_body = bool(content_length) or coding is not None
    return Request(method, host, path, fields, scheme, minor, has_body, content_length, upgrade, bool(expect)), close


def _read_request_line(start: bytes) -> tuple[bytes, bytes, str]:
    """Method, target and version."""
    if len(start) > START_LINE_MAX_BYTES:
        raise Breach(414, "request line too long")
    words = start.split(b" ")
    if len(words) != 3:
        raise Breach(400, "request line is not three words")
    method, target, version = words
    if method not in _METHODS and (not method or method.translate(None, TCHAR)):
        raise Breach(400, "invalid method")
    minor = "1.1" if version == b"HTTP/1.1" else _minor(version)
    if not target or target.translate(None, _TARGET):
        raise Breach(400, "invalid character in the request target")
    read = (method, target, minor)
    return _remember(_request_lines, start, read) if len(start) <= _REPEATED_MAX_BYTES else read


def _minor(version: bytes) -> str:
    match = _VERSION.fullmatch(version)
    if match is None:
        raise Breach(400, "invalid HTTP version")
    if match[1] != b"1":
        raise Breach(505, "HTTP version other than 1.x")
    return "1.0" if match[2] == b"0" else "1.1"  # RFC 9110 2.5: a higher minor is read as the highest known


def _other_form(method: bytes, target: bytes, scheme: bytes, host: bytes) -> tuple[bytes, bytes, bytes]:
    """Scheme, authority and path of asterisk-form or absolute-form; the latter's authority wins (RFC 9112 3.2.2)."""
    if target == b"*":
        if method != b"OPTIONS":
            raise Breach(400, "asterisk-form in a method other than OPTIONS")
        return scheme, host, b"*"
    match = _ABSOLUTE.fullmatch(target)
    if match is None:
        raise Breach(400, "invalid request target")
    authority, path = match["authority"], match["path"]
    if not authority or authority.startswith(b":"):
        raise Breach(400, "absolute-form without a host")
    check_authority(authority)
    if not path:
        path = b"*" if method == b"OPTIONS" else b"/"  # RFC 9112 3.2.4
    elif path[0] != 0x2F:
        path = b"/" + path
    return match["scheme"].lower(), authority, path


def read_response(head: bytes, method: bytes) -> tuple[Response, bool, bool]:
    """The head of a response to a request of `method`, without its last CRLF CRLF; whether its body is chunked; and
    whether the connection ends with it. A body neither chunked nor with a length lasts until the connection's end."""
    lines = head.split(b"\r\n")
    start = lines.pop(0)
    known = _status_lines.get(start)
    if known is None:
        check_controls(head, len(lines))
        known = _status(start)
        fields, special = read_fields(lines)
    else:
        fields, special = read_fields(lines, head)
    status, minor = known
    content_length = coding = None
    connection = upgrade = b""
    for name, value in special:
        if name == b"content-length":
            content_length = _content_length(content_length, value)
        elif name == b"transfer-encoding":
            coding = value if coding is None else coding + b"," + value
        elif name == b"connection":
            connection = connection + b"," + value if connection else value
        elif name == b"upgrade":
            upgrade = upgrade + b", " + value if upgrade else value
    close = minor == "1.0"
    if connection:
        closes, persists, _, named = _connections.get(connection) or _read_connection(connection)
        close = closes or (close and not persists)
        if named:
            fields = [f for f in fields if f[0] not in named]
    if status < 200 or status == 204 or (method == b"CONNECT" and status < 300):
        if content_length is not None or coding is not None:
            # RFC 9112 6.3 ignores them after CONNECT; elsewhere they MUST NOT be sent (RFC 9110 8.6, RFC 9112 6.1).
            fields = [f for f in fields if f[0] != b"content-length"]
            content_length = coding = None
        has_body = False
    else:
        if coding is not None:
            _check_coding(coding, content_length, minor)
        has_body = content_length != 0 and status != 304 and method != b"HEAD"
        if has_body and content_length is None and coding is None:
            close = True
    upgrade = upgrade.lower() if status == 101 else b""
    return Response(status, fields, minor, has_body, content_length, upgrade), coding is not None, close


def _status(line: bytes) -> tuple[int, str]:
    match = _STATUS_LINE.fullmatch(line)
    if match is None:
        raise Breach(502, "invalid status line")
    read = (int(match[2]), "1.0" if match[1] == b"0" else "1.1")
    return _remember(_status_lines, line, read) if len(line) < 64 else read
