"""Host names and the addresses they stand for, as far as they were asked: a cache without I/O, time is an argument.

What the resolver of ztunnel keeps (facts/hbone 2.2): so many names, each for as long as its records say. A name without
addresses is kept, too, for a short while, so that a busy client of a missing one does not become a busy client of the
name server.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

CAPACITY = 4096
FAILURE_TTL_S = 5.0
LONGEST_TTL_S = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a name stands for. No address: `reason` says why."""

    addresses: tuple[str, ...] = ()
    ttl_s: float = FAILURE_TTL_S
    reason: str = ""


class NameCache:
    """Answers by name. The oldest of them makes room for a new one."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        self._capacity = capacity
        self._held: dict[str, tuple[Answer, float]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def get(self, name: str, now_s: float) -> Answer | None:
        """None: unknown, or no longer true."""
        held = self._held.get(name)
        if held is None:
            return None
        if now_s >= held[1]:
            del self._held[name]
            return None
        return held[0]

    def put(self, name: str, answer: Answer, now_s: float) -> None:
        """An answer that is good for no time at all is not kept."""
        self._held.pop(name, None)
        if answer.ttl_s <= 0:
            return
        while len(self._held) >= self._capacity:
            del self._held[next(iter(self._held))]
        self._held[name] = (answer, now_s + min(answer.ttl_s, LONGEST_TTL_S))


def pick(addresses: Sequence[str], *, v6: bool, draw: float) -> str:
    """Any of the wanted family, else any at all; each as likely as the others. `draw` is in [0, 1)."""
    fitting = [a for a in addresses if (":" in a) is v6] or addresses
    return fitting[min(int(draw * len(fitting)), len(fitting) - 1)]
