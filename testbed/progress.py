"""Progress on stderr for what takes over two seconds: one live line on a terminal, plain lines elsewhere.

Time is an argument: hand it `time.monotonic()`. A line is `trial 3/15 ambient-l4, 40 s left`.
"""

from __future__ import annotations

import shutil
import statistics
from typing import TextIO

from testbed.typeset import clean, wants_colour

QUIET_S = 2.0
PLAIN_EVERY_S = 10.0
"""Off a terminal at most so often, so that a log stays readable; a new step always gets its line."""


class Progress:
    """Steps of known number; the time left is the median step so far times the steps to come.

    `at_least_s`: what a step to come takes at least, where the first ones are shorter than the rest.
    """

    def __init__(
        self, stream: TextIO, *, total: int, noun: str = "trial", now: float, at_least_s: float = 0.0
    ) -> None:
        self.stream, self.total, self.noun = stream, total, noun
        self.at_least_s = at_least_s
        self.live = stream.isatty()
        self.colour = wants_colour(stream)
        self._began = self._step_began = now
        self._last_line = float("-inf")
        self._took: list[float] = []
        self._done, self._what, self._drawn = 0, "", False

    def start(self, what: str, now: float) -> None:
        """A step begins: `what` names it, such as its plane."""
        self._what, self._step_began = what, now
        self._show(now, new=True)

    def note(self, text: str, now: float) -> None:
        """Moves on inside a step: fits `seams.Progress` as `lambda text: progress.note(text, monotonic())`."""
        self._show(now, new=False, detail=text)

    def step(self, now: float) -> None:
        """The step begun last is done."""
        self._done += 1
        self._took.append(now - self._step_began)

    def say(self, text: str) -> None:
        """A line that stays, above the live one."""
        self._wipe()
        self.stream.write(clean(text) + "\n")
        self.stream.flush()

    def close(self, now: float) -> None:
        self._wipe()
        if now - self._began >= QUIET_S:
            self.stream.write(f"{self._done} of {self.total} {self.noun}s in {duration(now - self._began)}\n")
        self.stream.flush()

    def left_s(self, now: float) -> float | None:
        """None before the first step is done."""
        if not self._took:
            return None
        each = max(self.at_least_s, statistics.median(self._took))
        return max(0.0, each * (self.total - self._done) - min(each, now - self._step_began))

    def _show(self, now: float, *, new: bool, detail: str = "") -> None:
        left = self.left_s(now)
        parts = [f"{self.noun} {min(self._done + 1, self.total)}/{self.total} {self._what}".rstrip(), detail]
        parts.append(f"{duration(left)} left" if left is not None else "")
        line = clean(", ".join(p for p in parts if p))
        if self.live:
            line = line[: max(20, shutil.get_terminal_size().columns - 1)]
            self.stream.write(f"\r\x1b[K{f'{chr(27)}[2m{line}{chr(27)}[0m' if self.colour else line}")
            self._drawn = True
        elif new or now - self._last_line >= PLAIN_EVERY_S:
            self.stream.write(line + "\n")
            self._last_line = now
        self.stream.flush()

    def _wipe(self) -> None:
        if self._drawn:
            self.stream.write("\r\x1b[K")
            self._drawn = False


def duration(seconds: float) -> str:
    whole = round(seconds)
    if whole >= 2 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"
