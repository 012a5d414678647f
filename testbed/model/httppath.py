"""Paths of requests as Istio's proxies see them before they judge or route: normalised, and matched by template.

Pure, bytes in and out. Normalisation is Envoy's `normalize_path` (RFC 3986 6.2.2 and backslashes), with what
MeshConfig's `pathNormalization` adds to it; the result is also what is forwarded. Templates are Envoy's
`uri_template`: `{*}` is one segment, `{**}` any text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum


class PathNormalization(StrEnum):
    NONE = "NONE"
    BASE = "BASE"
    MERGE_SLASHES = "MERGE_SLASHES"
    DECODE_AND_MERGE_SLASHES = "DECODE_AND_MERGE_SLASHES"


_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_FOREIGN = re.compile(rb"[^\x21-\x7e]")
_SLASHES = re.compile(rb"//+")
_ESCAPED_SLASH = re.compile(rb"%2f|%5c", re.IGNORECASE)


def normalize(path: bytes, how: PathNormalization = PathNormalization.BASE) -> bytes:
    """`path` with its query, which is never touched. `*` (of OPTIONS) and anything not beginning with / stay."""
    # Searches cost less than one regular expression; `in` with bytes first tries them as a number, by an exception.
    if 0x25 not in path and 0x5C not in path and path.find(b"/.") < 0 and path.find(b"//") < 0 and path.isascii():
        return path  # codecs refuse spaces and controls
    if how is PathNormalization.NONE or not path.startswith((b"/", b"\\")):
        return path
    path, mark, query = path.partition(b"?")
    while True:
        # until nothing changes: `%%32e` is `%2e` after one turn, and the proxy behind us would take another
        before, path = path, _normalized(path, how)
        if path == before:
            return path + mark + query


def _normalized(path: bytes, how: PathNormalization) -> bytes:
    if how is PathNormalization.DECODE_AND_MERGE_SLASHES:
        path = _ESCAPED_SLASH.sub(b"/", path)
    path = _ESCAPE.sub(_unescape, path).replace(b"\\", b"/")
    path = _FOREIGN.sub(lambda m: b"%%%02X" % m[0][0], path)
    if b"/." in path:
        path = _without_dots(path)
    return path if how is PathNormalization.BASE else _SLASHES.sub(b"/", path)


def _unescape(match: re.Match[bytes]) -> bytes:
    """RFC 3986 6.2.2.2: an escaped unreserved character is that character. Others keep their escape as written."""
    value = int(match[1], 16)
    return bytes((value,)) if value in _UNRESERVED else match[0]


def _without_dots(path: bytes) -> bytes:
    """RFC 3986 5.2.4."""
    segments = path.split(b"/")
    kept: list[bytes] = []
    for segment in segments[1:]:
        if segment == b"..":
            if kept:
                kept.pop()
        elif segment != b".":
            kept.append(segment)
    if segments[-1] in (b".", b".."):
        kept.append(b"")
    return b"/" + b"/".join(kept)


_SEGMENT = rb"[a-zA-Z0-9\-._~%!$&'()+,;=:@]"
_TEMPLATE_PART = re.compile(r"\{\*\*\}|\{\*\}")


def is_template(text: str) -> bool:
    return _TEMPLATE_PART.search(text) is not None


def template(text: str) -> Callable[[bytes], object]:
    """A test of a path without query: `{*}` takes one segment that is not empty, `{**}` any number of them or none."""
    pattern, end = b"", 0
    for part in _TEMPLATE_PART.finditer(text):
        pattern += re.escape(text[end : part.start()].encode())
        pattern += b"[" + _SEGMENT[1:-1] + b"/]*" if part[0] == "{**}" else _SEGMENT + b"+"
        end = part.end()
    return re.compile(pattern + re.escape(text[end:].encode())).fullmatch
