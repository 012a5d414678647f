"""The load of `bench.proxy`: turns between chains, and what counts."""

from __future__ import annotations

import asyncio
import os

import pytest

from testbed.bench.l7load import Application, Chain, ClosedLoop, open_loop, saturate


async def _chain(protocol: type[asyncio.Protocol] = Application) -> tuple[asyncio.AbstractServer, Chain]:
    """The application alone, called directly; the process that is judged is this one."""
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    target = server.sockets[0].getsockname()[:2]
    return server, Chain(target=target, measured={"app": os.getpid()}, processes=[])


def test_every_chain_has_figures_of_its_own_turns() -> None:
    """Requests of one are not another's, though they share the time."""

    async def go() -> None:
        (one, first), (two, second) = await _chain(), await _chain()
        async with one, two:
            figures = await saturate([first, second], connections=3, window_s=0.06, slices=2)
        assert len(figures) == 2
        for per_s, used_us in figures:
            assert per_s > 0
            assert used_us["app"] > 0

    asyncio.run(go())


def test_between_slices_nothing_is_under_way() -> None:
    """A slice ends with its last answer, so the next chain has the machine to itself."""

    async def go() -> None:
        server, chain = await _chain()
        async with server:
            loop = ClosedLoop(chain, 4)
            await loop.connect()
            await loop.slice(0.02)
            counted = loop._answered
            await asyncio.sleep(0.05)
            assert loop._answered == counted
            assert len(loop._idle) == 4
            loop.close()

    asyncio.run(go())


def test_a_chain_that_never_answers_is_an_error() -> None:
    """No figure is made up of nothing."""
    loop = ClosedLoop(Chain(target=("127.0.0.1", 1), measured={}, processes=[]), 1)
    with pytest.raises(RuntimeError, match="no request came back"):
        loop.figures()


def test_the_open_loop_answers_with_a_latency() -> None:
    async def go() -> float:
        server, chain = await _chain()
        async with server:
            return await open_loop(chain.target, rate_per_s=200, window_s=0.1)

    assert asyncio.run(go()) > 0
