"""Paths rewritten and redirects told, by what a route's match took of the path. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from planes.l7.message import Request
from testbed.model.traffic import Redirect, RequestMatch, Rewrite, TextKind


@dataclass(frozen=True, slots=True)
class _Swap:
    """Replaces what a match took of a path: its prefix, by segments or letter, or all of it."""

    taken: int | None
    """Length of the matched prefix; None: the match was of the whole path."""
    instead: bytes
    segments: bool

    @classmethod
    def of(cls, match: RequestMatch, instead: str) -> _Swap:
        uri = match.uri
        if uri is None:
            return cls(1, instead.encode(), segments=False)
        if uri.kind is TextKind.PREFIX:
            return cls(len(uri.value.encode()), instead.encode(), segments=False)
        if uri.kind is TextKind.SEGMENTS:
            return cls(len(uri.value.rstrip("/").encode()), instead.encode(), segments=True)
        return cls(None, instead.encode(), segments=False)

    def __call__(self, path: bytes) -> bytes:
        if self.taken is None:
            return self.instead
        rest = path[self.taken :]
        if self.segments:
            return self.instead.rstrip(b"/") + (rest if rest else b"") or b"/"
        return self.instead + rest


class PathRewrite:
    __slots__ = ("_regex", "_swap", "_whole", "authority")

    def __init__(self, rewrite: Rewrite, match: RequestMatch) -> None:
        self.authority = rewrite.authority.encode() if rewrite.authority is not None else None
        self._whole = rewrite.path.encode() if rewrite.path is not None else None
        self._swap = _Swap.of(match, rewrite.prefix) if rewrite.prefix is not None else None
        self._regex = None
        if rewrite.regex is not None:
            self._regex = re.compile(rewrite.regex[0].encode()), rewrite.regex[1].encode()

    def path(self, whole: bytes, path: bytes) -> bytes | None:
        query = whole[len(path) :]
        if self._whole is not None:
            return self._whole + query
        if self._swap is not None:
            return self._swap(path) + query
        if self._regex is not None:
            return self._regex[0].sub(self._regex[1], path) + query
        return None


_DEFAULT_PORTS = {b"http": b"80", b"https": b"443"}


class Location:
    __slots__ = ("_redirect", "_swap")

    def __init__(self, redirect: Redirect, match: RequestMatch) -> None:
        self._redirect = redirect
        self._swap = _Swap.of(match, redirect.prefix) if redirect.prefix is not None else None

    def location(self, request: Request, path: bytes) -> bytes:
        r = self._redirect
        scheme = r.scheme.encode() if r.scheme else request.scheme
        authority = r.authority.encode() if r.authority else request.authority
        host, port = _split(authority)
        if not r.authority and scheme != request.scheme and port == _DEFAULT_PORTS.get(request.scheme):
            authority = host  # as Envoy: the other scheme has a default of its own
        if r.port is not None and b"%d" % r.port != _DEFAULT_PORTS.get(scheme):  # istiod asks for no default port
            authority = b"%b:%d" % (host, r.port)
        query = request.path[len(path) :]
        if r.path is not None:
            path = r.path.encode()
            query = b"" if b"?" in path else query
        elif self._swap is not None:
            path = self._swap(path)
        return scheme + b"://" + authority + path + query


def _split(authority: bytes) -> tuple[bytes, bytes]:
    host, colon, port = authority.rpartition(b":")
    return (host, port) if colon and port.isdigit() else (authority, b"")
