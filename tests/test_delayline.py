"""The delay line: order, delay, rate, loss, for any input."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from testbed.links.delayline import NS_PER_MS, NS_PER_S, DelayLine, Shape, bytes_on_wire, stationary_loss
from testbed.model.topology import GilbertElliott, Impairment

chains = st.tuples(*[st.floats(0, 1)] * 4)
shapes = st.builds(
    Shape,
    delay_ns=st.integers(0, 10**9),
    jitter_ns=st.integers(0, 10**7),
    loss=st.sampled_from([0.0, 0.0, 0.1, 1.0]),
    gilbert_elliott=st.none() | chains,
    rate_bps=st.sampled_from([0, 1, 10**6, 10**7, 10**9, 10**10]),
    queue_ns=st.integers(0, 10**9),
)
frames = st.lists(st.tuples(st.integers(1, 65536), st.integers(0, 10**8)), max_size=60)
"""Length, and nanoseconds since the frame before."""


def pushed(line: DelayLine, frames: list[tuple[int, int]], start_ns: int = 10**15) -> list[tuple[int, int, int]]:
    """(length, arrival, due) of the frames that were not dropped."""
    kept, now_ns = [], start_ns
    for length, gap_ns in frames:
        now_ns += gap_ns
        due_ns = line.push(length, now_ns)
        if due_ns is not None:
            kept.append((length, now_ns, due_ns))
    return kept


@given(shapes, frames, st.integers())
def test_frames_never_overtake(shape: Shape, frames: list[tuple[int, int]], seed: int) -> None:
    """Whatever the jitter, frames leave in the order they came."""
    dues = [due for _, _, due in pushed(DelayLine(random.Random(seed), shape), frames)]
    assert dues == sorted(dues)


@given(st.lists(st.tuples(shapes, frames), max_size=5), st.integers())
def test_a_change_of_shape_keeps_the_order(phases: list[tuple[Shape, list[tuple[int, int]]]], seed: int) -> None:
    """A delay that becomes shorter while frames are under way does not let later frames overtake them."""
    line, dues, now_ns = DelayLine(random.Random(seed)), [], 10**15
    for shape, frames in phases:
        line.shape = shape
        kept = pushed(line, frames, now_ns)
        now_ns += sum(gap for _, gap in frames)
        dues += [due for _, _, due in kept]
    assert dues == sorted(dues)


@given(shapes, frames, st.integers())
def test_no_frame_is_early(shape: Shape, frames: list[tuple[int, int]], seed: int) -> None:
    """A frame takes at least the delay, less the jitter's clamp, and is never due before it came."""
    for _, arrived_ns, due_ns in pushed(DelayLine(random.Random(seed), shape), frames):
        assert due_ns >= arrived_ns + max(0, shape.delay_ns - 3 * shape.jitter_ns)


@given(st.integers(0, 10**9), frames)
def test_a_pure_delay_is_exact(delay_ns: int, frames: list[tuple[int, int]]) -> None:
    """With nothing but delay, each frame is due exactly that much later."""
    kept = pushed(DelayLine(random.Random(0), Shape(delay_ns=delay_ns)), frames)
    assert [due - arrived for _, arrived, due in kept] == [delay_ns] * len(frames)


@given(st.sampled_from([10**5, 10**6, 7_000_001, 10**9, 3 * 10**9]), frames)
def test_the_rate_is_never_exceeded_over_any_window(rate_bps: int, frames: list[tuple[int, int]]) -> None:
    """Between any two departures there are no more bits than the rate allows: a real line has no burst credit."""
    kept = pushed(DelayLine(random.Random(0), Shape(rate_bps=rate_bps, queue_ns=10**9)), frames)
    for first in range(len(kept)):
        bits = 0
        for length, _, due_ns in kept[first + 1 :]:
            bits += length * 8
            assert bits * NS_PER_S <= rate_bps * (due_ns - kept[first][2])


@given(st.sampled_from([10**5, 10**6, 10**7]), st.integers(0, 10**8), frames)
def test_the_queue_is_bounded_in_time(rate_bps: int, queue_ns: int, frames: list[tuple[int, int]]) -> None:
    """No frame waits longer than the queue's depth before its own bits go out."""
    line = DelayLine(random.Random(0), Shape(rate_bps=rate_bps, queue_ns=queue_ns))
    kept = pushed(line, frames)
    for length, arrived_ns, due_ns in kept:
        assert due_ns - arrived_ns <= queue_ns + math.ceil(length * 8 * NS_PER_S / rate_bps)
    assert line.tail_dropped == len(frames) - len(kept)


def test_a_saturated_line_reaches_its_rate() -> None:
    """Ten thousand frames at twice the rate leave at the rate, to 0.1 %; the rest is dropped at the tail."""
    line = DelayLine(random.Random(0), Shape(rate_bps=100_000_000))
    kept = pushed(line, [(1514, 60_560)] * 10_000)
    took_ns = kept[-1][2] - kept[0][2]

    assert abs(sum(n for n, _, _ in kept[1:]) * 8 * NS_PER_S / took_ns / 100e6 - 1) < 0.001
    assert line.tail_dropped > 4000


