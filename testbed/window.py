"""CPU and memory of every component, and whatever else is counted, over exactly the measured window.

All is sampled ten times a second with the clock the load generator uses, and the window's edges are interpolated
between samples: the generator alone knows when its window began, and asking it to signal would cost it wake-ups.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from testbed.errors import MachineError, TrialError
from testbed.observe.procstat import cgroup_cpu, clock_cpu, read
from testbed.runtime.cgroups import Trees, trees
from testbed.seams import Process

PERIOD_S = 0.1
SLOW_EVERY = 2
"""Readers that look at the whole machine, half a millisecond each, are asked at every so many samples only."""
Reader = Callable[[], Mapping[str, float]]
"""Names and values of counters that only grow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    cpu_s: float
    pss_mib: float | None
    """None where the process has ended or its memory is not ours to read."""


@dataclass(slots=True)
class Sampler:
    """Started before the load, stopped after it; then `usage(start, end)` and `counted(start, end)`."""

    components: Mapping[str, Process]
    readers: Sequence[Reader] = ()
    slow: Sequence[Reader] = ()
    _samples: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    _counters: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    _memory: dict[str, int | None] = field(default_factory=dict)
    _trees: Trees = field(default_factory=trees)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _error: Exception | None = None
    _number: int = 0

    def start(self) -> None:
        self._samples = {name: [] for name in self.components}
        self._sample()
        self._thread = threading.Thread(target=self._run, name="window-sampler", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._stop.wait(PERIOD_S):
                self._sample()
        except Exception as error:  # counters that stand still would look like a calm machine
            self._error = error

    def _sample(self, *, last: bool = False) -> None:
        for name, process in self.components.items():
            try:
                used = self._cpu_ns(process)
            except OSError:
                continue  # it ended; the trial's own check names it
            self._samples[name].append((time.monotonic(), used))
        asked = (*self.readers, *self.slow) if last or self._number % SLOW_EVERY == 0 else self.readers
        for reader in asked:
            for name, value in reader().items():
                self._counters.setdefault(name, []).append((time.monotonic(), value))
        self._number += 1

    def _cpu_ns(self, process: Process) -> int:
        found = cgroup_cpu(self._trees, process.cgroup) if process.cgroup else None
        return found[0] if found else clock_cpu(process.pid)

    def stop(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
        if self._error:
            raise TrialError(f"what was sampled during the window ended early: {self._error}") from self._error
        self._sample(last=True)
        for name, process in self.components.items():
            try:
                self._memory[name] = read(process, now=time.monotonic(), found=self._trees).pss_bytes
            except (MachineError, OSError):
                self._memory[name] = None  # it ended; the trial's own check names it

    def usage(self, start_s: float, end_s: float) -> dict[str, Usage]:
        return {
            name: Usage(
                cpu_s=(interpolate(samples, end_s) - interpolate(samples, start_s)) / 1e9,
                pss_mib=None if (pss := self._memory.get(name)) is None else pss / 2**20,
            )
            for name, samples in self._samples.items()
            if samples
        }

    def counted(self, start_s: float, end_s: float) -> dict[str, float]:
        """By how much each reader's counters grew; one that began anew, its process having ended, grew by nothing."""
        return {
            name: max(0.0, interpolate(samples, end_s) - interpolate(samples, start_s))
            for name, samples in self._counters.items()
        }

    def latest(self, name: str) -> float:
        """The last value that a reader gave under a name; 0 where none did."""
        return self._counters[name][-1][1] if name in self._counters else 0.0


def interpolate(samples: Sequence[tuple[float, float]], at_s: float) -> float:
    """The value at a time between two samples, linearly; before the first and after the last, that sample."""
    if at_s <= samples[0][0]:
        return samples[0][1]
    for (earlier, low), (later, high) in pairwise(samples):
        if at_s <= later:
            return low + (high - low) * (at_s - earlier) / (later - earlier)
    return samples[-1][1]
