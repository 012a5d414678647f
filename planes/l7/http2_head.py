"""Header lists of HTTP/2 to heads and back, and all that makes a message malformed (RFC 9113 §8.1.1, §8.2, §8.3, §8.5).

Pure. A malformed message raises `Malformed` and goes no further; the codec makes a stream error of it. The checks that
look at octets (`vet`) run on fields that a connection has not carried before; those about a whole list, on every one.
"""

from __future__ import annotations

import operator
import re

from planes.l7.hpack_tables import Field
from planes.l7.message import Fields, Request, Response


class Malformed(ValueError):
    """The peer sent what must not be forwarded: a stream error of type PROTOCOL_ERROR."""


_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUES = {
    b":method": _TOKEN,
    b":scheme": re.compile(rb"[A-Za-z][A-Za-z0-9+\-.]*"),
    b":authority": re.compile(rb"[A-Za-z0-9\-._~!$&'()*+,;=:%\[\]]*"),  # no userinfo: RFC 9113 8.3.1
    b":path": re.compile(rb"[!\"$-~]+"),  # neither space nor control, which HTTP/1 would read as its own; no fragment
    b":protocol": _TOKEN,
    b":status": re.compile(rb"[1-9][0-9][0-9]"),
    b"content-length": re.compile(rb"[0-9]{1,18}"),
}  # fmt: skip
_PSEUDO, _FORBIDDEN, _TE, _LENGTH, _HOST, _COOKIE, _EXPECT = range(1, 8)
_KINDS = {
    **dict.fromkeys((b":method", b":scheme", b":authority", b":path", b":protocol", b":status"), _PSEUDO),
    **dict.fromkeys((b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"), _FORBIDDEN),
    b"te": _TE, b"content-length": _LENGTH, b"host": _HOST, b"cookie": _COOKIE, b"expect": _EXPECT,
}  # fmt: skip
_NAMES_KEPT = 1024
_good_names: set[bytes] = set(_KINDS)


def vet(fields: list[Field]) -> None:
    for name, value in fields:
        if name not in _good_names:
            if not _NAME.fullmatch(name):  # unknown pseudo-fields too
                raise Malformed(f"field name {name[:40]!r} is not allowed")
            if len(_good_names) >= _NAMES_KEPT:
                _good_names.clear()
                _good_names.update(_KINDS)
            _good_names.add(name)
        if 10 in value or 13 in value or 0 in value or value != value.strip():
            raise Malformed(f"value of {name!r} is not allowed")
        pattern = _VALUES.get(name)
        if pattern is not None and not pattern.fullmatch(value):
            raise Malformed(f"value of {name!r} is not allowed: {value[:40]!r}")


def _length(value: bytes, known: int | None) -> int:
    if not value.isdigit() or (known is not None and known != int(value)):
        raise Malformed("content-length is no number, or two")
    return int(value)


def _join_cookies(fields: Fields) -> Fields:
    """§8.2.3: crumbs become one field again, for whoever does not speak HTTP/2."""
    crumbs = [value for name, value in fields if name == b"cookie"]
    at = next(i for i, (name, _) in enumerate(fields) if name == b"cookie")
    rest = [field for field in fields if field[0] != b"cookie"]
    rest.insert(at, (b"cookie", b"; ".join(crumbs)))
    return rest


_is_plain = frozenset(_KINDS).isdisjoint
_name_of = operator.itemgetter(0)
_USUAL = (b":method", b":scheme", b":path", b":authority")


def request_of(listed: list[Field], *, ended: bool) -> Request:
    if len(listed) >= 4:
        # Nearly all requests: the usual pseudo-fields in the usual order, and no field that needs a look.
        (first, method), (second, scheme), (third, path), (fourth, authority) = listed[:4]
        fields = listed[4:]
        if (
            (first, second, third, fourth) == _USUAL and _is_plain(map(_name_of, fields)) and authority and scheme
            and path[:1] == b"/" and method != b"CONNECT"
        ):  # fmt: skip
            return Request(method, authority, path, fields, scheme, "2", not ended)
    return _unusual_request(listed, ended=ended)


def _unusual_request(listed: list[Field], *, ended: bool) -> Request:
    pseudo: dict[bytes, bytes] = {}
    for name, value in listed:
        if _KINDS.get(name) != _PSEUDO:
            break
        pseudo[name] = value
    count = len(pseudo)  # a repeated one is met below, among the regular fields or as one too few
    fields = listed[count:]
    length: int | None = None
    host: bytes | None = None
    cookies = 0
    expects = False
    for name, value in fields:
        kind = _KINDS.get(name)
        if kind is None:
            continue
        if kind == _LENGTH:
            length = _length(value, length)
        elif kind == _TE:
            if value != b"trailers":
                raise Malformed("te with other than trailers")
        elif kind == _COOKIE:
            cookies += 1
        elif kind == _HOST:
            if host is not None:
                raise Malformed("two host fields")
            host = value
        elif kind == _EXPECT:
            expects = value.lower() == b"100-continue"
        else:
            raise Malformed(f"field {name!r} is not allowed here")
    if host is not None:
        fields = [field for field in fields if field[0] != b"host"]
    if cookies > 1:
        fields = _join_cookies(fields)
    if ended and length:
        raise Malformed("content-length without content")
    method, scheme, path = pseudo.get(b":method"), pseudo.get(b":scheme"), pseudo.get(b":path")
    authority, protocol = pseudo.get(b":authority"), pseudo.get(b":protocol", b"")
    if count != (method is not None) + (scheme is not None) + (path is not None) + (authority is not None) + (
        b":protocol" in pseudo
    ):
        raise Malformed(":status in a request")
    if method is None:
        raise Malformed("a request without :method")
    if authority is None:
        authority = host or b""
    elif host is not None and host.lower() != authority.lower():
        raise Malformed(f"host {host[:80]!r} differs from :authority {authority[:80]!r}")
    if not authority or (host is not None and not _VALUES[b":authority"].fullmatch(host)):
        raise Malformed("a request without a valid authority")
    if method == b"CONNECT" and not protocol:
        if scheme is not None or path is not None or b":authority" not in pseudo:
            raise Malformed("CONNECT has :authority, and neither :scheme nor :path")
        scheme, path = b"http", b""
    elif not scheme or not path or (path[0] != 47 and (path != b"*" or method != b"OPTIONS")):
        raise Malformed("a request without a valid :scheme and :path")
    elif protocol and method != b"CONNECT":
        raise Malformed(f":protocol with {method[:40]!r}")
    elif protocol:
        method = b"GET"  # an upgrade in the neutral spelling, which is HTTP/1.1's (RFC 8441 5.1)
    return Request(
        method, authority, path, fields, scheme=scheme, version="2", has_body=not ended, content_length=length,
        upgrade=protocol, expects_continue=expects,
    )  # fmt: skip


def response_of(listed: list[Field], *, ended: bool) -> Response:
    """A head; that some responses have no body whatever they say is for the caller, who knows the request."""
    if not listed or listed[0][0] != b":status":
        raise Malformed("a response without :status")
    fields = listed[1:]
    length: int | None = None
    for name, value in fields:
        kind = _KINDS.get(name)
        if kind is None:
            continue
        if kind == _LENGTH:
            length = _length(value, length)
        elif kind in (_PSEUDO, _FORBIDDEN) or (kind == _TE and value != b"trailers"):
            raise Malformed(f"field {name!r} is not allowed here")
    return Response(int(listed[0][1]), fields, version="2", has_body=not ended, content_length=length)


def trailers_of(listed: list[Field]) -> Fields:
    """Fields about framing and routing mean nothing behind a body (RFC 9110 6.5.1) and are left out."""
    drop = False
    for name, value in listed:
        kind = _KINDS.get(name)
        if kind is None:
            continue
        if kind in (_PSEUDO, _FORBIDDEN) or (kind == _TE and value != b"trailers"):
            raise Malformed(f"field {name!r} is not allowed in trailers")
        drop = True
    return [field for field in listed if field[0] not in _KINDS] if drop else listed


_CONNECT: Field = (b":method", b"CONNECT")
_WEBSOCKET_ONLY_1 = frozenset((b"sec-websocket-key", b"sec-websocket-accept"))
"""HTTP/1's proof that a server understood the upgrade; :protocol replaces it (RFC 8441 5.1)."""
_statuses: dict[int, Field] = {}


def listed_request(request: Request) -> list[Field]:
    if request.upgrade:
        kept = [field for field in request.fields if field[0] not in _WEBSOCKET_ONLY_1]
        return [
            _CONNECT, (b":protocol", request.upgrade), (b":scheme", request.scheme), (b":path", request.path),
            (b":authority", request.authority), *kept,
        ]  # fmt: skip
    if request.method == b"CONNECT":
        return [_CONNECT, (b":authority", request.authority), *request.fields]
    if not request.authority:
        return [(b":method", request.method), (b":scheme", request.scheme), (b":path", request.path), *request.fields]
    return [
        (b":method", request.method), (b":scheme", request.scheme), (b":path", request.path),
        (b":authority", request.authority), *request.fields,
    ]  # fmt: skip


def listed_response(response: Response, *, upgraded: bool) -> list[Field]:
    """`upgraded`: the answer to an extended CONNECT, in which 101 is spelled 200."""
    status, fields = response.status, response.fields
    if upgraded and status == 101:
        status = 200
        fields = [field for field in fields if field[0] not in _WEBSOCKET_ONLY_1]
    first = _statuses.get(status)
    if first is None:
        first = _statuses[status] = (b":status", b"%d" % status)
    return [first, *fields]
