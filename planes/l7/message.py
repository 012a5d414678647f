"""HTTP heads as values, alike for every version: what RFC 9110 calls control data and fields, in HTTP/2's spelling.

These are made once per message on the hot path, so they are plain classes with slots rather than frozen dataclasses
(whose `__init__` costs three times as much). Nobody changes `fields` in place after handing the object on.
"""

from __future__ import annotations

Fields = list[tuple[bytes, bytes]]
"""Names in lower case, values without surrounding whitespace, order and repetitions kept. Neither pseudo-fields nor
connection-specific fields (RFC 9113 8.2.2: connection, keep-alive, proxy-connection, transfer-encoding, upgrade, and
those that `connection` named) are ever in it, nor `host`: codecs take them off on receipt and write their own."""


class Request:
    """The head of a request. For `OPTIONS *`, `path` is `*`; for CONNECT without `:protocol` it is empty."""

    __slots__ = (
        "authority", "content_length", "expects_continue", "fields", "has_body", "method", "path", "scheme", "upgrade",
        "version",
    )  # fmt: skip

    def __init__(
        self,
        method: bytes,
        authority: bytes,
        path: bytes,
        fields: Fields,
        scheme: bytes = b"http",
        version: str = "1.1",
        has_body: bool = False,
        content_length: int | None = None,
        upgrade: bytes = b"",
        expects_continue: bool = False,
    ) -> None:
        self.method = method
        self.authority = authority
        self.path = path
        """With its query, as received."""
        self.fields = fields
        """Holds `content-length` if the peer sent one, and `te: trailers`, `expect` if it did."""
        self.scheme = scheme
        self.version = version
        """`1.0`, `1.1` or `2`: what the peer spoke."""
        self.has_body = has_body
        """False: it ends with its head (END_STREAM, or no framing field)."""
        self.content_length = content_length
        """As declared; None when chunked, or HTTP/2 without the field."""
        self.upgrade = upgrade
        """The protocol asked for by Upgrade or `:protocol`, such as `websocket`; empty if none. After a 101 (HTTP/1) or
        2xx (HTTP/2) both directions' bodies are that protocol's bytes."""
        self.expects_continue = expects_continue

    def edited(self, authority: bytes, path: bytes, fields: Fields) -> Request:
        """A copy that differs in these."""
        made = Request.__new__(Request)
        made.method = self.method
        made.authority = authority
        made.path = path
        made.fields = fields
        made.scheme = self.scheme
        made.version = self.version
        made.has_body = self.has_body
        made.content_length = self.content_length
        made.upgrade = self.upgrade
        made.expects_continue = self.expects_continue
        return made

    def __repr__(self) -> str:
        return f"<Request {self.method.decode('latin-1')} {self.authority.decode('latin-1')} {self.path[:80]!r}>"


class Response:
    """The head of a response, interim (1xx) ones too."""

    __slots__ = ("content_length", "fields", "has_body", "status", "upgrade", "version")

    def __init__(
        self,
        status: int,
        fields: Fields,
        version: str = "1.1",
        has_body: bool = False,
        content_length: int | None = None,
        upgrade: bytes = b"",
    ) -> None:
        self.status = status
        self.fields = fields
        self.version = version
        self.has_body = has_body
        """False: it ends with its head, as every answer to HEAD, 204 and 304 do."""
        self.content_length = content_length
        self.upgrade = upgrade
        """The protocol switched to, with 101."""

    def __repr__(self) -> str:
        return f"<Response {self.status}>"


def field(fields: Fields, name: bytes) -> bytes | None:
    """The first value of `name` (lower case), or None."""
    for key, value in fields:
        if key == name:
            return value
    return None
