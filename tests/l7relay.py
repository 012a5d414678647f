"""An L7 proxy of one listener in the test's own event loop: everything but policy and routes is the real thing.

`run(scenario)` gives a scenario a `World`: relays and origins on loopback, and raw clients. An origin is a coroutine
per connection that reads and writes bytes as the test wants; nothing here pretends to be a socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from planes.l7.accept import Detecting
from planes.l7.balance import Balancer, Host
from planes.l7.decision import Decision, Kind
from planes.l7.detect import Detected
from planes.l7.dial import Dialler, Security, Way
from planes.l7.exchange import Exchange
from planes.l7.group import Group
from planes.l7.retry import RetryPolicy
from planes.l7.serve import Downstream, HttpSide
from planes.l7.settings import Settings
from planes.l7.telemetry import HttpMetrics
from planes.l7.upstream import Upstream
from planes.mesh import net
from planes.mesh.metrics import Peer
from planes.mesh.view import Endpoint
from testbed.model.traffic import ConnectionPool, OutlierDetection, RetryBudget, TrafficPolicy
from tests import meshviews

LIMIT_S = 60.0
Reader, Writer = asyncio.StreamReader, asyncio.StreamWriter
Serve = Callable[[Reader, Writer], Awaitable[None]]


class Program:
    """What a side asks of its program."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.settings = Settings(
            name="relay", role="sidecar", folder=Path(), view=Path(), l7={}, identities={}, workload=("test", "relay")
        )
        self.dialler = Dialler(loop, None, baggage=lambda: "")  # type: ignore[arg-type]
        self.draw = random.Random(7).random
        self.random_bits = random.Random(7).getrandbits
        self.http_metrics = HttpMetrics()
        self.log = None
        self.draining = False


class Relay(HttpSide):
    """Every request goes to one cluster of origins, by one decision that a test may change."""

    def __init__(self, program: Program, ports: list[int], policy: TrafficPolicy, *, http2: bool) -> None:
        super().__init__(program)  # type: ignore[arg-type]
        self.decision = Decision(Kind.FORWARD, route="test")
        self.group = Group(policy)
        view = meshviews.view([meshviews.workload(f"o{port}", f"127.0.0.{n + 1}") for n, port in enumerate(ports)])
        members = [Host(Endpoint(workload=w, ports={}), port) for w, port in zip(view.workloads, ports, strict=True)]
        self.balancer = Balancer(members, policy.load_balancing)
        self.group.watch(policy, self.balancer, program.loop.time())
        self.upstreams: dict[Host, Upstream] = {}
        for host in members:
            way = Way(security=Security.PLAIN, address=("127.0.0.1", host.port), http2=http2)
            self.upstreams[host] = program.dialler.upstream(way, "cluster", self.group)
            self.upstreams[host].host = host
        self.seen: list[Exchange] = []
        self.mirrors: dict[object, Upstream] = {}

    def decide(self, exchange: Exchange) -> Decision:
        self.seen.append(exchange)
        return self.decision

    def choose(self, exchange: Exchange) -> Upstream | None:
        tried = [u.host for u in exchange.tried]
        host = self.balancer.pick(exchange.request, self.draw, tried=tried)  # type: ignore[arg-type]
        return self.upstreams[host] if host is not None else None

    def mirror(self, exchange: Exchange, cluster: object) -> Upstream | None:
        return self.mirrors.get(cluster)

    def described(self, exchange: Exchange) -> tuple[Peer, Peer, None]:
        return Peer(), Peer(), None

    @property
    def upstream(self) -> Upstream:
        (only,) = self.upstreams.values()
        return only


class World:
    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._servers: list[asyncio.AbstractServer] = []
        self._relays: list[Relay] = []
        self._tasks: set[asyncio.Task[Any]] = set()

    async def origin(self, serve: Serve) -> int:
        """Its port. What a connection's coroutine raises fails the test."""

        async def connected(reader: Reader, writer: Writer) -> None:
            try:
                await serve(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError):
                pass  # the proxy ended it, which is for the test to judge
            finally:
                writer.close()

        server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=1 << 20)
        self._servers.append(server)
        return server.sockets[0].getsockname()[1]

    async def relay(
        self, *ports: int, http2: bool = False, retry: RetryPolicy | None = None, timeout_s: float | None = None,
        pool: ConnectionPool | None = None, outliers: OutlierDetection | None = None, budget: RetryBudget | None = None,
    ) -> Endpointed:  # fmt: skip
        policy = TrafficPolicy(connection_pool=pool, outlier_detection=outliers, retry_budget=budget)
        relay = Relay(Program(self.loop), list(ports), policy, http2=http2)
        relay.decision.retry, relay.decision.timeout_s = retry, timeout_s
        sock = net.listen("127.0.0.1", 0)
        port = sock.getsockname()[1]

        def accepted() -> asyncio.Protocol:
            def serve(found: Detected, transport: asyncio.Transport) -> asyncio.Protocol:
                return relay.serve(found, Downstream(source=("127.0.0.1", 1), destination=("127.0.0.1", port)))

            return Detecting(self.loop, serve)

        self._servers.append(await net.serve(self.loop, accepted, sock))
        self._relays.append(relay)
        return Endpointed(relay, port)

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for relay in self._relays:
            relay.stop()
            relay.program.dialler.stop()
        await asyncio.sleep(0.01)


