"""The first bytes of an accepted socket are waited for without looking again and again, and are left where they are."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator

import pytest

from planes.l7.accept import PEEK_BYTES, first_bytes
from planes.l7.detect import Detected

LIMIT_S = 30


class Counted(socket.socket):
    """Counts how often it is looked at."""

    looks = 0

    def recv(self, *arguments: int) -> bytes:  # type: ignore[override]
        self.looks += 1
        return super().recv(*arguments)


@contextlib.contextmanager
def connected() -> Iterator[tuple[socket.socket, Counted]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname(), timeout=LIMIT_S)
        accepted, _ = listener.accept()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with client, Counted(fileno=accepted.detach()) as server:
        server.setblocking(False)
        yield client, server


async def found(server: Counted, limit_s: float | None = None) -> tuple[Detected, bytes]:
    loop = asyncio.get_running_loop()
    return await asyncio.wait_for(first_bytes(loop, server, limit_s=limit_s), LIMIT_S)


def test_a_silent_client_of_one_byte_is_not_looked_at_again() -> None:
    """A thousand of them must not take the processor; the byte that decides is seen when it comes, all still unread."""

    async def run() -> None:
        with connected() as (client, server):
            client.sendall(b"G")
            waiting = asyncio.ensure_future(found(server))
            while not server.looks:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            before = server.looks
            client.sendall(b"ET / HTTP/1.1\r\n")
            assert await waiting == (Detected.HTTP1, b"GET / HTTP/1.1\r\n")
            assert before <= 2 and server.recv(100) == b"GET / HTTP/1.1\r\n"

    asyncio.run(run())


@pytest.mark.parametrize("cut", [1, 5, 14])
def test_bytes_that_come_late_are_all_looked_at(cut: int) -> None:
    """In two parts, whichever; and reading afterwards wakes at the first byte again."""

    async def run() -> None:
        whole = b"GET / HTTP/1.1\r\n"
        with connected() as (client, server):
            client.sendall(whole[:cut])
            waiting = asyncio.ensure_future(found(server))
            await asyncio.sleep(0.05)
            client.sendall(whole[cut:])
            assert await waiting == (Detected.HTTP1, whole)
            assert server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1

    asyncio.run(run())


def test_a_client_that_ends_within_its_first_bytes_is_not_waited_for() -> None:
    """What is no protocol so far will be none."""

    async def run() -> None:
        with connected() as (client, server):
            client.sendall(b"GE")
            client.shutdown(socket.SHUT_WR)
            assert await found(server) == (Detected.TCP, b"GE")

    asyncio.run(run())


def test_a_request_line_longer_than_is_looked_at_is_http_all_the_same() -> None:
    """As TCP it would pass by every policy on layer 7."""

    async def run() -> None:
        with connected() as (client, server):
            client.sendall(b"GET /" + b"a" * (PEEK_BYTES + 1000))
            kind, seen = await found(server)
            assert kind is Detected.HTTP1 and len(seen) <= PEEK_BYTES

    asyncio.run(run())
