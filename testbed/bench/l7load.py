"""The load of `testbed.bench.l7`: an application that answers at once, and callers in closed and open loops.

Both ends are as cheap as Python makes them, for they share two cores with the proxies that are measured.
"""

from __future__ import annotations

import asyncio
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from testbed.bench.l7config import HOST
from testbed.bench.loopback import cpu_s

BODY_BYTES = 128
SETTLE_S = 0.1
"""Of a slice, before anything counts: caches and batches as they will be."""
ANSWERED_WITHIN_S = 10.0
REQUEST = f"GET /small HTTP/1.1\r\nhost: {HOST}\r\nuser-agent: bench\r\naccept: */*\r\n\r\n".encode()
ANSWER = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\nserver: app\r\ncontent-length: %d\r\n\r\n" % BODY_BYTES
    + b"x" * BODY_BYTES
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A role of an implementation, running."""

    target: tuple[str, int]
    measured: dict[str, int]
    """Pids of the processes that are judged, by what they are."""
    processes: list[subprocess.Popen[bytes]]


class Application(asyncio.Protocol):
    """Answers every small request alike; counts what is posted to it, and says how much it was."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.head = b""
        self.left = 0
        self.posted = 0

    def data_received(self, data: bytes) -> None:
        if self.left:
            self._post(len(data))
            return
        data = self.head + data
        if data.startswith(b"POST"):
            head, split, rest = data.partition(b"\r\n\r\n")
            if not split:
                self.head = data
                return
            self.head = b""
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
            self.left = self.posted = int(length.split(b":")[1])
            self._post(len(rest))
            return
        count = data.count(b"\r\n\r\n")
        self.head = b"" if data.endswith(b"\r\n\r\n") else data[data.rfind(b"\r\n\r\n") + 4 if count else 0 :]
        if count:
            self.transport.write(ANSWER * count)

    def _post(self, size: int) -> None:
        self.left -= size
        if not self.left:
            text = str(self.posted).encode()
            self.transport.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text))


class Caller(asyncio.Protocol):
    """One keep-alive connection with at most one request under way."""

    def __init__(self, answered: Callable[[Caller], None]) -> None:
        self.answered = answered
        self.sent_s = 0.0
        self.got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]

    def ask(self, due_s: float) -> None:
        self.sent_s = due_s
        self.transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self.got += data
        at = self.got.find(b"\r\n\r\n")
        if at >= 0 and len(self.got) >= at + 4 + BODY_BYTES:
            if not self.got.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(f"answer: {self.got[:200]!r}")
            self.got = b""
            self.answered(self)

    def connection_lost(self, error: Exception | None) -> None:
        self.answered = lambda _: None


class ClosedLoop:
    """Keep-alive connections to one chain, each asking again once it is answered; it runs for a slice of time, and the
    figures of its slices add up. `connect` first."""

    def __init__(self, chain: Chain, connections: int) -> None:
        self.chain = chain
        self.requests = 0
        self.spent_s = 0.0
        self.used_s = dict.fromkeys(chain.measured, 0.0)
        self._connections = connections
        self._answered = 0
        self._runs = False
        self._idle: list[Caller] = []
        self._transports: list[asyncio.Transport] = []

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(self._connections):
            transport, caller = await loop.create_connection(lambda: Caller(self._on_answer), *self.chain.target)
            self._transports.append(transport)
            self._idle.append(caller)

    def _on_answer(self, caller: Caller) -> None:
        self._answered += 1
        if self._runs:
            caller.ask(0)
        else:
            self._idle.append(caller)

    async def slice(self, window_s: float) -> None:
        """`window_s` that count after a while that does not, then the last answers."""
        self._runs = True
        idle, self._idle = self._idle, []
        for caller in idle:
            caller.ask(0)
        await asyncio.sleep(SETTLE_S)
        began_s, start = time.perf_counter(), self._answered
        before = {name: cpu_s(pid) for name, pid in self.chain.measured.items()}
        await asyncio.sleep(window_s)
        for name, pid in self.chain.measured.items():
            self.used_s[name] += cpu_s(pid) - before[name]
        self.requests += self._answered - start
        self.spent_s += time.perf_counter() - began_s
        self._runs = False
        async with asyncio.timeout(ANSWERED_WITHIN_S):
            while len(self._idle) < self._connections:
                await asyncio.sleep(0.002)

    def figures(self) -> tuple[float, dict[str, float]]:
        """(requests per second, µs of CPU per request and process)."""
        if not self.requests:
            raise RuntimeError(f"no request came back from {self.chain.target}")
        used_us = {name: used_s / self.requests * 1e6 for name, used_s in self.used_s.items()}
        return self.requests / self.spent_s, used_us

    def close(self) -> None:
        for transport in self._transports:
            transport.abort()


