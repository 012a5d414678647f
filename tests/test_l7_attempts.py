"""What is tried again, how long and how much at once: retries, time limits, circuits, outliers, budgets, mirrors."""

from __future__ import annotations

import asyncio
import gc
import socket

import pytest

from planes.l7.attempt import Attempt
from planes.l7.connection import HttpConnection
from planes.l7.exchange import Exchange
from planes.l7.http1 import Http1Client, Http1Server
from planes.l7.http2 import Http2Client, Http2Server
from planes.l7.retry import RetryPolicy
from planes.l7.upstream import Upstream
from testbed.model.traffic import ConnectionPool, OutlierDetection, RetryBudget
from tests.l7relay import Reader, Serve, World, Writer, echo, get, ok, post, read_body, read_head, run, until

DEFAULT = RetryPolicy(base_s=0.001)
RESET = RetryPolicy(conditions=frozenset({"reset", "connect-failure"}), base_s=0.001)
ON_503 = RetryPolicy(conditions=frozenset({"5xx"}), base_s=0.001)


def failing(times: int, then: Serve, heard: list[bytes], last_words: bytes = b"") -> Serve:
    """Reads a request and says `last_words`, so many times; then serves."""

    async def serve(reader: Reader, writer: Writer) -> None:
        if len(heard) >= times:
            await then(reader, writer)
            return
        _, fields = await read_head(reader)
        heard.append(fields[b":line"])
        body, _ = await read_body(reader, fields)
        heard[-1] += body
        writer.write(last_words)
        await writer.drain()

    return serve


def closed_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