class Endpointed:
    """A relay and the port that reaches it."""

    def __init__(self, relay: Relay, port: int) -> None:
        self.side = relay
        self.port = port

    @contextlib.asynccontextmanager
    async def client(self, *, buffer_bytes: int | None = None) -> AsyncIterator[Client]:
        sock = socket.socket()
        if buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        reader, writer = await asyncio.open_connection(sock=sock, limit=1 << 20)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()

    async def ask(self, request: bytes) -> Answer:
        """One request on a connection of its own."""
        async with self.client() as client:
            return await client.ask(request)


class Answer:
    def __init__(self, status: int, fields: dict[bytes, bytes], body: bytes, trailers: dict[bytes, bytes]) -> None:
        self.status, self.fields, self.body, self.trailers = status, fields, body, trailers

    def __repr__(self) -> str:
        return f"<Answer {self.status} {self.body[:60]!r}>"


class Client:
    def __init__(self, reader: Reader, writer: Writer) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def ask(self, request: bytes) -> Answer:
        self.send(request)
        return await self.answer(head=request.startswith(b"HEAD"))

    async def answer(self, *, head: bool = False) -> Answer:
        status, fields = await read_head(self.reader)
        if head or status in (204, 304) or status < 200:
            return Answer(status, fields, b"", {})
        body, trailers = await read_body(self.reader, fields)
        return Answer(status, fields, body, trailers)

    async def ended(self) -> bool:
        """Whether the proxy has closed, and said nothing more."""
        try:
            return await self.reader.read(1) == b""
        except ConnectionError:
            return True


async def read_head(reader: Reader) -> tuple[int, dict[bytes, bytes]]:
    """(status of a response, or 0 of a request, and its fields; `:line` is the start line)."""
    lines = (await reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
    fields = {b":line": lines[0]}
    for line in lines[1:]:
        name, _, value = line.partition(b": ")
        fields[name] = value
    return int(lines[0].split()[1]) if lines[0].startswith(b"HTTP/") else 0, fields


async def read_body(reader: Reader, fields: dict[bytes, bytes]) -> tuple[bytes, dict[bytes, bytes]]:
    if b"content-length" in fields:
        return await reader.readexactly(int(fields[b"content-length"])), {}
    if fields.get(b"transfer-encoding") != b"chunked":
        return (await reader.read(-1), {}) if fields[b":line"].startswith(b"HTTP/") else (b"", {})
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += (await reader.readexactly(size + 2))[:-2]
    trailers = {}
    while (line := (await reader.readuntil(b"\r\n"))[:-2]) != b"":
        name, _, value = line.partition(b": ")
        trailers[name] = value
    return body, trailers


def get(path: str = "/", method: str = "GET", **fields: str) -> bytes:
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\nhost: web\r\n{lines}\r\n".encode()


def post(body: bytes, path: str = "/", **fields: str) -> bytes:
    return get(path, "POST", content_length=str(len(body)), **fields) + body


def ok(body: bytes = b"", *, status: str = "200 OK", fields: bytes = b"") -> bytes:
    return b"HTTP/1.1 %b\r\ncontent-length: %d\r\n%b\r\n%b" % (status.encode(), len(body), fields, body)


async def echo(reader: Reader, writer: Writer) -> None:
    """Answers every request with its start line and body."""
    while True:
        _, fields = await read_head(reader)
        body, trailers = await read_body(reader, fields)
        text = fields[b":line"] + b"|" + body + (b"|" + repr(trailers).encode() if trailers else b"")
        if fields[b":line"].startswith(b"HEAD"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(text))
        else:
            writer.write(ok(text))


def run(scenario: Callable[[World], Awaitable[None]]) -> None:
    """The scenario in a loop of its own; what the loop had to complain of fails the test."""
    complaints: list[dict[str, Any]] = []

    async def whole() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, problem: complaints.append(problem))
        world = World(loop)
        try:
            async with asyncio.timeout(LIMIT_S):
                await scenario(world)
        finally:
            await world.close()

    loop = net.new_loop()
    try:
        loop.run_until_complete(whole())
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
    assert not complaints, complaints


def held_bytes(side: Relay) -> int:
    """What a relay keeps of bodies, in its transports and codecs: unsent, and not yet handed on."""
    held = 0
    for connection in (*side.connections, *(c for u in side.upstreams.values() for c in u.connections)):
        held += connection.transport.get_write_buffer_size() + sum(map(len, connection.codec.out))
        for stream in getattr(connection.codec, "streams", {}).values():
            held += stream.pending_bytes
    return held


async def until(condition: Callable[[], bool], within_s: float = 5.0) -> None:
    give_up_s = asyncio.get_running_loop().time() + within_s
    while not condition():
        assert asyncio.get_running_loop().time() < give_up_s, "condition not met in time"
        await asyncio.sleep(0.005)