async def saturate(
    chains: Sequence[Chain], *, connections: int, window_s: float, slices: int = 6
) -> list[tuple[float, dict[str, float]]]:
    """Figures of each chain, closed loop. They take turns several times: what a core gets done in a second changes by
    half from one to the next on a shared machine, and would pass for a difference between them."""
    loops = [ClosedLoop(chain, connections) for chain in chains]
    try:
        for held in loops:
            await held.connect()
            await held.slice(SETTLE_S)  # handshakes, pools and first times
            held.requests, held.spent_s, held.used_s = 0, 0.0, dict.fromkeys(held.used_s, 0.0)
        for _ in range(slices):
            for held in random.sample(loops, len(loops)):
                await held.slice(window_s / slices)
        return [held.figures() for held in loops]
    finally:
        for held in loops:
            held.close()
        await asyncio.sleep(0.2)


async def open_loop(target: tuple[str, int], *, rate_per_s: int, window_s: float) -> float:
    """The median of milliseconds from when a request was due to its answer, evenly spaced over idle connections."""
    loop = asyncio.get_running_loop()
    free: list[Caller] = []
    taken_ms: list[float] = []

    def answered(caller: Caller) -> None:
        taken_ms.append((time.perf_counter() - caller.sent_s) * 1000)
        free.append(caller)

    made = [await loop.create_connection(lambda: Caller(answered), *target) for _ in range(8)]
    for _, caller in made:
        caller.ask(0)
    await asyncio.sleep(0.3)
    taken_ms.clear()
    began_s = time.perf_counter()  # uvloop's own clock goes in milliseconds
    for number in range(int(rate_per_s * window_s)):
        due_s = began_s + number / rate_per_s
        wait_s = due_s - time.perf_counter()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        if free:
            free.pop(0).ask(max(due_s, time.perf_counter() - 0.001))  # a timer of one millisecond is not the proxy's
    await asyncio.sleep(0.2)
    for transport, _ in made:
        transport.abort()
    await asyncio.sleep(0.05)
    return statistics.median(taken_ms)


def post(chain: Chain, megabytes: int) -> tuple[float, dict[str, float]]:
    """(MB/s, µs of CPU per MiB and process) of one long request body."""
    before = {k: cpu_s(pid) for k, pid in chain.measured.items()}
    chunk = b"y" * (1 << 18)
    with socket.create_connection(chain.target) as sock:
        began_s = time.perf_counter()
        sock.sendall(f"POST /bulk HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: {megabytes << 20}\r\n\r\n".encode())
        for _ in range(megabytes * 4):
            sock.sendall(chunk)
        got = b""
        while not got.endswith(str(megabytes << 20).encode()):
            data = sock.recv(4096)
            if not data:
                raise RuntimeError(f"bulk: {got!r}")
            got += data
        spent_s = time.perf_counter() - began_s
    used = {k: (cpu_s(pid) - before[k]) / megabytes * 1e6 for k, pid in chain.measured.items()}
    return megabytes * 1.048576 / spent_s, used


def serve(address: str, port: int) -> None:
    loop = import_module("uvloop").new_event_loop()
    loop.run_until_complete(loop.create_server(Application, address, port))
    loop.run_forever()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]))