class TestRetries:
    def test_a_refused_connection_is_tried_elsewhere(self) -> None:
        """By default, and with another endpoint."""

        async def scenario(world: World) -> None:
            relay = await world.relay(closed_port(), await world.origin(echo), retry=DEFAULT)
            answers = [await relay.ask(get()) for _ in range(8)]
            assert {a.status for a in answers} == {200}
            assert max(e.attempts for e in relay.side.seen) == 2

        run(scenario)

    def test_what_a_client_says_of_itself_is_taken_off_also_where_the_first_attempt_found_nobody(self) -> None:
        """Else a dead endpoint would let a forged x-forwarded-client-cert through; and the id is there in any case."""

        async def scenario(world: World) -> None:
            heard: list[dict[bytes, bytes]] = []

            async def note(reader: Reader, writer: Writer) -> None:
                _, fields = await read_head(reader)
                heard.append(fields)
                writer.write(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n")
                await writer.drain()

            relay = await world.relay(closed_port(), await world.origin(note), retry=DEFAULT)
            forged = b"GET / HTTP/1.1\r\nhost: o\r\nx-forwarded-client-cert: URI=spiffe://cluster.local/forged\r\n\r\n"
            for _ in range(8):
                assert (await relay.ask(forged)).status == 204
            assert max(e.attempts for e in relay.side.seen) == 2
            assert all(b"x-request-id" in f and b"x-forwarded-client-cert" not in f for f in heard)

        run(scenario)

    def test_where_nobody_listens_the_client_hears_503_after_all_tries(self) -> None:
        """One first try and two more."""

        async def scenario(world: World) -> None:
            relay = await world.relay(closed_port(), retry=DEFAULT)
            answer = await relay.ask(get())
            assert answer.status == 503
            assert answer.body.endswith(b"reset reason: connection failure")
            (seen,) = relay.side.seen
            assert (seen.attempts, seen.flag) == (3, "UF")

        run(scenario)

    def test_a_reset_before_the_answer_is_tried_again_where_asked_for(self) -> None:
        """A body up to 64 KiB is sent once more; the default policy has no such condition."""
        body = b"b" * 60_000

        async def scenario(world: World) -> None:
            heard: list[bytes] = []
            relay = await world.relay(await world.origin(failing(1, echo, heard)), retry=RESET)
            assert (await relay.ask(post(body))).body == b"POST / HTTP/1.1|" + body
            assert heard == [b"POST / HTTP/1.1" + body]
            heard.clear()
            relay = await world.relay(await world.origin(failing(1, echo, heard)), retry=DEFAULT)
            assert (await relay.ask(post(body))).status == 503

        run(scenario)

    def test_a_longer_body_is_sent_once(self) -> None:
        """It is not kept, so the failure stands."""

        async def scenario(world: World) -> None:
            heard: list[bytes] = []
            relay = await world.relay(await world.origin(failing(1, echo, heard)), retry=RESET)
            answer = await relay.ask(post(b"b" * 70_000))
            assert (answer.status, len(heard)) == (503, 1)

        run(scenario)

    def test_never_after_the_answer_has_begun(self) -> None:
        """Its head went out: the client sees it cut, and the origin hears no second request."""

        async def scenario(world: World) -> None:
            heard: list[bytes] = []
            begun = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"
            relay = await world.relay(await world.origin(failing(1, echo, heard, begun)), retry=RESET)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await relay.ask(get())
            await asyncio.sleep(0.05)
            assert relay.side.seen[0].attempts == 1

        run(scenario)

    def test_a_status_that_the_policy_names_is_tried_again(self) -> None:
        """The last answer stands when tries run out."""

        async def scenario(world: World) -> None:
            heard: list[bytes] = []
            bad = ok(b"bad", status="503 Service Unavailable")
            relay = await world.relay(await world.origin(failing(1, echo, heard, bad)), retry=ON_503)
            assert (await relay.ask(get())).status == 200
            heard.clear()
            relay = await world.relay(await world.origin(failing(9, echo, heard, bad)), retry=ON_503)
            answer = await relay.ask(get())
            assert (answer.status, answer.body, len(heard)) == (503, b"bad", 3)

        run(scenario)

    @pytest.mark.parametrize(("method", "status"), [("GET", 200), ("POST", 503)])
    def test_a_kept_connection_that_the_server_closed_costs_an_idempotent_request_nothing(
        self, method: str, status: int
    ) -> None:
        """The race of keep-alive: the close crosses the request. Whether a POST was acted on nobody knows."""

        async def once(reader: Reader, writer: Writer) -> None:
            await read_head(reader)
            writer.write(ok(b"one"))
            await read_head(reader)  # and closes

        async def scenario(world: World) -> None:
            relay = await world.relay(await world.origin(once), retry=DEFAULT)
            async with relay.client() as client:
                assert (await client.ask(get())).status == 200
                request = get("/", method) if method == "GET" else post(b"")
                assert (await client.ask(request)).status == status

        run(scenario)

    def test_a_refused_stream_is_tried_again(self) -> None:
        """HTTP/2's own word that nothing was done with it."""
        refused = []

        async def scenario(world: World) -> None:
            behind = await world.relay(await world.origin(echo))
            relay = await world.relay(behind.port, http2=True, retry=DEFAULT)
            take = behind.side.exchange

            def refuse_once(connection, stream, request):  # type: ignore[no-untyped-def]
                if not refused:
                    refused.append(request)
                    stream.reset("REFUSED_STREAM")
                    return None
                return take(connection, stream, request)

            behind.side.exchange = refuse_once  # type: ignore[method-assign]
            assert (await relay.ask(get())).status == 200
            assert relay.side.seen[0].attempts == 2

        run(scenario)

    def test_the_budget_bounds_how_many_are_tried_again_at_once(self) -> None:
        """A share of 0 with room for one: of ten that fail together one is tried again."""

        async def scenario(world: World) -> None:
            policy = RetryPolicy(conditions=frozenset({"5xx"}), base_s=30.0, max_s=30.0)
            heard: list[bytes] = []
            origin = await world.origin(failing(99, echo, heard, ok(status="500 Internal Server Error")))
            relay = await world.relay(origin, retry=policy, budget=RetryBudget(share=0.0, min_concurrency=1))
            relay.side.draw = lambda: 0.99  # type: ignore[method-assign]
            asked = [asyncio.ensure_future(relay.ask(get())) for _ in range(10)]
            await until(lambda: sum(a.done() for a in asked) == 9)
            for each in asked:
                each.cancel()
            assert sum(e.retrial is not None and e.retrial.tries > 1 for e in relay.side.seen) == 1

        run(scenario)


class TestTimeLimits:
    @staticmethod
    async def silent(reader: Reader, writer: Writer) -> None:
        await read_head(reader)
        await reader.read()

    def test_the_whole_is_limited_from_the_requests_end(self) -> None:
        """504 with Envoy's words; the origin's connection ends. A slow upload does not count."""

        async def scenario(world: World) -> None:
            relay = await world.relay(await world.origin(self.silent), timeout_s=0.2)
            answer = await relay.ask(get())
            assert (answer.status, answer.body) == (504, b"upstream request timeout")
            assert relay.side.seen[0].flag == "UT"
            await until(lambda: not relay.side.upstream.connections)
            relay = await world.relay(await world.origin(echo), timeout_s=0.2)
            async with relay.client() as client:
                client.send(get("/", "POST", content_length="2") + b"a")
                await asyncio.sleep(0.4)
                client.send(b"b")
                assert (await client.answer()).status == 200

        run(scenario)

    def test_an_answer_that_does_not_end_in_time_is_cut(self) -> None:
        """As in Envoy: the limit is on the whole answer."""

        async def slow(reader: Reader, writer: Writer) -> None:
            await read_head(reader)
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nabc")
            await reader.read()

        async def scenario(world: World) -> None:
            relay = await world.relay(await world.origin(slow), timeout_s=0.2)
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await relay.ask(get())
            assert relay.side.seen[0].flag == "UT"

        run(scenario)

    def test_each_try_has_its_own_limit(self) -> None:
        """A try that took too long is followed by another, as the policy says."""

        async def scenario(world: World) -> None:
            first = []

            async def slow_once(reader: Reader, writer: Writer) -> None:
                if not first:
                    first.append(True)
                    await self.silent(reader, writer)
                await echo(reader, writer)

            policy = RetryPolicy(conditions=frozenset({"5xx"}), per_try_timeout_s=0.1, base_s=0.001)
            relay = await world.relay(await world.origin(slow_once), retry=policy)
            assert (await relay.ask(get())).status == 200
            relay = await world.relay(await world.origin(self.silent), retry=policy)
            assert (await relay.ask(get())).status == 504
            assert relay.side.seen[0].attempts == 3

        run(scenario)

    def test_a_limit_of_the_whole_holds_over_all_tries(self) -> None:
        """The pause between tries counts."""

        async def scenario(world: World) -> None:
            policy = RetryPolicy(conditions=frozenset({"reset", "connect-failure"}), base_s=9.0, max_s=9.0)
            relay = await world.relay(closed_port(), retry=policy, timeout_s=0.2)
            assert (await relay.ask(get())).status == 504

        run(scenario)


class TestCircuits:
    def test_more_requests_than_allowed_are_refused_at_once(self) -> None:
        """503 with flag UO, and a word that other proxies do not try again on."""

        async def scenario(world: World) -> None:
            go_on = asyncio.Event()

            async def held(reader: Reader, writer: Writer) -> None:
                await read_head(reader)
                await go_on.wait()
                writer.write(ok())

            relay = await world.relay(await world.origin(held), retry=DEFAULT, pool=ConnectionPool(max_requests=2))
            pair = [asyncio.ensure_future(relay.ask(get())) for _ in range(2)]
            await until(lambda: relay.side.group.circuit.requests == 2)  # type: ignore[union-attr]
            third = await relay.ask(get())
            assert (third.status, third.fields[b"x-envoy-overloaded"]) == (503, b"true")
            assert third.body.endswith(b"reset reason: overflow")
            assert [e.flag for e in relay.side.seen] == ["", "", "UO"]
            go_on.set()
            assert [(await a).status for a in pair] == [200, 200]
            assert relay.side.group.circuit.requests == 0  # type: ignore[union-attr]
            assert (await relay.ask(get())).status == 200

        run(scenario)

    def test_one_connection_serves_those_who_may_wait_and_refuses_the_rest(self) -> None:
        """maxConnections 1, http1MaxPendingRequests 1."""

        async def scenario(world: World) -> None:
            pool = ConnectionPool(max_connections=1, max_pending_requests=1)
            opened = []

            async def slow(reader: Reader, writer: Writer) -> None:
                opened.append(True)
                while True:
                    await read_head(reader)
                    await asyncio.sleep(0.1)
                    writer.write(ok())

            relay = await world.relay(await world.origin(slow), pool=pool)
            assert (await relay.ask(get())).status == 200
            answers = await asyncio.gather(*(relay.ask(get()) for _ in range(4)))
            assert sorted(a.status for a in answers) == [200, 200, 503, 503]
            assert len(opened) == 1
            circuit = relay.side.group.circuit
            assert (circuit.connections, circuit.pending, circuit.requests) == (1, 0, 0)  # type: ignore[union-attr]

        run(scenario)

    def test_a_connection_retires_after_so_many_requests(self) -> None:
        """maxRequestsPerConnection."""

        async def scenario(world: World) -> None:
            opened = []

            async def counting(reader: Reader, writer: Writer) -> None:
                opened.append(True)
                await echo(reader, writer)

            relay = await world.relay(
                await world.origin(counting), pool=ConnectionPool(max_requests_per_connection=2)
            )
            async with relay.client() as client:
                for _ in range(5):
                    assert (await client.ask(get())).status == 200
            assert len(opened) == 3

        run(scenario)

    def test_an_idle_connection_ends_after_its_limit(self) -> None:
        """And the next request takes a new one."""

        async def scenario(world: World) -> None:
            relay = await world.relay(await world.origin(echo), pool=ConnectionPool(http_idle_timeout_s=5.0))
            upstream = relay.side.upstream
            assert (await relay.ask(get())).status == 200
            upstream.end_idle(world.loop.time())
            upstream.end_idle(world.loop.time() + 4.0)
            assert len(upstream.connections) == 1
            upstream.end_idle(world.loop.time() + 6.0)
            await until(lambda: not upstream.connections)
            assert (await relay.ask(get())).status == 200

        run(scenario)


class TestOutliers:
    def test_an_endpoint_that_fails_in_a_row_gets_no_more_requests(self) -> None:
        """Its answers were passed on until then."""

        async def scenario(world: World) -> None:
            heard: list[bytes] = []
            bad = await world.origin(failing(99, echo, heard, ok(status="500 Internal Server Error")))
            good = await world.origin(echo)
            relay = await world.relay(
                bad, good, outliers=OutlierDetection(consecutive_5xx=3, max_ejection_share=1.0)
            )
            statuses = [(await relay.ask(get())).status for _ in range(40)]
            assert len(heard) == 3
            assert (statuses.count(500), statuses.count(200)) == (3, 37)

        run(scenario)


class TestMirrors:
    def test_a_copy_goes_to_the_mirror_and_its_answer_nowhere(self) -> None:
        """Body and all, with `-shadow` behind the host; a mirror that is gone is not noticed."""

        async def scenario(world: World) -> None:
            copies = []

            async def mirrored(reader: Reader, writer: Writer) -> None:
                _, fields = await read_head(reader)
                body, _ = await read_body(reader, fields)
                copies.append((fields[b"host"], fields[b":line"], body))
                writer.write(ok(b"nobody reads this", status="500 Internal Server Error"))

            relay = await world.relay(await world.origin(echo))
            other = await world.relay(await world.origin(mirrored))
            gone = await world.relay(closed_port())
            relay.side.decision.mirrors = ("other", "gone")  # type: ignore[assignment]
            relay.side.mirrors = {"other": other.side.upstream, "gone": gone.side.upstream}
            assert (await relay.ask(post(b"hello", "/m"))).body == b"POST /m HTTP/1.1|hello"
            await until(lambda: bool(copies))
            assert copies == [(b"web-shadow", b"POST /m HTTP/1.1", b"hello")]

        run(scenario)


class TestLeftovers:
    @pytest.mark.parametrize("http2", [False, True], ids=["http/1.1", "http/2 between"])
    def test_thousands_of_connections_leave_nothing(self, http2: bool) -> None:
        """Answered, cut, refused: no exchange, connection or count is left."""
        kinds = (Exchange, Attempt, HttpConnection, Http1Server, Http1Client, Http2Server, Http2Client)

        def count() -> int:
            gc.collect()
            return sum(isinstance(o, kinds) for o in gc.get_objects())

        async def scenario(world: World) -> None:
            inner = await world.relay(await world.origin(echo))
            relay = await world.relay(inner.port, http2=True) if http2 else inner
            dead = await world.relay(closed_port())

            async def one(number: int) -> None:
                if number % 7 == 0:
                    assert (await dead.ask(get())).status == 503
                    return
                async with relay.client() as client:
                    client.send(get() if number % 5 else get("/", "POST", content_length="10") + b"abc")
                    if number % 5 and number % 3:
                        assert (await client.answer()).status == 200

            for start in range(0, 2000, 50):
                await asyncio.gather(*(one(start + n) for n in range(50)))
            sides = [inner.side, relay.side, dead.side]
            for side in sides:
                for upstream in side.upstreams.values():
                    upstream.close()
            for side in sides:
                await until(lambda side=side: not side.connections)
                for upstream in side.upstreams.values():
                    await until(lambda upstream=upstream: upstream.unused)
                    assert upstream.host.active == 0  # type: ignore[union-attr]
                    assert upstream.group.retries.active_requests == 0
                side.seen.clear()
            await asyncio.sleep(0.1)
            assert count() == 0
            assert sum(isinstance(o, Upstream) for o in gc.get_objects()) == len({id(s) for s in sides})

        assert count() == 0
        run(scenario)

    def test_a_request_leaves_no_circle_for_the_collector(self) -> None:
        """What an exchange was made of goes with it, so that collections are rare."""

        async def scenario(world: World) -> None:
            relay = await world.relay(await world.origin(echo))
            relay.side.seen = _Forgetful()  # type: ignore[assignment]
            async with relay.client() as client:
                await client.ask(get())
                gc.collect()
                gc.disable()
                try:
                    for _ in range(50):
                        await client.ask(get())
                        await client.ask(post(b"abc"))
                    await asyncio.sleep(0.05)
                    left = [o for o in gc.get_objects() if isinstance(o, Exchange | Attempt)]
                finally:
                    gc.enable()
            assert not left

        run(scenario)


class _Forgetful(list):  # type: ignore[type-arg]
    def append(self, item: object) -> None: ...
