"""What a TLS ClientHello asks for: ALPN and SNI, read without a TLS library (RFC 8446 4.1.2, 5.1).

Reads no more than an inspector needs and believes nothing it does not: every length has to fit, or the bytes are not
TLS. Session state, key shares and ciphers are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass

CLIENT_HELLO_MAX_BYTES = 64 * 1024
"""Of the handshake message. A post-quantum hello takes about 2 KiB; Envoy's inspector stops at 16 KiB."""
_RECORD_MAX_BYTES = 16384
_HANDSHAKE, _CLIENT_HELLO = 22, 1
_SERVER_NAME, _ALPN = 0, 16


class NotTls(ValueError):
    """The bytes do not begin with a well-formed ClientHello."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientHello:
    alpn: tuple[bytes, ...]
    """In the client's order; empty if it sent none."""
    server_name: str | None
    """Lower case; None if it sent none."""


def read_client_hello(data: bytes) -> ClientHello | None:
    """None: so far it may be one, more bytes are needed. Raises NotTls as soon as it cannot be one."""
    message = bytearray()
    wanted = None
    start = 0
    while wanted is None or len(message) < wanted:
        record = data[start : start + 5]
        if record[:1] not in (b"", b"\x16") or record[1:2] not in (b"", b"\x03") or record[2:3] > b"\x04":
            raise NotTls("no handshake record")
        if len(record) < 5:
            return None
        size = int.from_bytes(record[3:5])
        if not 0 < size <= _RECORD_MAX_BYTES:
            raise NotTls("record of a size that is not allowed")
        before = len(message)
        message += data[start + 5 : start + 5 + size]
        if message and message[0] != _CLIENT_HELLO:
            raise NotTls("handshake does not begin with a ClientHello")
        if wanted is None and len(message) >= 4:
            wanted = 4 + int.from_bytes(message[1:4])
            if wanted > CLIENT_HELLO_MAX_BYTES:
                raise NotTls("ClientHello too long")
        if wanted is not None and before + size > wanted:  # by the record's length, whether the bytes came or not
            raise NotTls("bytes after the ClientHello in its record")
        if len(data) < start + 5 + size and (wanted is None or len(message) < wanted):
            return None
        start += 5 + size
    return _read_body(_Reader(bytes(message[4:])))


class _Reader:
    """A cursor that raises NotTls where bytes are missing."""

    __slots__ = ("_at", "_data")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        end = self._at + size
        if end > len(self._data):
            raise NotTls("a length beyond its frame")
        taken = self._data[self._at : end]
        self._at = end
        return taken

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size))

    def vector(self, length_bytes: int) -> _Reader:
        return _Reader(self.take(self.number(length_bytes)))

    def rest(self) -> bytes:
        return self.take(len(self._data) - self._at)


def _read_body(body: _Reader) -> ClientHello:
    if body.take(2)[:1] != b"\x03":
        raise NotTls("version that TLS never had")
    body.take(32)
    if len(body.vector(1).rest()) > 32:
        raise NotTls("session id too long")
    suites = body.vector(2).rest()
    if not suites or len(suites) % 2:
        raise NotTls("cipher suites")
    if not body.vector(1).rest():
        raise NotTls("compression methods")
    alpn: tuple[bytes, ...] = ()
    server_name = None
    if body:
        seen: set[int] = set()
        extensions = body.vector(2)
        while extensions:
            kind, content = extensions.number(2), extensions.vector(2)
            if kind in seen:
                raise NotTls("an extension twice")
            seen.add(kind)
            if kind == _ALPN:
                alpn = _read_alpn(content)
            elif kind == _SERVER_NAME:
                server_name = _read_server_name(content)
    if body:
        raise NotTls("bytes after the extensions")
    return ClientHello(alpn=alpn, server_name=server_name)


def _read_alpn(content: _Reader) -> tuple[bytes, ...]:
    names, protocols = content.vector(2), []
    while names:
        name = names.vector(1).rest()
        if not name:
            raise NotTls("an empty protocol name")
        protocols.append(name)
    if not protocols or content:
        raise NotTls("protocol list")
    return tuple(protocols)


def _read_server_name(content: _Reader) -> str | None:
    """RFC 6066 3: at most one name per type; type 0 is the only one there is."""
    names, found = content.vector(2), None
    while names:
        kind, name = names.number(1), names.vector(2).rest()
        if kind != 0:
            continue
        if not name or found is not None or not name.isascii() or b"\0" in name:
            raise NotTls("server name")
        found = name.decode("ascii").lower()
    if content:
        raise NotTls("server name list")
    return found
