"""TLS as it looks from outside: records, and the two hellos. Pure; what is recognised is recognised by its bytes,
never by port.

The hellos are dissected by scapy (1 ms each, two a connection); records are cut by hand, since there are thousands.
Source: RFC 8446 §5.1 (records), §4.1.2-3 (hellos), §4.2.1 (a 1.3 server says its version in an extension, not in the
header).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)  # it warns about missing routes at import

from scapy.layers.tls import extensions as ext  # noqa: E402
from scapy.layers.tls.handshake import TLSClientHello, TLSServerHello  # noqa: E402

CHANGE_CIPHER_SPEC, ALERT, HANDSHAKE, APPLICATION_DATA = 20, 21, 22, 23
CLIENT_HELLO, SERVER_HELLO = 1, 2
MAX_RECORD = (1 << 14) + 2048
"""RFC 5246 §6.2.3, the larger of the two; 1.3 allows 256 bytes of expansion."""
HELLO_RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random that makes a ServerHello a HelloRetryRequest (RFC 8446 §4.1.3)."""

VERSIONS = {0x0300: "SSL 3.0", 0x0301: "TLS 1.0", 0x0302: "TLS 1.1", 0x0303: "TLS 1.2", 0x0304: "TLS 1.3"}
CIPHERS = {0x1301: "TLS_AES_128_GCM_SHA256", 0x1302: "TLS_AES_256_GCM_SHA384", 0x1303: "TLS_CHACHA20_POLY1305_SHA256"}
GROUPS = {23: "secp256r1", 24: "secp384r1", 25: "secp521r1", 29: "x25519", 30: "x448", 4588: "X25519MLKEM768"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """`start`..`stop` are offsets in the stream, header included; `body` is what follows the header."""

    kind: int
    version: int
    start: int
    stop: int
    body: bytes

    @property
    def header(self) -> bytes:
        return bytes((self.kind, self.version >> 8, self.version & 255)) + len(self.body).to_bytes(2, "big")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """A ClientHello (lists are offers) or a ServerHello (one choice each)."""

    random: bytes
    versions: tuple[str, ...]
    ciphers: tuple[int, ...]
    alpn: tuple[str, ...] = ()
    """In TLS 1.3 the server's choice is encrypted: empty in its hello, found by `keylog`."""
    server_name: str | None = None
    groups: tuple[str, ...] = ()

    @property
    def cipher(self) -> str:
        """Name of the first (for a server: the chosen) suite."""
        return CIPHERS.get(self.ciphers[0], f"0x{self.ciphers[0]:04x}") if self.ciphers else ""

    @property
    def is_retry(self) -> bool:
        return self.random == HELLO_RETRY


def records(data: bytes, limit: int | None = None) -> Iterator[Record]:
    """Whole records from the start of a stream up to `limit` (say, its first gap); ends at the first thing that is
    none."""
    at, limit = 0, len(data) if limit is None else limit
    while at + 5 <= limit:
        kind, version, length = data[at], data[at + 1] << 8 | data[at + 2], data[at + 3] << 8 | data[at + 4]
        if not 20 <= kind <= 24 or version >> 8 != 3 or length > MAX_RECORD or at + 5 + length > limit:
            return
        yield Record(kind=kind, version=version, start=at, stop=at + 5 + length, body=data[at + 5 : at + 5 + length])
        at += 5 + length


def ending(data: bytes, limit: int) -> tuple[int, bool]:
    """(where the whole records end that begin a stream, whether what follows up to `limit` can begin another)."""
    at = 0
    while at + 5 <= limit:
        length = data[at + 3] << 8 | data[at + 4]
        if not CHANGE_CIPHER_SPEC <= data[at] <= APPLICATION_DATA or data[at + 1] != 3 or length > MAX_RECORD:
            return at, False
        if at + 5 + length > limit:
            return at, True
        at += 5 + length
    return at, True


def begins_tls(data: bytes) -> bool:
    """The first bytes are a handshake record whose message is a hello."""
    return (
        len(data) >= 6
        and data[0] == HANDSHAKE
        and data[1] == 3
        and data[2] <= 4
        and 4 <= (data[3] << 8 | data[4]) <= MAX_RECORD
        and data[5] in (CLIENT_HELLO, SERVER_HELLO)
    )


def middle_of_tls(data: bytes) -> bool:
    """Encrypted records follow each other from the first byte: a connection whose handshake was before the capture."""
    first = next(records(data), None)
    return first is not None and first.kind in (APPLICATION_DATA, ALERT) and first.version == 0x0303


def messages(content: bytes) -> Iterator[tuple[int, bytes, int]]:
    """(type, whole message with its 4-byte header, offset behind it) for each complete handshake message."""
    at = 0
    while at + 4 <= len(content):
        stop = at + 4 + int.from_bytes(content[at + 1 : at + 4], "big")
        if stop > len(content):
            return
        yield content[at], content[at:stop], stop
        at = stop


def hellos(data: bytes, limit: int | None = None) -> tuple[Hello, ...]:
    """The hellos of one direction in clear: one, or two after a HelloRetryRequest."""
    clear = b""
    for record in records(data, limit):
        if record.kind == HANDSHAKE:
            clear += record.body
        elif record.kind != CHANGE_CIPHER_SPEC:
            break
    found = []
    for kind, message, _ in messages(clear):
        if kind not in (CLIENT_HELLO, SERVER_HELLO):
            break
        found.append(hello(message))
    return tuple(found)


def hello(message: bytes) -> Hello:
    """Raises ValueError for a message that is neither hello or that scapy cannot take apart."""
    if message[:1] not in (b"\x01", b"\x02"):
        raise ValueError("not a ClientHello or ServerHello")
    try:
        return _hello(message)
    except Exception as error:  # scapy raises whatever a field does, and leaves out what it cannot read
        raise ValueError(f"hello of {len(message)} bytes is malformed: {error}") from error


def _hello(message: bytes) -> Hello:
    parsed = (TLSClientHello if message[0] == CLIENT_HELLO else TLSServerHello)(message)
    extensions = {type(e): e for e in parsed.ext or ()}
    versions = _get(extensions, ext.TLS_Ext_SupportedVersion_CH, "versions")
    chosen = _get(extensions, ext.TLS_Ext_SupportedVersion_SH, "version")
    names = _get(extensions, ext.TLS_Ext_ServerName, "servernames") or ()
    alpn = _get(extensions, ext.TLS_Ext_ALPN, "protocols") or ()
    groups = _get(extensions, ext.TLS_Ext_SupportedGroups, "groups") or ()
    return Hello(
        random=message[6:38],
        versions=tuple(VERSIONS.get(v, hex(v)) for v in versions or ([chosen] if chosen else [parsed.version])),
        ciphers=tuple(parsed.ciphers) if message[0] == CLIENT_HELLO else (parsed.cipher,),
        alpn=tuple(p.protocol.decode("ascii", "replace") for p in alpn),
        server_name=names[0].servername.decode("ascii", "replace") if names else None,
        groups=tuple(GROUPS.get(g, str(g)) for g in groups),
    )


def _get(extensions: dict, kind: type, field: str) -> object:
    found = extensions.get(kind)
    return getattr(found, field) if found is not None else None
