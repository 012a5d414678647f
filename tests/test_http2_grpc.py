"""Real gRPC through the codec: grpcio's client, a relay of twenty lines made of both codecs, grpcio's server."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest

from planes.l7.http2 import Http2Client, Http2Server
from planes.l7.http2_stream import L7ClientStream, L7ServerStream
from planes.l7.message import Fields, Request, Response

LIMIT_S = 20


class Side(asyncio.Protocol):
    """A codec on a transport."""

    codec: Http2Server | Http2Client

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.due = False

    def wake(self) -> None:
        if not self.due:
            self.due = True
            self.loop.call_soon(self.flush)

    def flush(self) -> None:
        self.due = False
        if self.codec.out:
            self.transport.write(b"".join(self.codec.out))
            self.codec.out.clear()
        if self.codec.closing:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        self.codec.receive(data)
        self.flush()

    def pause_writing(self) -> None:
        self.codec.set_write_blocked(True)

    def resume_writing(self) -> None:
        self.codec.set_write_blocked(False)

    def connection_lost(self, error: Exception | None) -> None:
        self.codec.lost("connection lost")


class Upstream(Side):
    def __init__(self) -> None:
        super().__init__()
        self.codec = Http2Client(self.wake)

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.flush()


class Downstream(Side):
    def __init__(self, port: int) -> None:
        super().__init__()
        self.codec = Http2Server(self.on_request, self.wake)
        self.port = port

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        transport.pause_reading()
        self.task = self.loop.create_task(self.connect())

    async def connect(self) -> None:
        _, self.upstream = await self.loop.create_connection(Upstream, "127.0.0.1", self.port)
        self.flush()
        self.transport.resume_reading()

    def on_request(self, stream: L7ServerStream, request: Request) -> None:
        answer = Answer(stream)
        stream.sink = answer.question
        answer.question.upstream = self.upstream.codec.open(request, answer)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.upstream.transport.close()


class Question:
    """What comes from downstream, to upstream."""

    upstream: L7ClientStream

    def __init__(self, downstream: L7ServerStream) -> None:
        self.downstream = downstream

    def data(self, data: bytes | memoryview) -> None:
        if not self.upstream.send_data(data):
            self.downstream.hold()

    def ended(self, trailers: Fields) -> None:
        self.upstream.end(trailers)

    def was_reset(self, reason: str, *, unprocessed: bool) -> None:
        self.upstream.reset(reason)

    def writable(self) -> None:
        self.upstream.release()


class Answer:
    """What comes from upstream, to downstream."""

    def __init__(self, downstream: L7ServerStream) -> None:
        self.downstream = downstream
        self.question = Question(downstream)

    def interim(self, response: Response) -> None:
        self.downstream.send_head(response)

    def head(self, response: Response) -> None:
        self.downstream.send_head(response)

    def data(self, data: bytes | memoryview) -> None:
        if not self.downstream.send_data(data):
            self.question.upstream.hold()

    def ended(self, trailers: Fields) -> None:
        self.downstream.end(trailers)

    def was_reset(self, reason: str, *, unprocessed: bool) -> None:
        self.downstream.reset(reason)

    def writable(self) -> None:
        self.downstream_writable()

    def downstream_writable(self) -> None:
        self.question.downstream.release()


class Service(grpc.GenericRpcHandler):
    """Echoes in all four kinds of call; says what it saw of cancellations."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.entered = threading.Event()

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        made = {
            "/echo/Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "/echo/ServerStream": grpc.unary_stream_rpc_method_handler(self.server_stream),
            "/echo/ClientStream": grpc.stream_unary_rpc_method_handler(self.client_stream),
            "/echo/Bidi": grpc.stream_stream_rpc_method_handler(self.bidi),
            "/echo/Slow": grpc.unary_unary_rpc_method_handler(self.slow),
            "/echo/Early": grpc.stream_unary_rpc_method_handler(self.early),
        }
        return made.get(details.method)

    def unary(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        got = dict(context.invocation_metadata())
        context.send_initial_metadata((("x-saw", got.get("x-sent", "")), ("x-bytes-bin", got.get("x-b-bin", b""))))
        context.set_trailing_metadata((("x-trailer", "behind"),))
        return request

    def server_stream(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        for number in range(int(request)):
            yield b"%06d" % number * 1000

    def client_stream(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        return b"%d" % sum(len(request) for request in requests)

    def bidi(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for request in requests:
            yield request[::-1]

    def slow(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        context.add_callback(self.cancelled.set)
        self.entered.set()
        self.cancelled.wait(LIMIT_S)
        return request

    def early(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "enough: 100 % é")


class Relayed:
    def __init__(self) -> None:
        self.service = Service()
        self.server = grpc.server(futures.ThreadPoolExecutor(8))
        self.server.add_generic_rpc_handlers((self.service,))
        upstream_port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()
        self.loop = asyncio.new_event_loop()
        self.downstreams: list[Downstream] = []
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.listener = asyncio.run_coroutine_threadsafe(self.listen(upstream_port), self.loop).result(LIMIT_S)
        port = self.listener.sockets[0].getsockname()[1]
        self.channel = grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)])

    async def listen(self, upstream_port: int) -> asyncio.Server:
        def accept() -> Downstream:
            self.downstreams.append(Downstream(upstream_port))
            return self.downstreams[-1]

        return await asyncio.get_running_loop().create_server(accept, "127.0.0.1", 0)

    def left_over(self) -> int:
        """Streams that are not over, on both sides of the relay, once it has had time to hear of it."""

        async def count() -> int:
            for _ in range(200):
                left = sum(d.codec.active + d.upstream.codec.active for d in self.downstreams)
                if not left:
                    return 0
                await asyncio.sleep(0.01)
            return left

        return asyncio.run_coroutine_threadsafe(count(), self.loop).result(LIMIT_S)

    def close(self) -> None:
        self.channel.close()
        self.server.stop(0).wait(LIMIT_S)

        async def stop() -> None:
            self.listener.close()
            for downstream in self.downstreams:
                downstream.transport.abort()
            await asyncio.sleep(0.05)

        asyncio.run_coroutine_threadsafe(stop(), self.loop).result(LIMIT_S)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(LIMIT_S)
        self.loop.close()


@pytest.fixture
def relayed() -> Iterator[Relayed]:
    made = Relayed()
    yield made
    made.close()


def test_a_unary_call_with_metadata_and_trailers(relayed: Relayed):
    """Twice and more on one connection, so that the tables on both sides are used; 300 kB exceed the first windows."""
    call = relayed.channel.unary_unary("/echo/Unary")
    for turn in range(5):
        sent = b"%d" % turn * 300_000
        answer, made = call.with_call(sent, metadata=(("x-sent", "a"), ("x-b-bin", b"\0\xff")), timeout=LIMIT_S)
        assert answer == sent
        assert ("x-saw", "a") in made.initial_metadata() and ("x-bytes-bin", b"\0\xff") in made.initial_metadata()
        assert ("x-trailer", "behind") in made.trailing_metadata()
        assert made.code() is grpc.StatusCode.OK
    assert relayed.left_over() == 0


def test_streams_of_all_kinds(relayed: Relayed):
    """Server, client and bidirectional streaming, each in order and whole; several megabytes against flow control."""
    got = list(relayed.channel.unary_stream("/echo/ServerStream")(b"1000", timeout=LIMIT_S))
    assert got == [b"%06d" % number * 1000 for number in range(1000)]
    chunks = [b"x" * 10_000] * 500
    assert relayed.channel.stream_unary("/echo/ClientStream")(iter(chunks), timeout=LIMIT_S) == b"5000000"
    answers = relayed.channel.stream_stream("/echo/Bidi")(iter(b"%d" % n for n in range(100, 400)), timeout=LIMIT_S)
    assert list(answers) == [(b"%d" % n)[::-1] for n in range(100, 400)]
    assert relayed.left_over() == 0


def test_a_slow_reader_holds_the_sender_back(relayed: Relayed):
    """A client that takes one message of 30 MB and waits: the rest stays at the server, and comes when asked for."""
    answers = relayed.channel.unary_stream("/echo/ServerStream")(b"5000", timeout=LIMIT_S)
    assert next(answers) == b"000000" * 1000
    (downstream,) = relayed.downstreams
    kept = 0
    for _ in range(20):
        kept = max(kept, sum(stream.pending_bytes for stream in list(downstream.codec.streams.values())))
        time.sleep(0.05)
    assert 0 < kept <= 1 << 20
    assert len(list(answers)) == 4999


def test_a_deadline_reaches_the_server(relayed: Relayed):
    """The client gives up with DEADLINE_EXCEEDED, and the server's call is cancelled through the relay."""
    with pytest.raises(grpc.RpcError) as caught:
        relayed.channel.unary_unary("/echo/Slow")(b"x", timeout=0.3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert relayed.service.cancelled.wait(LIMIT_S)
    assert relayed.left_over() == 0


def test_a_cancelled_call_is_cancelled_at_the_server(relayed: Relayed):
    """RST_STREAM(CANCEL) crosses both codecs; the connection serves the next call."""
    call = relayed.channel.unary_unary("/echo/Slow").future(b"x", timeout=LIMIT_S)
    assert relayed.service.entered.wait(LIMIT_S)
    call.cancel()
    assert relayed.service.cancelled.wait(LIMIT_S)
    assert relayed.channel.unary_unary("/echo/Unary")(b"next", timeout=LIMIT_S) == b"next"
    assert relayed.left_over() == 0 and len(relayed.downstreams) == 1


def test_errors_are_trailers_only(relayed: Relayed):
    """An unknown method is a head that ends the stream; an abort in mid-request reaches a client still sending."""
    with pytest.raises(grpc.RpcError) as caught:
        relayed.channel.unary_unary("/echo/Nothing")(b"x", timeout=LIMIT_S)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    with pytest.raises(grpc.RpcError) as caught:
        relayed.channel.stream_unary("/echo/Early")(iter([b"x" * 1000] * 2000), timeout=LIMIT_S)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert caught.value.details() == "enough: 100 % é"
    assert relayed.left_over() == 0


def test_many_calls_at_once_share_one_connection(relayed: Relayed):
    """Forty concurrent calls keep their answers apart."""
    call = relayed.channel.unary_unary("/echo/Unary")
    waiting = [call.future(b"%d" % number * 5_000, timeout=LIMIT_S) for number in range(40)]
    assert [made.result() for made in waiting] == [b"%d" % number * 5_000 for number in range(40)]
    assert len(relayed.downstreams) == 1
