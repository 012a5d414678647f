"""What the statistics can see: synthetic latencies with a planted difference, under the rules a report uses. Pure.

The latencies are made like those of a quickstart on the reference machine (docs/statistics.md): requests of a trial
depend on their neighbours, a deployment has luck of its own, a round shares the machine's mood, and the host takes the
processor away now and then, in some trials much more than in others. Everything comes from a seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from testbed import stats
from testbed.stopping import StopRule

PERCENTS = (50, 99)
_NEIGHBOURS = 0.5 ** np.arange(6)
_NEIGHBOURS /= math.sqrt(float(_NEIGHBOURS @ _NEIGHBOURS))


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """How a machine disturbs what is measured on it."""

    name: str
    mood: float = 0.02
    """Spread (of the logarithm) between rounds: shared by all trials of one, so pairing removes it."""
    luck: float = 0.014
    """Spread between deployments of the same plane in one round; heavy-tailed (t with 4 degrees of freedom)."""
    stalls_per_s: float = 1.0
    """In the median trial."""
    stall_spread: float = 0.8
    """Of the logarithm of that rate between trials: neighbours come and go."""
    stall_ms: float = 2.5
    """Mean length; exponential."""


IDLE = Host(name="an idle machine", luck=0.012, stalls_per_s=0.5, stall_spread=0.5, stall_ms=1.5)
REFERENCE = Host(name="the reference machine at its best")
"""Pairs of trials in its calmer runs (3 to 5 rounds, 650 to 1,000 requests): spread of p50 0.02 to 0.05, of p99 0.12 to
0.33; in the same runs some pairs had 0.65."""
BUSY = Host(name="the same with busy neighbours", luck=0.02, stalls_per_s=2.0, stall_spread=1.2, stall_ms=3.0)
"""Eight A/A pairs there: p50 0.04, p99 0.7, and a quarter of the trials left out for a late generator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One trial's load."""

    rate_rps: float = 500.0
    window_s: float = 4.0


def latencies_ms(host: Host, cell: Cell, mood: float, chance: np.random.Generator) -> np.ndarray:
    """Of one trial, in the order of arrival (Poisson)."""
    count = max(2, int(chance.poisson(cell.rate_rps * cell.window_s)))
    at_s = np.sort(chance.random(count)) * cell.window_s
    service = np.convolve(chance.standard_normal(count + len(_NEIGHBOURS) - 1), _NEIGHBOURS, mode="valid")
    luck = math.exp(host.luck * float(chance.standard_t(4)))
    found = mood * luck * (2.05 + 0.25 * np.exp(0.5 * service))
    stalls = chance.poisson(host.stalls_per_s * math.exp(host.stall_spread * chance.standard_normal()) * cell.window_s)
    waits = np.zeros(count)
    lengths_s = chance.exponential(host.stall_ms / 1e3, stalls)
    for start_s, length_s in zip(chance.random(stalls) * cell.window_s, lengths_s, strict=True):
        # Whoever is under way or arrives while nothing runs waits until it runs again.
        first, last = np.searchsorted(at_s, (start_s - 0.002, start_s + length_s))
        waits[first:last] = np.maximum(waits[first:last], (start_s + length_s - at_s[first:last]) * 1e3)
    return found + np.minimum(waits, 1e3)


def planted(latencies: np.ndarray, *, p50: float, p99: float) -> np.ndarray:
    """The same requests, slower: the trial's median by the share `p50`, its p99 (and beyond) by `p99`."""
    low, high = np.percentile(latencies, PERCENTS)
    where = np.clip((latencies - low) / max(high - low, 1e-9), 0, 1)
    return latencies * (1 + p50 + (p99 - p50) * where)


Rounds = dict[int, float]


def rounds_of(
    host: Host, cell: Cell, *, p50: float, p99: float, chance: np.random.Generator
) -> Iterator[dict[int, tuple[float, float, float]]]:
    """Round after round: percentile -> its value in both halves of the A/A pair and in the slower plane."""
    while True:
        mood = math.exp(host.mood * chance.standard_normal())
        first, second, plane = (latencies_ms(host, cell, mood, chance) for _ in range(3))
        three = (first, second, planted(plane, p50=p50, p99=p99))
        values = [np.percentile(one, PERCENTS) for one in three]
        yield {q: (float(values[0][i]), float(values[1][i]), float(values[2][i])) for i, q in enumerate(PERCENTS)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One repeat of a whole run: percentile -> what its report would say."""

    effects: dict[int, stats.Effect]
    rounds: int


def repeat(host: Host, cell: Cell, rule: StopRule, *, p50: float, p99: float, seed: int, resamples: int = 2000) -> Seen:
    """A run under `rule`; stopping early looks at p50 and p99 both, as a run does."""
    chance = np.random.Generator(np.random.PCG64(seed))
    kept: dict[int, tuple[Rounds, Rounds, Rounds]] = {q: ({}, {}, {}) for q in PERCENTS}
    for done, values in enumerate(rounds_of(host, cell, p50=p50, p99=p99, chance=chance), 1):
        for q in PERCENTS:
            for rounds, value in zip(kept[q], values[q], strict=True):
                rounds[done] = value
        if done not in rule.looks:
            continue
        found = {}
        for q, (first, second, plane) in kept.items():
            options = {"seed": seed, "confidence": rule.confidence, "resamples": resamples}
            effect = stats.effect(plane, first, second, **options)
            assert effect is not None  # every round has all three
            found[q] = effect
        if rule.after_round(done, {str(q): e.ratio for q, e in found.items()}, elapsed_s=0.0):
            return Seen(effects=found, rounds=done)
    raise AssertionError("rounds never end")
