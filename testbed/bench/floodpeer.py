"""A peer of a proxy that writes HTTP/2 by hand, for floods: what no library would send.

Frames are made here and not by the codecs of the planes: what is tried must not share their code.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
WIDE_WINDOW = 1 << 30
CODES = (
    "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
    "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
)  # fmt: skip
_PATIENCE_S = 10.0


class Wire(Protocol):
    """As much of a socket as a peer needs."""

    def sendall(self, data: bytes) -> None: ...
    def recv(self, size: int) -> bytes: ...
    def settimeout(self, seconds: float | None) -> None: ...
    def close(self) -> None: ...


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(*values: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", key, value) for key, value in values))


def window_update(stream: int, by: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", by))


def rst_stream(stream: int, code: int = 8) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def literal(name: bytes, value: bytes) -> bytes:
    """A field without index and Huffman code (RFC 7541 6.2.2)."""
    return b"\0" + _sized(name) + _sized(value)


def _sized(text: bytes) -> bytes:
    if len(text) < 127:
        return bytes((len(text),)) + text
    rest, out = len(text) - 127, b"\x7f"
    while rest >= 128:
        out, rest = out + bytes((rest & 127 | 128,)), rest >> 7
    return out + bytes((rest,)) + text


def block(*fields: tuple[str, str]) -> bytes:
    return b"".join(literal(name.encode(), value.encode()) for name, value in fields)


def secured(address: tuple[str, int], folder: Path, name: str, alpn: tuple[str, ...]) -> ssl.SSLSocket:
    """As the workload `name` of the mesh. Whom it reaches is not checked: it is the one under test."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    context.set_alpn_protocols(list(alpn))
    plain = socket.create_connection(address, timeout=_PATIENCE_S)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return context.wrap_socket(plain)


@dataclass(slots=True)
class Heard:
    """What a proxy said on one connection, frame by frame."""

    data: bytes = b""
    goaway: str = ""
    ended: bool = False
    resets: Counter[str] = field(default_factory=Counter)
    bodies: bytes = b""
    answered: int = 0
    pings: list[bytes] = field(default_factory=list)
    """That want an answer."""
    refused: int = 0
    """HEADERS with another status than 200, as far as a first byte tells."""

    def take(self, data: bytes) -> None:
        self.data += data
        while len(self.data) >= 9:
            size = int.from_bytes(self.data[:3])
            if len(self.data) < 9 + size:
                return
            kind, flags, stream = struct.unpack(">BBI", self.data[3:9])
            payload, self.data = self.data[9 : 9 + size], self.data[9 + size :]
            if kind == GOAWAY:
                code = int.from_bytes(payload[4:8])
                if code or not self.goaway:
                    self.goaway = CODES[code] if code < len(CODES) else str(code)
            elif kind == RST_STREAM:
                code = int.from_bytes(payload[:4])
                self.resets[CODES[code] if code < len(CODES) else str(code)] += 1
            elif kind == HEADERS:
                self.answered += payload[:1] == b"\x88"
                self.refused += payload[:1] != b"\x88"
            elif kind == PING and not flags & ACK:
                self.pings.append(payload)
            elif kind == DATA and stream:
                self.bodies += payload


class Peer:
    """One HTTP/2 connection on a wire, begun. `take` says what came meanwhile without waiting for more."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.heard = Heard()
        wire.sendall(PREFACE + settings((4, WIDE_WINDOW)) + window_update(0, WIDE_WINDOW))

    def send(self, data: bytes) -> bool:
        """False: nobody takes it any more."""
        try:
            self.wire.settimeout(_PATIENCE_S)
            self.wire.sendall(data)
        except (OSError, ValueError):
            return False
        return True

    def take(self, within_s: float = 0.001) -> bool:
        """False: the connection is over."""
        try:
            self.wire.settimeout(within_s)
            data = self.wire.recv(1 << 18)
        except (TimeoutError, ssl.SSLWantReadError):
            return not self.heard.goaway or self.heard.goaway == "NO_ERROR"
        except (OSError, ValueError):
            data = b""
        if not data:
            self.heard.ended = True
            return False
        self.heard.take(data)
        while self.heard.pings:  # a proxy gives up who answers none
            self.send(frame(PING, ACK, 0, self.heard.pings.pop()))
        return not self.heard.goaway or self.heard.goaway == "NO_ERROR"

    def last_words(self, within_s: float = 1.0) -> None:
        """Reads until the end, or for that long."""
        until_s = time.monotonic() + within_s
        while not self.heard.ended and time.monotonic() < until_s:
            self.take(0.1)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.wire.close()


class Tunnel:
    """A CONNECT through an HBONE proxy, as a wire of its own. Windows are taken for large enough: it sends little."""

    def __init__(self, wire: Wire, authority: str) -> None:
        self._peer = Peer(wire)
        self._peer.send(frame(HEADERS, END_HEADERS, 1, block((":method", "CONNECT"), (":authority", authority))))
        until_s = time.monotonic() + _PATIENCE_S
        while not self._peer.heard.answered:
            if not self._peer.take(0.1) or self._peer.heard.refused or time.monotonic() > until_s:
                raise ConnectionError(f"no tunnel to {authority}: {self._peer.heard}")
        self._within_s: float | None = _PATIENCE_S

    def sendall(self, data: bytes) -> None:
        for at in range(0, len(data), 16_384):
            if not self._peer.send(frame(DATA, 0, 1, data[at : at + 16_384])):
                raise ConnectionError("the tunnel is gone")

    def recv(self, size: int) -> bytes:
        until_s = time.monotonic() + (self._within_s or _PATIENCE_S)
        heard = self._peer.heard
        while not heard.bodies:
            if heard.resets or not self._peer.take(max(0.001, until_s - time.monotonic())):
                return b""
            if not heard.bodies and time.monotonic() >= until_s:
                raise TimeoutError
        data, heard.bodies = heard.bodies[:size], heard.bodies[size:]
        return data

    def settimeout(self, seconds: float | None) -> None:
        self._within_s = seconds

    def close(self) -> None:
        self._peer.close()
