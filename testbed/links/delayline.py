"""One direction of a link as pure arithmetic: when does a frame that arrived now leave, or is it dropped?

Integers of nanoseconds and bytes, no clock, no socket; randomness is passed in. The order of what happens to a frame
is a real wire's: it may be lost, it waits for the line (rate, drop-tail queue bounded in time), it is serialised, it
travels (delay, jitter). The rate is a virtual clock (GCRA, ITU-T I.371) without burst credit: as on a real line, a
frame is there once its last bit is. Frames never overtake each other, also across a change of shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:  # the wire process starts faster without the model
    from testbed.model.topology import Impairment

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000
JITTER_CLAMP_SIGMAS = 3.0


class Random(Protocol):
    """What a delay line asks of its randomness; `random.Random` has it."""

    def random(self) -> float: ...
    def gauss(self, mu: float, sigma: float) -> float: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """An impairment in the units of the delay line; it crosses to the wire process as JSON."""

    delay_ns: int = 0
    jitter_ns: int = 0
    """Standard deviation."""
    loss: float = 0.0
    gilbert_elliott: tuple[float, float, float, float] | None = None
    """p (good→bad), r (bad→good), loss in bad, loss in good."""
    rate_bps: int = 0
    """Bits per second; 0 is unlimited."""
    queue_ns: int = 50 * NS_PER_MS
    """A frame that would wait longer than this for the line is dropped."""

    @classmethod
    def of(cls, impairment: Impairment) -> Shape:
        chain = impairment.gilbert_elliott
        return cls(
            delay_ns=round(impairment.delay_ms * NS_PER_MS),
            jitter_ns=round(impairment.jitter_ms * NS_PER_MS),
            loss=impairment.loss,
            gilbert_elliott=(chain.p, chain.r, chain.loss_bad, chain.loss_good) if chain else None,
            rate_bps=round(impairment.rate_mbit * 1_000_000),
            queue_ns=round(impairment.queue_ms * NS_PER_MS),
        )


class DelayLine:
    """The state of one direction. `push` every frame in order of arrival."""

    __slots__ = ("_bad", "_clear_at_ns", "_last_due_ns", "_random", "lost", "shape", "tail_dropped")

    def __init__(self, random: Random, shape: Shape | None = None) -> None:
        self.shape = shape or Shape()
        self.lost = 0
        self.tail_dropped = 0
        self._random = random
        self._bad = False
        self._clear_at_ns = 0
        """When the line will have serialised everything accepted so far."""
        self._last_due_ns = 0

    def __repr__(self) -> str:
        return f"<DelayLine {self.shape} lost {self.lost} tail-dropped {self.tail_dropped}>"

    def push(self, length: int, now_ns: int) -> int | None:
        """When the frame of `length` bytes that arrived at `now_ns` is due at the far end; None when it is dropped."""
        shape = self.shape
        if (shape.loss or shape.gilbert_elliott) and self._is_lost(shape):
            self.lost += 1
            return None
        due_ns = now_ns
        if shape.rate_bps:
            if self._clear_at_ns - now_ns > shape.queue_ns:
                self.tail_dropped += 1
                return None
            if self._clear_at_ns > due_ns:
                due_ns = self._clear_at_ns
            due_ns -= -(length * 8 * NS_PER_S) // shape.rate_bps  # rounded up: never faster than asked
            self._clear_at_ns = due_ns
        due_ns += shape.delay_ns
        if shape.jitter_ns:
            deviate = self._random.gauss(0.0, 1.0)
            due_ns += int(max(-JITTER_CLAMP_SIGMAS, min(JITTER_CLAMP_SIGMAS, deviate)) * shape.jitter_ns)
            if due_ns < now_ns:
                due_ns = now_ns
        if due_ns < self._last_due_ns:
            due_ns = self._last_due_ns
        self._last_due_ns = due_ns
        return due_ns

    def _is_lost(self, shape: Shape) -> bool:
        if shape.gilbert_elliott is None:
            return self._random.random() < shape.loss
        p, r, loss_bad, loss_good = shape.gilbert_elliott
        if self._bad:
            self._bad = self._random.random() >= r
        else:
            self._bad = self._random.random() < p
        return self._random.random() < (loss_bad if self._bad else loss_good)


def bytes_on_wire(frame_bytes: int, header_bytes: int, segment_bytes: int) -> int:
    """What a super-frame (TSO) would weigh as the frames it stands for: each but the first repeats the headers.

    `header_bytes` and `segment_bytes` are the virtio-net header's hdr_len and gso_size; 0 means an ordinary frame.
    Without this a limited TCP flow is 4 % too fast.
    """
    if segment_bytes == 0:
        return frame_bytes
    return frame_bytes + (frame_bytes - header_bytes - 1) // segment_bytes * header_bytes


def stationary_loss(shape: Shape) -> float:
    """The share of frames lost in the long run."""
    if shape.gilbert_elliott is None:
        return shape.loss
    p, r, loss_bad, loss_good = shape.gilbert_elliott
    if p + r == 0:
        return loss_good
    bad = p / (p + r)
    return bad * loss_bad + (1 - bad) * loss_good
