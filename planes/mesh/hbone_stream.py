"""HBONE's values: one tunnel (`Stream`), what is advertised (`Limits`), what a connection tells its shell (events)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

Fields = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What we advertise; the defaults are ztunnel's (facts/hbone 1.6)."""

    stream_window_bytes: int = 4 << 20
    connection_window_bytes: int = 16 << 20
    max_frame_bytes: int = 1 << 20
    max_concurrent_streams: int | None = None
    max_header_list_bytes: int = 16 << 10
    extended_connect: bool = False
    """Whether a server takes CONNECT with `:protocol` (RFC 8441)."""


CLIENT_LIMITS = Limits()
SERVER_LIMITS = Limits(max_concurrent_streams=200, max_header_list_bytes=64 << 10)


class Sink(Protocol):
    """Where a stream's bytes go without the detour over events."""

    def received(self, data: bytes | memoryview) -> bool:
        """False keeps the bytes charged against the stream's window until `HboneConnection.release`."""
        ...

    def ended(self) -> None: ...
    def was_reset(self, code: int) -> None: ...
    def writable(self) -> None:
        """What was queued for want of window has gone out."""
        ...


class Stream:
    """One CONNECT tunnel of a connection; made by `open` or by the peer."""

    __slots__ = (
        "answered", "id", "pending", "pending_bytes", "pending_end", "receive_window", "received_end", "send_window",
        "sent_end", "sink", "takes_data", "unreleased",
    )  # fmt: skip

    def __init__(self, number: int, send_window: int, receive_window: int) -> None:
        self.id = number
        self.sink: Sink | None = None
        self.send_window = send_window
        self.receive_window = receive_window
        self.unreleased = 0
        """Consumed bytes whose window has not been given back yet."""
        self.pending: list[bytes | memoryview] = []
        self.pending_bytes = 0
        self.pending_end = False
        self.sent_end = False
        self.received_end = False
        self.answered = False
        """Final response headers have passed (either role)."""
        self.takes_data = False
        """DATA from the peer is legal now: after the request (server) or the final response (client), until its end."""

    def __repr__(self) -> str:
        ours = "closed" if self.sent_end else "open"
        theirs = "closed" if self.received_end else "open"
        return f"<Stream {self.id} ours {ours} theirs {theirs} pending {self.pending_bytes}>"


@dataclass(frozen=True, slots=True)
class RequestReceived:
    stream: Stream
    fields: Fields
    ended: bool


@dataclass(frozen=True, slots=True)
class ResponseReceived:
    stream: Stream
    status: int
    fields: Fields
    ended: bool


@dataclass(frozen=True, slots=True)
class DataReceived:
    stream: Stream
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class StreamEnded:
    stream: Stream


@dataclass(frozen=True, slots=True)
class StreamReset:
    stream: Stream
    code: int


@dataclass(frozen=True, slots=True)
class SettingsReceived:
    max_concurrent_streams: int | None


@dataclass(frozen=True, slots=True)
class PingAnswered:
    payload: bytes


@dataclass(frozen=True, slots=True)
class GoawayReceived:
    last_stream: int
    code: int


@dataclass(frozen=True, slots=True)
class ConnectionFailed:
    """The peer broke the protocol; GOAWAY is in the output, write it and close."""

    code: int
    text: str


Event = (
    RequestReceived | ResponseReceived | DataReceived | StreamEnded | StreamReset | SettingsReceived | PingAnswered
    | GoawayReceived | ConnectionFailed
)  # fmt: skip


class Breach(Exception):
    """The peer broke the protocol in a way that ends the connection."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
