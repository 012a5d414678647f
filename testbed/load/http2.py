"""HTTP/2 by prior knowledge, and gRPC over it: one request at a time on a connection, as the other clients have it.

Framing and flow control are h2's. That cost the generator 0.2 to 0.3 ms of CPU a request here, HTTP/1.1 0.03 to 0.05,
and its gate sees it; the answer's first byte is stamped before h2 reads it. gRPC's own layer is
five bytes before each message and a status in the trailers (gRPC over HTTP2, "Length-Prefixed-Message").
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import ClassVar

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings

from testbed.load.connection import BadAnswer, Connection

WINDOW_BYTES = 1 << 20
"""What a client grants at once, as Chrome and Go do in their order of size; 64 KiB would make bodies wait for RTTs."""
GRPC_PATH = "/meshbed.Echo/Call"
CONFIGURATION = h2.config.H2Configuration(
    client_side=True,
    header_encoding="utf-8",
    # We make these headers ourselves, and read two of the answer's: checking them cost a fifth of the request.
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Http2Connection(Connection):
    prefix_bytes: ClassVar[int] = 0
    """Of the answer's body, not counted as payload."""

    @classmethod
    def request(cls, authority: str, request_bytes: int, response_bytes: int) -> Request:
        method = "POST" if request_bytes else "GET"
        headers = [(":method", method), (":scheme", "http"), (":authority", authority)]
        headers += [(":path", f"/?size={response_bytes}")]
        if request_bytes:
            headers.append(("content-length", str(request_bytes)))
        return Request(headers=tuple(headers), body=b"b" * request_bytes)

    def connect(self) -> None:
        super().connect()
        assert self._socket is not None
        self._state = h2.connection.H2Connection(CONFIGURATION)
        self._state.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
            },
        )
        self._state.initiate_connection()
        self._state.increment_flow_control_window(WINDOW_BYTES)
        self._socket.sendall(self._state.data_to_send())

    def round_trip(self, request: Request) -> tuple[int, int, float, bool]:
        assert self._socket is not None
        answer = _Answer()
        try:
            stream = self._state.get_next_available_stream_id()
            self._state.send_headers(stream, list(request.headers), end_stream=not request.body)
            left = memoryview(request.body)
            while not answer.ended:
                while left and (room := self._room(stream, answer)):
                    part, left = left[:room], left[room:]
                    self._state.send_data(stream, bytes(part), end_stream=not left)
                if waiting := self._state.data_to_send():
                    self._socket.sendall(waiting)
                data = self._socket.recv(262144)
                if not data:
                    raise BadAnswer("closed")
                answer.first_byte_s = answer.first_byte_s or time.monotonic()
                for event in self._state.receive_data(data):
                    self._take(event, stream, answer)
            if left:  # answered before it had read all: what is missing must not be waited for
                self._state.reset_stream(stream)
            if waiting := self._state.data_to_send():
                self._socket.sendall(waiting)
        except h2.exceptions.ProtocolError as error:
            raise BadAnswer(f"http2 {type(error).__name__}") from error
        return self.judge(answer), answer.received - self.prefix_bytes, answer.first_byte_s, not answer.going_away

    def judge(self, answer: _Answer) -> int:
        """The row's status. Raises BadAnswer where the answer is none."""
        if not answer.status:
            raise BadAnswer("no-status")
        return answer.status

    def _room(self, stream: int, answer: _Answer) -> int:
        if answer.ended:
            return 0
        return min(self._state.local_flow_control_window(stream), self._state.max_outbound_frame_size)

    def _take(self, event: h2.events.Event, stream: int, answer: _Answer) -> None:
        if isinstance(event, h2.events.ConnectionTerminated):
            # Streams at or below its last one are still answered.
            answer.going_away = True
            if (event.last_stream_id or 0) < stream:
                raise BadAnswer("going-away")
        if getattr(event, "stream_id", None) != stream:
            return
        if isinstance(event, h2.events.ResponseReceived | h2.events.TrailersReceived):
            fields = dict(event.headers)
            answer.status = int(fields.get(":status", answer.status))
            answer.grpc_status = fields.get("grpc-status", answer.grpc_status)
        elif isinstance(event, h2.events.DataReceived):
            answer.received += len(event.data)
            if len(answer.head) < 5:
                answer.head += event.data[: 5 - len(answer.head)]
            self._state.acknowledge_received_data(event.flow_controlled_length, stream)
        elif isinstance(event, h2.events.StreamReset):
            raise BadAnswer(f"stream-reset {int(event.error_code or 0)}")
        elif isinstance(event, h2.events.StreamEnded):
            answer.ended = True


class GrpcConnection(Http2Connection):
    """Unary calls of `/meshbed.Echo/Call`: a message of any bytes out, one of the size asked for in."""

    prefix_bytes = 5

    @classmethod
    def request(cls, authority: str, request_bytes: int, response_bytes: int) -> Request:
        headers = [(":method", "POST"), (":scheme", "http"), (":authority", authority), (":path", GRPC_PATH)]
        headers += [("content-type", "application/grpc"), ("te", "trailers"), ("x-echo-size", str(response_bytes))]
        message = b"b" * request_bytes
        return Request(headers=tuple(headers), body=b"\0" + len(message).to_bytes(4, "big") + message)

    def judge(self, answer: _Answer) -> int:
        status = super().judge(answer)
        if answer.grpc_status == "0" and answer.head != b"\0" + (answer.received - 5).to_bytes(4, "big"):
            raise BadAnswer("bad-message")
        if answer.grpc_status != "0":
            raise BadAnswer(f"grpc-status {answer.grpc_status or 'missing'}")
        return status


class _Answer:
    __slots__ = ("ended", "first_byte_s", "going_away", "grpc_status", "head", "received", "status")

    def __init__(self) -> None:
        self.ended = self.going_away = False
        self.first_byte_s = 0.0
        self.status = self.received = 0
        self.grpc_status = ""
        self.head = b""
