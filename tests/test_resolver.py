"""The resolver's shell: hosts, then a name server, asked once for what several want."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from planes.mesh.names import Answer
from planes.mesh.resolver import Resolver, server
from tests import dnsserver

NAME = "files.example.com"


@contextmanager
def name_server(table: dict[str, list[dnsserver.Row]]) -> Iterator[tuple[tuple[str, int], list[tuple[str, int]]]]:
    """(address, questions that came)."""
    seen: list[tuple[str, int]] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(0.1)
        thread = threading.Thread(target=dnsserver.serve, args=(sock, table, seen))
        thread.start()
        try:
            yield sock.getsockname(), seen
        finally:
            sock.close()
            thread.join()


def test_what_is_written_down_is_never_asked() -> None:
    """As /etc/hosts before DNS."""

    async def never(name: str) -> Answer:
        raise AssertionError(name)

    resolver = Resolver({"Files.Example.com": ("10.0.0.1",)}, never, lambda: 0.0)

    assert asyncio.run(resolver.lookup(NAME)).addresses == ("10.0.0.1",)


def test_without_a_name_server_a_name_has_no_address() -> None:
    """And the reason says what is missing."""
    answer = asyncio.run(Resolver({}, None, lambda: 0.0).lookup(NAME))

    assert answer.addresses == () and "no name server is configured" in answer.reason


def test_many_who_want_one_name_are_one_question() -> None:
    """Until its lifetime is over; then it is asked again, and the new address counts."""
    asked: list[str] = []
    now = [0.0]

    async def ask(name: str) -> Answer:
        asked.append(name)
        await asyncio.sleep(0)
        return Answer(addresses=(f"10.0.0.{len(asked)}",), ttl_s=10)

    async def go() -> None:
        resolver = Resolver({}, ask, lambda: now[0])
        first = await asyncio.gather(*(resolver.lookup(NAME) for _ in range(20)))
        assert {a.addresses for a in first} == {("10.0.0.1",)} and asked == [NAME]
        now[0] = 9.9
        assert (await resolver.lookup(NAME.upper())).addresses == ("10.0.0.1",)
        now[0] = 10.0
        assert (await resolver.lookup(NAME)).addresses == ("10.0.0.2",)
        assert len(asked) == 2 and resolver.lookups == 22

    asyncio.run(go())


def test_who_gives_up_does_not_take_the_answer_away() -> None:
    """A client that leaves while the question is under way."""

    async def go() -> None:
        answered = asyncio.Event()

        async def ask(name: str) -> Answer:
            await answered.wait()
            return Answer(addresses=("10.0.0.1",), ttl_s=10)

        resolver = Resolver({}, ask, lambda: 0.0)
        leaver, stayer = (asyncio.ensure_future(resolver.lookup(NAME)) for _ in range(2))
        await asyncio.sleep(0)
        leaver.cancel()
        await asyncio.sleep(0)
        answered.set()
        assert (await stayer).addresses == ("10.0.0.1",)

    asyncio.run(go())


def test_a_name_server_is_asked_for_both_families() -> None:
    """Over UDP, by the real shell; whoever does not exist is told so."""
    with name_server({NAME: [(NAME, 60, "10.0.0.1"), (NAME, 40, "fd00::1")]}) as (address, seen):
        answer = asyncio.run(server(address)(NAME))
        assert answer == Answer(addresses=("10.0.0.1", "fd00::1"), ttl_s=40)
        assert set(seen) == {(NAME, 1), (NAME, 28)}  # a busy machine asks again
        assert "NXDOMAIN" in asyncio.run(server(address)("nobody.example")).reason


def test_nobody_at_the_name_servers_port_is_a_reason() -> None:
    """ICMP says so at once."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.99.0.1", 0))  # where nobody else takes the port meanwhile
        address = sock.getsockname()

    assert "cannot be reached" in asyncio.run(server(address)(NAME)).reason
