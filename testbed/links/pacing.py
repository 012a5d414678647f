"""When the wire is to wake for a frame, spin for it and let it go: pure, time is an argument.

What a wire is late by is not a constant of the machine: 10 us from the decision to the far device after a spin on an
idle machine, 5 us while busy, 40-100 us after a sleep without a spin. So it is not calibrated once: the kernel stamps
when a sampled frame really left, and the median of the last samples of each way of waiting is taken off the next
frames' release. A constant measured on an idle machine made loaded links 15-25 us early.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque

SPUN, SLEPT, STREAMED = range(3)
"""How the wire came to a frame: it polled for its moment; it slept up to it; it had just written another."""
WAYS = ("spun", "slept", "streamed")
FIRST_GUESS_NS = (8_000, 30_000, 6_000)
EARLY_CAP_NS = (40_000, 120_000, 40_000)
"""More is the noise of a bad moment; taking it off would make the links of a good one too fast."""
SAMPLES = 15
"""Odd, so that the median is one of them. Few, so that a machine that has become busy is followed in 15 frames."""
SAMPLE_SPACING_NS = 4_000_000
"""A sample costs 5 us, twice what a frame does: 250 a second are 0.1 % of a core."""
LEAD_CAP_NS = 100_000
SPIN_SHARE = 0.2
SPIN_WINDOW_NS = 20_000_000
SHORT_NS = 300_000
"""A delay that an idle core's wake-up (50-110 us, twice) may eat up: no planning ahead makes good for it."""
STAY_AWAKE_NS = 1_000_000_000


class Pacer:
    """Learns how late this machine is; `early_ns` holds, for each way of waiting, how long before its due time a
    frame is let go. `compensates` False leaves all of them 0.
    """

    __slots__ = ("_recent", "_sampled_ns", "_spun_ns", "_window_ns", "compensates", "early_ns", "lead_ns", "may_spin")

    def __init__(self, *, compensates: bool = True) -> None:
        self.compensates = compensates
        self.early_ns = list(FIRST_GUESS_NS) if compensates else [0, 0, 0]
        self.lead_ns = 30_000
        """How long before a frame's release to be woken, so as to spin the rest."""
        self.may_spin = True
        self._recent: list[_Median] = [_Median() for _ in WAYS]
        self._sampled_ns = [0, 0, 0]
        self._window_ns = 0
        self._spun_ns = 0

    def __repr__(self) -> str:
        return f"<Pacer early {self.early_ns} lead {self.lead_ns}{'' if self.may_spin else ' sleeping'}>"

    def way(self, now_ns: int) -> int:
        """Whether the next wait may end in a spin: SPUN, or SLEPT when the last window spun more than its share."""
        if now_ns - self._window_ns > SPIN_WINDOW_NS:
            self.may_spin = self._spun_ns < (now_ns - self._window_ns) * SPIN_SHARE
            self._window_ns, self._spun_ns = now_ns, 0
        return SPUN if self.may_spin else SLEPT

    def wake_ns(self, due_ns: int) -> int:
        """When to be woken for a frame that is due then; from that moment on, spin (or let it go)."""
        if self.may_spin:
            return due_ns - self.early_ns[SPUN] - self.lead_ns
        return due_ns - self.early_ns[SLEPT]

    def spun(self, for_ns: int) -> None:
        self._spun_ns += for_ns

    def woken(self, asked_ns: int, now_ns: int) -> None:
        """The timer's lateness moves the lead towards one and a half times it."""
        target_ns = (now_ns - asked_ns) * 3 // 2 + 3_000
        self.lead_ns = min(LEAD_CAP_NS, self.lead_ns + (target_ns - self.lead_ns) // 20)

    def wants(self, way: int, now_ns: int) -> bool:
        """Whether the frame about to be let go should be sampled."""
        return self.compensates and now_ns - self._sampled_ns[way] >= SAMPLE_SPACING_NS

    def left(self, way: int, due_ns: int, left_ns: int, now_ns: int) -> None:
        """A sampled frame, due at `due_ns`, left at `left_ns`. Not for one that was overdue before it was seen."""
        self._sampled_ns[way] = now_ns
        late_ns = left_ns - (due_ns - self.early_ns[way])
        if late_ns >= 0:  # else a stepped clock
            median_ns = self._recent[way].add(late_ns)
            self.early_ns[way] = min(EARLY_CAP_NS[way], median_ns)


class Wakefulness:
    """Whether idle cores should poll instead of sleep: while a link with a short delay carries frames."""

    __slots__ = ("_frame_ns", "awake", "shortest_ns")

    def __init__(self) -> None:
        self.shortest_ns: int | None = None
        """Delay of the fastest link direction of this process; None without links."""
        self.awake = False
        self._frame_ns = 0

    def frames(self, now_ns: int) -> bool:
        """Frames have come: whether that changes anything."""
        self._frame_ns = now_ns
        return self._become(self.shortest_ns is not None and self.shortest_ns < SHORT_NS)

    def quiet(self, now_ns: int) -> bool:
        """Nothing comes: whether that changes anything."""
        short = self.shortest_ns is not None and self.shortest_ns < SHORT_NS
        return self._become(self.awake and short and now_ns - self._frame_ns < STAY_AWAKE_NS)

    def _become(self, awake: bool) -> bool:
        changed, self.awake = awake != self.awake, awake
        return changed


class _Median:
    """Of the last few values."""

    __slots__ = ("_in_time", "_ordered")

    def __init__(self) -> None:
        self._in_time: deque[int] = deque()
        self._ordered: list[int] = []

    def add(self, value: int) -> int:
        if len(self._in_time) == SAMPLES:
            oldest = self._in_time.popleft()
            del self._ordered[bisect_left(self._ordered, oldest)]
        self._in_time.append(value)
        insort(self._ordered, value)
        return self._ordered[len(self._ordered) // 2]
