"""The pacer: whatever a machine's lateness, frames leave when they are due, and it follows a change within a few."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.links.pacing import (
    EARLY_CAP_NS,
    LEAD_CAP_NS,
    SAMPLE_SPACING_NS,
    SAMPLES,
    SHORT_NS,
    SLEPT,
    SPIN_WINDOW_NS,
    SPUN,
    STAY_AWAKE_NS,
    STREAMED,
    Pacer,
    Wakefulness,
)

MS = 1_000_000
GAP_NS = 5 * MS


class Machine:
    """Frames due every 5 ms, let go as the pacer says, leaving `cost_ns` (drawn anew each) after that."""

    def __init__(self, pacer: Pacer, way: int = SPUN) -> None:
        self.pacer = pacer
        self.way = way
        self.now_ns = 10**15
        self._draw = random.Random(1)

    def errors_ns(self, cost_ns: int, spread_ns: int, frames: int) -> list[int]:
        errors = []
        for _ in range(frames):
            self.now_ns += GAP_NS
            due_ns = self.now_ns
            left_ns = due_ns - self.pacer.early_ns[self.way] + cost_ns + self._draw.randint(-spread_ns, spread_ns)
            if self.pacer.wants(self.way, self.now_ns):
                self.pacer.left(self.way, due_ns, left_ns, self.now_ns)
            errors.append(left_ns - due_ns)
        return sorted(errors)


def median(ordered: list[int]) -> int:
    return ordered[len(ordered) // 2]


@given(st.integers(4_000, 38_000), st.sampled_from([SPUN, SLEPT, STREAMED]))
def test_the_median_error_of_a_steady_machine_is_none(cost_ns: int, way: int) -> None:
    """After the first few samples half of the frames are early, half late, by the machine's own spread."""
    machine = Machine(Pacer(), way)
    machine.errors_ns(cost_ns, 2_000, SAMPLES)

    assert abs(median(machine.errors_ns(cost_ns, 2_000, 99))) < 1_000


def test_a_machine_that_becomes_busy_is_followed_within_eight_frames() -> None:
    """Idle 30 us, then 5 us: a constant measured idle would leave the busy links 25 us early for ever."""
    machine = Machine(Pacer())
    machine.errors_ns(30_000, 1_000, 50)
    at_once = machine.errors_ns(5_000, 1_000, SAMPLES // 2)
    later = machine.errors_ns(5_000, 1_000, 50)

    assert median(at_once) < -20_000
    assert abs(median(later)) < 1_000


def test_each_way_of_waiting_has_its_own_lateness() -> None:
    """What a sleep costs is not taken off a frame that was polled for."""
    pacer = Pacer()
    for way, cost_ns in ((SPUN, 10_000), (SLEPT, 70_000), (STREAMED, 4_000)):
        Machine(pacer, way).errors_ns(cost_ns, 0, SAMPLES)

    assert pacer.early_ns == [10_000, 70_000, 4_000]


def test_what_one_way_of_waiting_costs_is_no_sample_of_another() -> None:
    """Also where they take turns."""
    pacer = Pacer()
    machines = [(Machine(pacer, way), cost_ns) for way, cost_ns in ((SPUN, 10_000), (SLEPT, 70_000), (STREAMED, 4_000))]
    for _ in range(SAMPLES):
        for machine, cost_ns in machines:
            machine.errors_ns(cost_ns, 0, 1)

    assert pacer.early_ns == [10_000, 70_000, 4_000]


def test_single_outliers_change_nothing() -> None:
    """Two neighbours' bursts of 5 ms among fifteen frames leave the others where they were."""
    machine = Machine(Pacer())
    machine.errors_ns(10_000, 0, SAMPLES)
    machine.errors_ns(5 * MS, 0, 2)

    assert machine.pacer.early_ns[SPUN] == 10_000


def test_a_bad_moment_is_believed_only_so_far() -> None:
    """Frames are never let go earlier than the cap; a stamp of a stepped clock, before the release, is no sample."""
    machine = Machine(Pacer())
    machine.errors_ns(10 * MS, 0, SAMPLES)
    assert machine.pacer.early_ns[SPUN] == EARLY_CAP_NS[SPUN]

    machine.errors_ns(-10 * MS, 0, SAMPLES)
    assert machine.pacer.early_ns[SPUN] == EARLY_CAP_NS[SPUN]


def test_uncalibrated_lets_go_when_due() -> None:
    """For comparison: nothing is sampled, nothing taken off."""
    machine = Machine(Pacer(compensates=False))

    assert median(machine.errors_ns(20_000, 0, 50)) == 20_000
    assert machine.pacer.early_ns == [0, 0, 0]


def test_samples_are_spaced() -> None:
    """At 100,000 frames/s still 250 samples a second."""
    pacer = Pacer()
    wanted = 0
    for now_ns in range(10**15, 10**15 + 1000 * MS, 10_000):
        if pacer.wants(SPUN, now_ns):
            wanted += 1
            pacer.left(SPUN, now_ns, now_ns, now_ns)

    assert wanted == 1000 * MS // SAMPLE_SPACING_NS


def test_the_wire_is_woken_early_enough_to_spin() -> None:
    """The lead goes to one and a half times the timer's lateness, within the cap; then the wake-up is before the
    release, so the frame is polled for.
    """
    pacer = Pacer()
    for number in range(200):
        pacer.woken(number * MS, number * MS + 40_000)
    due_ns = 10**15

    assert 60_000 < pacer.lead_ns < 64_000
    assert pacer.wake_ns(due_ns) + 40_000 < due_ns - pacer.early_ns[SPUN]

    for number in range(200):
        pacer.woken(number * MS, number * MS + 10 * MS)
    assert pacer.lead_ns == LEAD_CAP_NS or LEAD_CAP_NS - pacer.lead_ns < 20


@pytest.mark.parametrize(("spun_ns", "way"), [(SPIN_WINDOW_NS // 10, SPUN), (SPIN_WINDOW_NS // 2, SLEPT)])
def test_spinning_is_bounded_by_a_share(spun_ns: int, way: int) -> None:
    """A window that spun for more than a fifth is followed by one that sleeps, woken as much earlier as that costs."""
    pacer, now_ns = Pacer(), 10**15
    pacer.way(now_ns)
    pacer.spun(spun_ns)

    assert pacer.way(now_ns + SPIN_WINDOW_NS + 1) == way
    lead_ns = pacer.lead_ns if way == SPUN else 0
    assert pacer.wake_ns(now_ns) == now_ns - pacer.early_ns[way] - lead_ns
    assert pacer.way(now_ns + 3 * SPIN_WINDOW_NS) == SPUN


def test_cores_stay_awake_only_for_short_delays_with_traffic() -> None:
    """Frames of a short link wake them, a second of silence or a longer delay lets them sleep; told once each."""
    wakefulness, now_ns = Wakefulness(), 10**15
    assert not wakefulness.frames(now_ns)  # no links

    wakefulness.shortest_ns = SHORT_NS
    assert not wakefulness.frames(now_ns)

    wakefulness.shortest_ns = SHORT_NS - 1
    assert wakefulness.frames(now_ns) and wakefulness.awake
    assert not wakefulness.frames(now_ns)
    assert not wakefulness.quiet(now_ns + STAY_AWAKE_NS - 1)
    assert wakefulness.quiet(now_ns + STAY_AWAKE_NS) and not wakefulness.awake

    wakefulness.frames(now_ns)
    wakefulness.shortest_ns = 5 * MS
    assert wakefulness.quiet(now_ns) and not wakefulness.awake
