"""One-way measurements over a live link: what left, what arrived, what was lost."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from testbed.links import oneway
from testbed.links.oneway import Flight
from testbed.links.scratch import ScratchLab
from testbed.links.wire import WireLinks
from testbed.model.topology import Impairment, Link

Wired = Callable[[Impairment, Impairment], tuple[ScratchLab, Link]]
root = pytest.mark.skipif(os.geteuid() != 0, reason="links need root (network namespaces, AF_PACKET)")


def test_errors_are_of_those_that_arrived_from_device_to_device() -> None:
    """What the program took to get its datagram out is not the link's, and a lost one has no delay."""
    flights = [
        Flight(called_ns=0, left_ns=1_000_000, arrived_ns=3_010_000),
        Flight(called_ns=0, left_ns=5_000_000, arrived_ns=6_990_000),
        Flight(called_ns=0, left_ns=9_000_000, arrived_ns=None),
    ]
    assert oneway.errors_us(flights, 2.0) == pytest.approx([-10.0, 10.0])


@pytest.fixture
def wired() -> Iterator[Wired]:
    with contextlib.ExitStack() as stack:

        def make(a_to_b: Impairment, b_to_a: Impairment) -> tuple[ScratchLab, Link]:
            lab = stack.enter_context(ScratchLab(["a", "b"]))
            maker = stack.enter_context(contextlib.closing(WireLinks(calibrated=False)))
            link = Link(
                a="a", b="b", a_address="172.16.0.0", b_address="172.16.0.1", a_to_b=a_to_b, b_to_a=b_to_a
            )  # fmt: skip
            maker.join(lab, [link])
            return lab, link

        yield make


@pytest.mark.root
@root
def test_a_flight_takes_the_delay_of_its_own_direction(wired: Wired) -> None:
    """Called, left, arrived, in that order; numbers and stamps belong together though many are under way."""
    lab, link = wired(Impairment(delay_ms=20), Impairment(delay_ms=1))

    (flights,) = oneway.fly(lab, [link], count=40, spacing_s=0.003)

    assert len(flights) == 40
    assert all(f.arrived_ns is not None and f.called_ns <= f.left_ns < f.arrived_ns for f in flights)
    assert oneway.errors_us(flights, 20.0)[0] >= 0 and oneway.errors_us(flights, 20.0)[20] < 1500


@pytest.mark.root
@root
def test_a_lost_datagram_is_a_flight_without_an_arrival(wired: Wired) -> None:
    """It left all the same."""
    lab, link = wired(Impairment(delay_ms=1, loss=1.0), Impairment())

    (flights,) = oneway.fly(lab, [link], count=5, spacing_s=0.002)

    assert [f.arrived_ns for f in flights] == [None] * 5


@pytest.mark.root
@root
def test_a_burst_arrives_at_the_rate(wired: Wired) -> None:
    """40 frames of 1042 bytes at 10 Mbit/s are 0.83 ms apart."""
    lab, link = wired(Impairment(rate_mbit=10, queue_ms=200), Impairment())

    arrived_ns = oneway.burst(lab, link, count=40, payload_bytes=1000)

    assert len(arrived_ns) == 40
    assert (arrived_ns[-1] - arrived_ns[0]) / 39e6 == pytest.approx(0.8336, rel=0.1)
