"""gRPC and WebSockets all the way: ztunnel, waypoint, ztunnel. Large bodies are in `test_streams`."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
import websocket
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Request, TextMessage

from tests.labs import needs_root
from tests.namespaced.waypoints import WaypointWorld

pytestmark = [pytest.mark.root, needs_root]
SHARED = ("shared", "shared-2")
CHUNK = b"0123456789abcdef" * 4096


# -- gRPC --------------------------------------------------------------------------------------------------------------


class Echo(grpc.GenericRpcHandler):
    """Methods by name: unary, each direction streamed, and a failure."""

    def service(self, call: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        name = call.method.rpartition("/")[2]
        return {
            "Unary": grpc.unary_unary_rpc_method_handler(self._unary),
            "Down": grpc.unary_stream_rpc_method_handler(lambda message, _: (b"%d" % n for n in range(int(message)))),
            "Up": grpc.stream_unary_rpc_method_handler(lambda messages, _: b"%d" % sum(map(len, messages))),
            "Both": grpc.stream_stream_rpc_method_handler(lambda messages, _: (m[::-1] for m in messages)),
            "Fail": grpc.unary_unary_rpc_method_handler(self._fail),
        }.get(name)

    def _unary(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        context.set_trailing_metadata((("x-trailer", "there"),))
        return message.upper()

    def _fail(self, message: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not so")
        return b""


@pytest.fixture(scope="module")
def channel(ambient: WaypointWorld) -> Iterator[grpc.Channel]:
    """A real client in `client`, a real server in `tester`."""
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=(Echo(),))
    assert ambient.inside("tester", lambda: server.add_insecure_port("0.0.0.0:8082")) == 8082
    ambient.inside("tester", server.start)
    try:
        with (
            ambient.door("client", ambient.vip("tester"), 81) as port,
            grpc.insecure_channel(f"127.0.0.1:{port}", (("grpc.default_authority", "tester"),)) as made,
        ):
            yield made
    finally:
        server.stop(None).wait()


def test_grpc_unary_with_trailers(ambient: WaypointWorld, channel: grpc.Channel) -> None:
    """Counted as gRPC with its status."""
    with ambient.through(*SHARED, request_protocol="grpc", grpc_response_status="0"):
        answer, call = channel.unary_unary("/t.Echo/Unary").with_call(b"hello", timeout=8)
    assert answer == b"HELLO"
    assert ("x-trailer", "there") in [(k, v) for k, v in call.trailing_metadata()]


def test_grpc_streams_in_every_direction(channel: grpc.Channel) -> None:
    """Messages pass as they come, not at the end."""
    assert list(channel.unary_stream("/t.Echo/Down")(b"50", timeout=8)) == [b"%d" % n for n in range(50)]
    assert channel.stream_unary("/t.Echo/Up")(iter([b"abc"] * 100), timeout=8) == b"300"

    turns: list[bytes] = []
    gate = threading.Semaphore(1)

    def ask() -> Iterator[bytes]:
        for n in range(20):
            assert gate.acquire(timeout=8)
            yield b"message %d" % n

    for reply in channel.stream_stream("/t.Echo/Both")(ask(), timeout=8):
        turns.append(reply)
        gate.release()
    assert turns == [(b"message %d" % n)[::-1] for n in range(20)]


def test_grpc_failures_arrive_as_such(ambient: WaypointWorld, channel: grpc.Channel) -> None:
    """The server's status, and of an unknown method grpc's own."""
    for method, code in (("Fail", grpc.StatusCode.FAILED_PRECONDITION), ("Nothing", grpc.StatusCode.UNIMPLEMENTED)):
        with pytest.raises(grpc.RpcError) as failed:
            channel.unary_unary(f"/t.Echo/{method}")(b"", timeout=8)
        assert failed.value.code() is code


def test_grpc_deadline_reaches_the_server(channel: grpc.Channel) -> None:
    """A call that its client gives up ends at the server, too: the next one is served at once."""

    def never() -> Iterator[bytes]:
        yield b"first"
        time.sleep(1)

    with pytest.raises(grpc.RpcError) as failed:
        list(channel.stream_stream("/t.Echo/Both")(never(), timeout=0.4))
    assert failed.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert channel.unary_unary("/t.Echo/Unary")(b"again", timeout=8) == b"AGAIN"


# -- WebSocket ---------------------------------------------------------------------------------------------------------


def websocket_echo(sock: socket.socket) -> None:
    made = WSConnection(ConnectionType.SERVER)
    while data := sock.recv(65536):
        made.receive_data(data)
        for event in made.events():
            reply = None
            match event:
                case Request():
                    reply = AcceptConnection()
                case TextMessage(data=text):
                    reply = TextMessage(data=text[::-1], message_finished=event.message_finished)
                case BytesMessage(data=part):
                    reply = BytesMessage(data=part, message_finished=event.message_finished)
                case CloseConnection():
                    reply = event.response()
            if reply is not None:
                sock.sendall(made.send(reply))


def test_a_websocket(ambient: WaypointWorld) -> None:
    """Upgraded, then frames both ways for as long as it likes, among them one of a mebibyte; then closed by both."""
    with (
        ambient.serve("tester", 8081, websocket_echo),
        ambient.through(*SHARED, response_code="101"),
        contextlib.closing(
            websocket.create_connection(
                "ws://tester/chat", socket=ambient.connect("client", ambient.vip("tester"), 80), timeout=8
            )
        ) as made,
    ):
        for text in ("hello", "again"):
            made.send(text)
            assert made.recv() == text[::-1]
        large = CHUNK * 16
        made.send_binary(large)
        assert made.recv() == large
        made.close()
