"""Who turns host names into addresses: what is written down first, then a name server over UDP. Never blocks the loop.

`Resolver.lookup` answers from its cache without waiting; several who want one name at once wait for one question.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping

from planes.mesh import dns
from planes.mesh.names import Answer, NameCache

PORT = 53
TRY_S, TRIES = 2.0, 2

Ask = Callable[[str], Awaitable[Answer]]


class Resolver:
    """`hosts` come before `ask`, as /etc/hosts comes before DNS, and are always true."""

    def __init__(self, hosts: Mapping[str, tuple[str, ...]], ask: Ask | None, now: Callable[[], float]) -> None:
        self._hosts = {name.lower().rstrip("."): addresses for name, addresses in hosts.items()}
        self._ask = ask
        self._now = now
        self._cache = NameCache()
        self._under_way: dict[str, asyncio.Task[Answer]] = {}
        self.lookups = 0
        """How often somebody wanted a name, whether it was known or not."""

    async def lookup(self, name: str) -> Answer:
        self.lookups += 1
        name = name.lower().rstrip(".")
        written = self._hosts.get(name)
        if written:
            return Answer(addresses=written)
        if self._ask is None:
            return Answer(reason="no hosts entry has it, and no name server is configured")
        held = self._cache.get(name, self._now())
        if held is not None:
            return held
        task = self._under_way.get(name)
        if task is None:
            task = self._under_way[name] = asyncio.ensure_future(self._asked(name))
        return await asyncio.shield(task)  # who gives up must not take the answer away from the others

    async def _asked(self, name: str) -> Answer:
        assert self._ask is not None
        try:
            answer = await self._ask(name)
            self._cache.put(name, answer, self._now())
            return answer
        finally:
            del self._under_way[name]


def server(address: tuple[str, int]) -> Ask:
    """Asks the name server at `address` for both families at once."""

    async def ask(name: str) -> Answer:
        four, six = await asyncio.gather(_one(address, name, dns.A), _one(address, name, dns.AAAA))
        found = [answer for answer in (four, six) if answer.addresses]
        if not found:
            return four
        return Answer(addresses=tuple(a for f in found for a in f.addresses), ttl_s=min(f.ttl_s for f in found))

    return ask


async def _one(address: tuple[str, int], name: str, kind: int) -> Answer:
    loop = asyncio.get_running_loop()
    number = secrets.randbelow(1 << 16)
    try:
        question = dns.query(number, name, kind)
        # A socket of its own, connected: its port is another one each time, and nobody else's packets come in.
        transport, listener = await loop.create_datagram_endpoint(
            lambda: _Listener(loop, number, name, kind), remote_addr=address
        )
    except (OSError, ValueError) as cause:
        return Answer(reason=str(cause))
    try:
        for _ in range(TRIES):
            transport.sendto(question)
            try:
                async with asyncio.timeout(TRY_S):
                    return await asyncio.shield(listener.answer)
            except TimeoutError:
                continue
        return Answer(reason=f"the name server at {address[0]}:{address[1]} does not answer")
    finally:
        transport.close()


class _Listener(asyncio.DatagramProtocol):
    def __init__(self, loop: asyncio.AbstractEventLoop, number: int, name: str, kind: int) -> None:
        self._asked = (number, name, kind)
        self.answer: asyncio.Future[Answer] = loop.create_future()

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        try:
            found = dns.answer(data, *self._asked)
        except ValueError as cause:
            found = Answer(reason=f"the name server's answer cannot be read: {cause}")
        if found is not None and not self.answer.done():
            self.answer.set_result(found)

    def error_received(self, exc: OSError) -> None:
        """Nobody listens there, for one."""
        if not self.answer.done():
            self.answer.set_result(Answer(reason=f"the name server cannot be reached: {exc.strerror or exc}"))
