"""The pool's rules (facts/hbone 1.7), asked with the clock as a number."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from planes.mesh.pool import MAX_STREAMS, UNUSED_RELEASE_S, Pool, PoolKey

KEY = PoolKey(source_identity="a", expected=frozenset({"b"}), destination=("10.0.0.2", 15008), source_ip="10.0.0.1")


@dataclass
class Session:
    usable: bool = True
    active_streams: int = 0
    stream_limit: int | None = None
    retired: bool = False

    def retire(self) -> None:
        self.retired = True


def checkout(pool: Pool, made: Session, now_s: float = 0.0) -> Session:
    async def connect() -> Session:
        return made

    return asyncio.run(pool.checkout(KEY, connect, lambda: now_s))


def test_one_attempt_at_a_time_and_all_share_its_connection() -> None:
    """Ten that miss together cause one handshake."""
    pool, attempts = Pool(), []

    async def connect() -> Session:
        attempts.append(1)
        await asyncio.sleep(0)
        return Session()

    async def ten() -> list[Session]:
        return await asyncio.gather(*(pool.checkout(KEY, connect, lambda: 0.0) for _ in range(10)))

    sessions = asyncio.run(ten())
    assert len(attempts) == 1
    assert all(session is sessions[0] for session in sessions)


def test_a_failed_attempt_fails_its_caller_only() -> None:
    """Who waited for it tries anew."""
    pool, attempts = Pool(), []

    async def connect() -> Session:
        attempts.append(1)
        await asyncio.sleep(0)
        if len(attempts) == 1:
            raise ConnectionError("refused")
        return Session()

    async def two() -> list:
        return await asyncio.gather(
            *(pool.checkout(KEY, connect, lambda: 0.0) for _ in range(2)), return_exceptions=True
        )

    first, second = asyncio.run(two())
    assert isinstance(first, ConnectionError)
    assert isinstance(second, Session)


@pytest.mark.parametrize(("peer_limit", "streams"), [(None, MAX_STREAMS), (200, MAX_STREAMS), (5, 5)])
def test_a_connection_that_reached_its_limit_never_comes_back(peer_limit: int | None, streams: int) -> None:
    """The request that fills it is its last, also when its streams have ended since."""
    pool, session = Pool(), Session(stream_limit=peer_limit)
    assert checkout(pool, session) is session
    session.active_streams = 1
    while pool.take(KEY, 0.0) is session:
        session.active_streams += 1
    assert session.active_streams == streams
    session.active_streams = 0
    assert pool.take(KEY, 0.0) is None


def test_five_minutes_without_a_checkout_release_it() -> None:
    """Counted from the last checkout, not from the first."""
    pool, session = Pool(), Session()
    checkout(pool, session)
    assert pool.take(KEY, 100.0) is session
    pool.expire(100.0 + UNUSED_RELEASE_S - 1)
    assert not session.retired
    pool.expire(100.0 + UNUSED_RELEASE_S)
    assert session.retired
    assert pool.take(KEY, 100.0 + UNUSED_RELEASE_S) is None


def test_an_ended_connection_is_not_handed_out() -> None:
    """A GOAWAY or a broken connection shows at the checkout, and a new one is made."""
    pool, old, new = Pool(), Session(), Session()
    checkout(pool, old)
    old.usable = False
    assert checkout(pool, new) is new


def test_another_identity_gets_a_connection_of_its_own() -> None:
    """The key holds who asks: a connection made as one identity never carries another's bytes."""
    pool = Pool()
    checkout(pool, Session())
    other = PoolKey(source_identity="x", expected=KEY.expected, destination=KEY.destination, source_ip=KEY.source_ip)
    assert pool.take(other, 0.0) is None
