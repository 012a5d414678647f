"""One request through the shell of the L7 core: bodies, order, early answers, every end, brakes, cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

import pytest

from tests.l7relay import Reader, World, Writer, echo, get, held_bytes, ok, post, read_body, read_head, run, until


class TestMessages:
    def test_requests_of_one_connection_share_one_upstream_connection(self) -> None:
        """Keep-alive on both sides, body or none."""

        async def scenario(world: World) -> None:
            relay = await world.relay(await world.origin(echo))
            async with relay.client() as client:
                assert (await client.ask(get("/a"))).body == b"GET /a HTTP/1.1|"
                assert (await client.ask(post(b"hello", "/b"))).body == b"POST /b HTTP/1.1|hello"
                assert (await client.ask(get("/c", "HEAD"))).body == b""
                assert (await client.ask(get("/d"))).status == 200
            assert len(relay.side.upstream.connections) == 1

        run(scenario)

    def test_pipelined_requests_are_answered_in_their_order(self) -> None:
        """Even if the first takes longest."""

        async def slow_first(reader: Reader, writer: Writer) -> None:
            while True:
                _, fields = await read_head(reader)
                if b"/0" in fields[b":line"]:
                    await asyncio.sleep(0.1)
                writer.write(ok(fields[b":line"]))

        async def scenario(world: World) -> None:
            relay = await world.relay(await world.origin(slow_first))
            async with relay.client() as client:
                client.send(b"".join(get(f"/{n}") for n in range(5)))
                bodies = [(await client.answer()).body for _ in range(5)]
            assert bodies == [b"GET /%d HTTP/1.1" % n for n in range(5)]

        run(scenario)

    @pytest.mark.parametrize("http2", [False, True], ids=["http/1.1", "http/2 between"])
    def test_chunked_bodies_and_trailers_pass_both_ways(self, http2: bool) -> None:
        """Through one proxy, or two with HTTP/2 between them."""

        async def trailing(reader: Reader, writer: Writer) -> None:
            _, fields = await read_head(reader)
            body, trailers = await read_body(reader, fields)
            writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n")
            writer.write(b"0\r\nx-got: %b\r\n\r\n" % (body + b"," + trailers.get(b"x-sum", b"none")))
            await reader.read()

        async def scenario(world: World) -> None:
            relay = await world.relay(await world.origin(trailing))
            if http2:
                relay = await world.relay(relay.port, http2=True)
            chunked = get("/", "POST", transfer_encoding="chunked", te="trailers")
            answer = await relay.ask(chunked + b"5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n")
            assert (answer.body, answer.trailers) == (b"abc", {b"x-got": b"hello,7"})

        run(scenario)

    def test_a_client_that_waits_for_100_gets_it_from_the_origin(self) -> None:
        """The proxy does not answer in its place."""

        async def asked(reader: Reader, writer: Writer) -> None:
            _, fields = await read_head(reader)
            await asyncio.sleep(0.05)
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            body, _ = await read_body(reader, fields)
            writer.write(ok(body))

        async def scenario(world: World) -> None:
            relay = await world.relay(await world.origin(asked))
            async with relay.client() as client:
                assert (await client.ask(get("/", "POST", content_length="5", expect="100-continue"))).status == 100
                client.send(b"hello")
                assert (await client.answer()).body == b"hello"

        run(scenario)

    @pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
    def test_answers_without_a_body_leave_the_connection_usable(self, status: str) -> None:
        """The next request is answered on it."""

        async def bodiless(reader: Reader, writer: Writer) -> None:
            while True:
                await read_head(reader)
                writer.write(f"HTTP/1.1 {status}\r\n\r\n".encode())

        async def scenario(world: World) -> None:
            relay = await world.relay(await world.origin(bodiless))
            async with relay.client() as client:
                for _ in range(2):
                    assert (await client.ask(get())).status == int(status[:3])

        run(scenario)

    @pytest.mark.parametrize(
        ("request_bytes", "status"),
        [
            (b"GET / HTTP/1.1\r\n\r\n", 400),
            (b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400),
            (b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n", 400),
            (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\nhost: a\r\n\r\n", 414),
            (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 90_000 + b"\r\n\r\n", 431),
            (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n", 501),
            (b"GET / HTTP/3.0\r\nhost: a\r\n\r\n", 505),
        ],
    )
    def test_malformed_requests_are_refused_and_go_nowhere(self, request_bytes: bytes, status: int) -> None:
        """Each with its own status; the origin hears nothing; the connection ends."""
        heard = []

        async def listening(reader: Reader, writer: Writer) -> None:
            heard.append(await reader.read(1))

        async def scenario(world: World) -> None:
            relay = await world.relay(await world.origin(listening))
            async with relay.client() as client:
                assert (await client.ask(request_bytes)).status == status
                assert await client.ended()

        run(scenario)
        assert heard == []


class TestEarlyAnswers:
    def test_an_answer_before_the_body_is_whole_reaches_the_client(self) -> None:
        """A long body is not waited for: the connection ends behind the answer, which no RST destroys."""

        async def refusing(reader: Reader, writer: Writer) -> None:
            await read_head(reader)
            writer.write(ok(b"too much", status="413 Content Too Large"))
            await asyncio.sleep(0.2)

        async def scenario(world: World) -> None:
            relay = await world.relay(await world.origin(refusing))
            async with relay.client() as client:
                client.send(get("/", "POST", content_length=str(50 << 20)))
                client.send(b"x" * (8 << 20))
                answer = await client.answer()
            assert (answer.status, answer.body) == (413, b"too much")
            await until(lambda: not relay.side.upstream.connections)

        run(scenario)

    def test_an_early_answer_over_http2_resets_the_rest_of_the_request(self) -> None:
        """Neither stream is left behind."""

        async def refusing(reader: Reader, writer: Writer) -> None:
            await read_head(reader)
            writer.write(ok(b"no", status="403 Forbidden"))
            await asyncio.sleep(0.2)

        async def scenario(world: World) -> None:
            second = await world.relay(await world.origin(refusing))
            first = await world.relay(second.port, http2=True)
            async with first.client() as client:
                client.send(get("/", "POST", content_length=str(1 << 20)) + b"x" * 1000)
                assert (await client.answer()).status == 403
            (between,) = first.side.upstream.connections
            await until(lambda: not between.codec.active)
            assert between.codec.usable  # type: ignore[attr-defined]

        run(scenario)


class TestEndsOfTheOrigin:
    @pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\ncontent-le"])
    def test_before_its_head_is_whole_the_client_gets_503(self, sent: bytes) -> None:
        """With Envoy's flag and words."""

        async def cut(reader: Reader, writer: Writer) -> None:
            await read_head(reader)
            writer.write(sent)

        async def scenario(world: World) -> None:
            relay = await world.relay(await world.origin(cut))
            answer = await relay.ask(get())
            assert (answer.status, relay.side.seen[0].flag) == (503, "UC")
            assert answer.body.endswith(b"reset reason: connection termination")

        run(scenario)

    @pytest.mark.parametrize(
        "sent", [b"content-length: 10\r\n\r\nabc", b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"]
    )
    def test_within_a_body_the_client_is_not_told_that_it_is_whole(self, sent: bytes) -> None:
        """The connection ends before the promised length or the last chunk."""

        async def cut(reader: Reader, writer: Writer) -> None:
            await read_head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\n" + sent)
            await writer.drain()

        async def scenario(world: World) -> None:
            relay = await world.relay(await world.origin(cut))
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await relay.ask(get())
            assert relay.side.seen[0].flag == "UC"

        run(scenario)

    def test_a_body_until_the_end_of_the_connection_is_whole(self) -> None:
        """It is passed on in chunks, and the client's connection stays."""

        async def old(reader: Reader, writer: Writer) -> None:
            await read_head(reader)
            writer.write(b"HTTP/1.0 200 OK\r\n\r\nabc")

        async def scenario(world: World) -> None:
            relay = await world.relay(await world.origin(old))
            async with relay.client() as client:
                for _ in range(2):
                    assert (await client.ask(get())).body == b"abc"

        run(scenario)

    def test_while_it_still_gets_the_body(self) -> None:
        """The client hears 503 although it has not sent all."""

        async def gone(reader: Reader, writer: Writer) -> None:
            await read_head(reader)
            writer.transport.abort()

        async def scenario(world: World) -> None:
            relay = await world.relay(await world.origin(gone))
            async with relay.client() as client:
                client.send(get("/", "POST", content_length="1000000") + b"x" * 1000)
                assert (await client.answer()).status == 503

        run(scenario)


class TestEndsOfTheClient:
    @pytest.mark.parametrize("http2", [False, True], ids=["http/1.1", "http/2 between"])
    def test_a_client_that_resets_cancels_what_it_asked_for(self, http2: bool) -> None:
        """The origin's connection ends at once, though it has not answered."""
        run(lambda world: self.goes(world, "reset", b"", http2=http2))

    @pytest.mark.parametrize("http2", [False, True], ids=["http/1.1", "http/2 between"])
    def test_a_client_that_closes_cancels_what_it_asked_for_at_the_first_bytes(self, http2: bool) -> None:
        """Only these tell it from one that has shut its side and waits."""
        run(lambda world: self.goes(world, "close", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n1", http2=http2))

    async def goes(self, world: World, how: str, sent: bytes, *, http2: bool) -> None:
        asked, gone, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def hanging(reader: Reader, writer: Writer) -> None:
            await read_head(reader)
            asked.set()
            await gone.wait()
            writer.write(sent)
            try:
                assert await reader.read(1) == b""
            finally:
                cancelled.set()

        relay = await world.relay(await world.origin(hanging))
        outer = await world.relay(relay.port, http2=True) if http2 else relay
        async with outer.client() as client:
            client.send(get())
            await asked.wait()
            if how == "close":
                client.writer.close()
                await client.writer.wait_closed()
            else:
                sock = client.writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                client.writer.transport.abort()
            gone.set()
            await asyncio.wait_for(cancelled.wait(), 5)
        await until(lambda: outer.side.seen[0].over)
        assert outer.side.seen[0].flag == "DC"
        assert not relay.side.upstream.host.active  # type: ignore[union-attr]

    @pytest.mark.parametrize("http2", [False, True], ids=["http/1.1", "http/2 between"])
    def test_a_client_that_ends_its_side_gets_every_answer(self, http2: bool) -> None:
        """`printf 'GET …' | nc`: answers that come late, of all requests that were whole; then the proxy closes."""

        async def scenario(world: World) -> None:
            async def slow(reader: Reader, writer: Writer) -> None:
                while True:
                    _, fields = await read_head(reader)
                    await asyncio.sleep(0.2)
                    writer.write(ok(fields[b":line"].split()[1]))

            relay = await world.relay(await world.origin(slow))
            outer = await world.relay(relay.port, http2=True) if http2 else relay
            async with outer.client() as client:
                client.send(get("/first") + get("/second"))
                client.writer.write_eof()
                assert [(await client.answer()).body for _ in range(2)] == [b"/first", b"/second"]
                assert await client.ended()

        run(scenario)

    def test_a_client_that_ends_within_its_request_is_gone(self) -> None:
        """There will never be a whole request, and so no answer."""

        async def scenario(world: World) -> None:
            cancelled = asyncio.Event()

            async def origin(reader: Reader, writer: Writer) -> None:
                await read_head(reader)
                with contextlib.suppress(ConnectionError):
                    await reader.read(-1)
                cancelled.set()

            relay = await world.relay(await world.origin(origin))
            async with relay.client() as client:
                client.send(get("/", "POST", content_length="10") + b"12345")
                client.writer.write_eof()
                await asyncio.wait_for(cancelled.wait(), 5)
                assert await client.ended()

        run(scenario)


class TestBrakes:
    @pytest.mark.parametrize("http2", [False, True], ids=["http/1.1", "http/2 between"])
    def test_a_client_that_does_not_read_stops_the_origin(self, http2: bool) -> None:
        """What is under way stays within buffers, however long the body; then it arrives whole."""
        size = 64 << 20

        async def scenario(world: World) -> None:
            written = 0

            async def endless(reader: Reader, writer: Writer) -> None:
                nonlocal written
                await read_head(reader)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
                for _ in range(size >> 16):
                    writer.write(b"z" * 65536)
                    await writer.drain()
                    written += 65536
                await reader.read()

            relay = first = await world.relay(await world.origin(endless))
            if http2:
                relay = await world.relay(relay.port, http2=True)
            async with relay.client(buffer_bytes=65536) as client:
                client.writer.transport.pause_reading()
                client.send(get())
                await until(lambda: written > 0)
                before = -1
                while before != written:
                    before = written
                    await asyncio.sleep(0.3)
                assert written < size  # the rest of what it wrote is in the kernel's buffers
                assert all(held_bytes(r.side) < 2 << 20 for r in (first, relay))
                client.writer.transport.resume_reading()
                await read_head(client.reader)
                left = size
                while left:
                    left -= len(await client.reader.read(1 << 20))

        run(scenario)

    @pytest.mark.parametrize("http2", [False, True], ids=["http/1.1", "http/2 between"])
    def test_an_origin_that_does_not_read_stops_the_client(self, http2: bool) -> None:
        """The same the other way round."""
        size = 64 << 20

        async def scenario(world: World) -> None:
            go_on = asyncio.Event()

            async def busy(reader: Reader, writer: Writer) -> None:
                await read_head(reader)
                await go_on.wait()
                left = size
                while left:
                    left -= len(await reader.read(1 << 20))
                writer.write(ok(b"all"))

            relay = first = await world.relay(await world.origin(busy))
            if http2:
                relay = await world.relay(relay.port, http2=True)
            async with relay.client() as client:
                client.send(get("/", "POST", content_length=str(size)))
                sent, before = 0, -1
                while before != sent:
                    before = sent
                    while sent < size and not client.writer.transport.get_write_buffer_size():
                        client.send(b"z" * 65536)
                        sent += 65536
                        await asyncio.sleep(0)
                    await asyncio.sleep(0.3)
                assert sent < size
                assert all(held_bytes(r.side) < 2 << 20 for r in (first, relay))
                go_on.set()
                client.send(b"z" * (size - sent))
                assert (await client.answer()).body == b"all"

        run(scenario)


class TestSwitchedProtocols:
    UPGRADE = get("/chat", upgrade="websocket", connection="upgrade", sec_websocket_key="dGhlIHNhbXBsZSBub25jZQ==")
    SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"

    def test_bytes_run_both_ways_after_101(self) -> None:
        """Through two proxies; the server may speak first, and each end closes on its own."""

        async def chatty(reader: Reader, writer: Writer) -> None:
            _, fields = await read_head(reader)
            assert fields[b"upgrade"] == b"websocket"
            writer.write(self.SWITCHED + b"hello")
            while data := await reader.read(65536):
                writer.write(data.upper())
            writer.write(b"bye")
            writer.write_eof()
            await asyncio.sleep(0.1)

        async def scenario(world: World) -> None:
            inner = await world.relay(await world.origin(chatty))
            relay = await world.relay(inner.port)
            async with relay.client() as client:
                client.send(self.UPGRADE)
                status, _ = await read_head(client.reader)
                assert status == 101
                assert await client.reader.readexactly(5) == b"hello"
                client.send(b"abc" * 100_000)
                assert await client.reader.readexactly(300_000) == b"ABC" * 100_000
                client.writer.write_eof()
                assert await client.reader.read() == b"bye"
            await until(lambda: all(e.over for e in (*inner.side.seen, *relay.side.seen)))

        run(scenario)

    def test_a_server_that_ends_first_does_not_cut_what_the_client_still_sends(self) -> None:
        """Half-close, the other way round."""
        got = bytearray()

        async def brief(reader: Reader, writer: Writer) -> None:
            await read_head(reader)
            writer.write(self.SWITCHED + b"that is all")
            writer.write_eof()
            while data := await reader.read(65536):
                got.extend(data)

        async def scenario(world: World) -> None:
            relay = await world.relay(await world.origin(brief))
            async with relay.client() as client:
                client.send(self.UPGRADE)
                await read_head(client.reader)
                assert await client.reader.read() == b"that is all"
                client.send(b"still here")
                client.writer.write_eof()
                await until(lambda: got == b"still here")
                await until(lambda: relay.side.seen[0].over)

        run(scenario)

    def test_a_refused_upgrade_is_an_answer_like_any_other(self) -> None:
        """And the connection goes on."""

        async def scenario(world: World) -> None:
            relay = await world.relay(await world.origin(echo))
            async with relay.client() as client:
                assert (await client.ask(self.UPGRADE)).status == 200
                assert (await client.ask(get("/next"))).body == b"GET /next HTTP/1.1|"

        run(scenario)
