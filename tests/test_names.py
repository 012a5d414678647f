"""Names and their addresses: what is kept for how long, and which one is taken."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from planes.mesh.names import FAILURE_TTL_S, Answer, NameCache, pick


def test_an_answer_is_good_for_as_long_as_it_says() -> None:
    """And not a moment longer."""
    cache, answer = NameCache(), Answer(addresses=("10.0.0.1",), ttl_s=30)
    cache.put("a.example", answer, 100.0)

    assert cache.get("a.example", 129.9) == answer
    assert cache.get("a.example", 130.0) is None
    assert len(cache) == 0


def test_an_answer_without_lifetime_is_asked_for_each_time() -> None:
    """Nor does an older one of that name stay."""
    cache = NameCache()
    cache.put("a.example", Answer(addresses=("10.0.0.1",), ttl_s=30), 100.0)
    cache.put("a.example", Answer(addresses=("10.0.0.2",), ttl_s=0), 101.0)

    assert cache.get("a.example", 101.0) is None


def test_a_failure_is_remembered_shortly() -> None:
    """Every connection of a busy client would be a question otherwise."""
    cache, answer = NameCache(), Answer(reason="the name server says NXDOMAIN")
    cache.put("a.example", answer, 0.0)

    assert cache.get("a.example", FAILURE_TTL_S - 0.1) == answer
    assert cache.get("a.example", FAILURE_TTL_S) is None


@given(st.lists(st.integers(0, 9), max_size=40))
def test_the_cache_never_outgrows_itself_and_keeps_the_newest(names: list[int]) -> None:
    """Whatever is put in."""
    cache = NameCache(capacity=4)
    for number, name in enumerate(names):
        cache.put(f"{name}.example", Answer(addresses=(f"10.0.0.{number}",), ttl_s=60), float(number))

        assert len(cache) <= 4
        assert cache.get(f"{name}.example", number + 0.5) is not None


@given(
    st.lists(st.sampled_from(["10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"]), min_size=1, unique=True),
    st.booleans(),
    st.floats(0, 1, exclude_max=True),
)
def test_the_callers_family_is_preferred(addresses: list[str], v6: bool, draw: float) -> None:
    """The other one is better than nothing."""
    got = pick(addresses, v6=v6, draw=draw)

    assert got in addresses
    assert (":" in got) is v6 or not any((":" in a) is v6 for a in addresses)


def test_every_address_is_as_likely() -> None:
    """Of four, a quarter of the draws each."""
    addresses = [f"10.0.0.{n}" for n in range(4)]

    assert [pick(addresses, v6=False, draw=d / 8) for d in range(8)] == [a for a in addresses for _ in range(2)]