@given(st.floats(0, 1), st.integers())
def test_independent_loss_is_binomial(loss: float, seed: int) -> None:
    """2000 frames lose what the probability says, within five sigma."""
    line = DelayLine(random.Random(seed), Shape(loss=loss))
    pushed(line, [(100, 1)] * 2000)
    assert abs(line.lost - 2000 * loss) <= 5 * math.sqrt(2000 * loss * (1 - loss)) + 1


def test_bursty_loss_has_its_share_and_its_bursts() -> None:
    """Gilbert-Elliott p=1 %, r=20 %: 4.76 % lost, in bursts of five on average."""
    shape = Shape(gilbert_elliott=(0.01, 0.2, 1.0, 0.0))
    line = DelayLine(random.Random(7), shape)
    lost = [line.push(100, n) is None for n in range(200_000)]
    bursts = sum(1 for before, now in zip([False, *lost], lost, strict=False) if now and not before)

    assert abs(sum(lost) / len(lost) - stationary_loss(shape)) < 0.004
    assert abs(sum(lost) / bursts - 5) < 0.4


def test_each_state_of_the_chain_loses_its_own_share() -> None:
    """Half in bad, a tenth in good: 10/30 of the time bad is 23.3 % lost, and the formula says the same."""
    shape = Shape(gilbert_elliott=(0.1, 0.2, 0.5, 0.1))
    line = DelayLine(random.Random(11), shape)
    bad_only = DelayLine(random.Random(11), Shape(gilbert_elliott=(1.0, 0.0, 0.5, 1.0)))
    good_only = DelayLine(random.Random(11), Shape(gilbert_elliott=(0.0, 0.0, 1.0, 0.1)))
    for each in (line, bad_only, good_only):
        pushed(each, [(100, 1)] * 50_000)

    assert abs(line.lost / 50_000 - 0.2333) < 0.015
    assert abs(bad_only.lost / 50_000 - 0.5) < 0.02
    assert abs(good_only.lost / 50_000 - 0.1) < 0.02
    stationary = [stationary_loss(each.shape) for each in (line, bad_only, good_only)]
    assert all(abs(a - b) < 1e-9 for a, b in zip(stationary, (0.7 / 3, 0.5, 0.1), strict=True))


def test_a_frame_may_wait_for_just_the_queues_depth() -> None:
    """At 8 bits a microsecond 1000 bytes take a millisecond: the second frame waits one, the third would two."""
    line = DelayLine(random.Random(0), Shape(rate_bps=8_000_000, queue_ns=NS_PER_MS))
    assert [line.push(1000, 10**15) for _ in range(3)] == [10**15 + NS_PER_MS, 10**15 + 2 * NS_PER_MS, None]


def test_jitter_spreads_as_asked_when_frames_are_far_apart() -> None:
    """Where order does not interfere, the standard deviation is the one asked and the clamp is three of it."""
    line = DelayLine(random.Random(3), Shape(delay_ns=20 * NS_PER_MS, jitter_ns=NS_PER_MS))
    offsets = [due - arrived - 20 * NS_PER_MS for _, arrived, due in pushed(line, [(100, 10**8)] * 5000)]
    deviation = math.sqrt(sum(o * o for o in offsets) / len(offsets))

    assert abs(deviation / NS_PER_MS - 1) < 0.05
    assert max(map(abs, offsets)) <= 3 * NS_PER_MS


@given(st.integers(1, 45), st.integers(1, 1448))
def test_a_super_frame_weighs_as_its_frames(segments: int, last: int) -> None:
    """45 segments carry 45 headers on a real wire, though one is in the buffer."""
    header, full = 66, 1448
    payload = (segments - 1) * full + last
    assert bytes_on_wire(header + payload, header, full) == segments * header + payload


def test_full_segments_only_weigh_no_header_more() -> None:
    """Two full segments are two frames, one byte more is a third."""
    assert bytes_on_wire(66 + 2 * 1448, 66, 1448) == 2 * (66 + 1448)
    assert bytes_on_wire(66 + 2 * 1448 + 1, 66, 1448) == 2 * (66 + 1448) + 66 + 1


def test_jitter_above_the_delay_never_sends_into_the_past() -> None:
    """Half of the frames of a line without delay leave at once."""
    line = DelayLine(random.Random(5), Shape(jitter_ns=NS_PER_MS))
    held_ns = [due - arrived for _, arrived, due in pushed(line, [(100, 10**8)] * 200)]
    assert min(held_ns) == 0 and 60 < held_ns.count(0) < 140


def test_an_ordinary_frame_weighs_itself() -> None:
    """Without segmentation nothing is added."""
    assert bytes_on_wire(1514, 54, 0) == 1514


def test_an_impairment_becomes_a_shape_in_ns_and_bits() -> None:
    """Milliseconds, Mbit/s and the loss chain keep their values."""
    chain = GilbertElliott(p=0.1, r=0.3, loss_bad=0.9, loss_good=0.01)
    asked = Impairment(delay_ms=0.1, jitter_ms=2.5, gilbert_elliott=chain, rate_mbit=1.5, queue_ms=20)
    assert Shape.of(asked) == Shape(
        delay_ns=100_000,
        jitter_ns=2_500_000,
        gilbert_elliott=(0.1, 0.3, 0.9, 0.01),
        rate_bps=1_500_000,
        queue_ns=20_000_000,
    )
