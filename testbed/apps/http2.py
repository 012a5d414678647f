"""The HTTP echo over HTTP/2 by prior knowledge, gRPC calls too: the same orders, the same totals.

`web` hands a connection over when its first bytes are HTTP/2's preface. `POST` with `application/grpc` is answered as a
unary call of any method: one message of `x-echo-size` bytes, or without it the message that came. Framing is h2's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

if TYPE_CHECKING:
    from testbed.apps.web import WebApp

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
WINDOW_BYTES = 1 << 20
MAX_ANSWER_BYTES = 64 * 1024 * 1024
_BLOCK = b"x" * 65536


@dataclass(slots=True)
class _Stream:
    headers: dict[str, str]
    received: int = 0
    echoed: bytearray = field(default_factory=bytearray)
    """Of a gRPC call that says no size: its message goes back."""


class Http2Server(asyncio.Protocol):
    """One connection; streams are answered as they end, bodies as the peer's windows let them."""

    def __init__(self, app: WebApp, transport: asyncio.Transport, address: str, port: int) -> None:
        self._app, self._transport, self._address, self._port = app, transport, address, port
        config = h2.config.H2Configuration(
            client_side=False,
            header_encoding="utf-8",
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
        self._state = h2.connection.H2Connection(config)
        self._state.local_settings = h2.settings.Settings(
            client=False, initial_values={h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES}
        )
        self._streams: dict[int, _Stream] = {}
        self._unsent: dict[int, deque[bytes]] = {}
        self._trailers: dict[int, list[tuple[str, str]]] = {}
        self._waiting: set[asyncio.TimerHandle] = set()
        self._writable = True
        self._stopping = False
        self._state.initiate_connection()
        self._state.increment_flow_control_window(WINDOW_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in self._waiting:
            timer.cancel()
        self._app.connections.discard(self)
        self._app.totals.open_connections -= 1

    def data_received(self, data: bytes) -> None:
        try:
            events = self._state.receive_data(data)
        except h2.exceptions.ProtocolError:
            self._app.totals.malformed += 1
            self._transport.write(self._state.data_to_send())
            self._transport.close()
            return
        for event in events:
            self._take(event)
        self._flush()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self._flush()

    def stop(self) -> None:
        """Closed once every stream that was begun has its answer."""
        self._stopping = True
        self._flush()

    def _take(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.RequestReceived):
            self._streams[event.stream_id] = _Stream(headers=dict(event.headers))
        elif isinstance(event, h2.events.DataReceived):
            stream = self._streams.get(event.stream_id)
            self._state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if stream is not None:
                stream.received += len(event.data)
                if _is_grpc(stream) and "x-echo-size" not in stream.headers:
                    stream.echoed += event.data
        elif isinstance(event, h2.events.StreamReset):
            for known in (self._streams, self._unsent, self._trailers):
                known.pop(event.stream_id, None)
        elif isinstance(event, h2.events.StreamEnded) and event.stream_id in self._streams:
            self._answer_in_time(event.stream_id, self._streams.pop(event.stream_id))

    def _answer_in_time(self, number: int, stream: _Stream) -> None:
        delay_s = _number(stream, "delay_ms", 60_000) / 1000 + self._app.service_time_s
        if not delay_s:
            self._answer(number, stream)
            return

        def later() -> None:
            self._waiting.discard(timer)
            self._answer(number, stream)
            self._flush()

        timer = asyncio.get_running_loop().call_later(delay_s, later)
        self._waiting.add(timer)

    def _answer(self, number: int, stream: _Stream) -> None:
        size = int(_number(stream, "size", MAX_ANSWER_BYTES))
        headers = [("x-workload", self._app.name), ("x-peer-address", self._address), ("x-peer-port", str(self._port))]
        if stream.received:
            headers.append(("x-body-bytes", str(stream.received)))
        if _is_grpc(stream):
            headers = [(":status", "200"), ("content-type", "application/grpc"), *headers]
            message = [bytes(stream.echoed)] if stream.echoed else [b"\0" + size.to_bytes(4, "big"), *_blocks(size)]
            parts = deque(message)
            self._trailers[number] = [("grpc-status", "0")]
        else:
            body = [self._app.count_json()] if _path(stream) == "/-/count" else [*_blocks(size)]
            parts = deque(body or [b""])
            status = str(int(_number(stream, "status", 599, default=200)))
            headers = [(":status", status), ("content-length", str(sum(map(len, parts)))), *headers]
        answered = sum(map(len, parts))
        try:
            self._state.send_headers(number, headers)
        except h2.exceptions.ProtocolError:
            self._trailers.pop(number, None)  # it was reset while it waited
            return
        self._unsent[number] = parts
        self._app.counted(self._address, stream.received, answered)

    def _flush(self) -> None:
        """As much as windows and the transport's buffer take."""
        for number in list(self._unsent):
            if not self._send_parts(number):
                break
        if self._stopping and not (self._streams or self._unsent or self._waiting):
            self._state.close_connection()
        if waiting := self._state.data_to_send():
            self._transport.write(waiting)
        if self._state.state_machine.state is h2.connection.ConnectionState.CLOSED:
            self._transport.close()

    def _send_parts(self, number: int) -> bool:
        """False when the transport is full."""
        parts = self._unsent[number]
        while parts:
            room = min(self._state.local_flow_control_window(number), self._state.max_outbound_frame_size)
            if parts[0] and room <= 0:
                return True
            part = parts[0][:room]
            parts[0] = parts[0][len(part) :]
            if not parts[0]:
                parts.popleft()
            last = not parts and number not in self._trailers
            self._state.send_data(number, part, end_stream=last)
            self._transport.write(self._state.data_to_send())
            if not self._writable:
                return False
        del self._unsent[number]
        if trailers := self._trailers.pop(number, None):
            self._state.send_headers(number, trailers, end_stream=True)
        return True


def _blocks(size: int) -> list[bytes]:
    return [_BLOCK[: min(size - at, len(_BLOCK))] for at in range(0, size, len(_BLOCK))]


def _is_grpc(stream: _Stream) -> bool:
    return stream.headers.get("content-type", "").startswith("application/grpc")


def _path(stream: _Stream) -> str:
    return urlsplit(stream.headers.get(":path", "/")).path


def _number(stream: _Stream, name: str, high: float, default: float = 0.0) -> float:
    """From the query or from `x-echo-<name>`, as over HTTP/1; what is no number in range counts as not said."""
    query = parse_qs(urlsplit(stream.headers.get(":path", "/")).query)
    text = query.get(name, [""])[-1] or stream.headers.get("x-echo-" + name.replace("_", "-"), "")
    try:
        value = float(text)
    except ValueError:
        return default
    return value if 0 <= value <= high else default
