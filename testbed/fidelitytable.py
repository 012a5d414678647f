"""The certificates of a run as a block of its table: how many trials passed, and what was wrong, worst first. Pure."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from testbed.fidelity import PREFIX, Level
from testbed.model.experiment import Measurement
from testbed.table import AA, BASE, Block, Cell, Table, ranged

TITLE = "Was the testbed good enough? Trials by their certificate"
MOST_CAUSES = 4
"""Told of each plane in a note; all of them are in the report and in measurements.csv."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Certified:
    """What the certificates of one plane's trials say."""

    trials: Mapping[Level, int]
    causes: Sequence[tuple[Level, int, str]]
    """Level, trials, cause with the range of its figures; worst first."""
    checks: Mapping[str, Level]
    """Those that did not pass, worst first, and at their worst."""
    missing: Sequence[str]
    """What could not be told."""


def certified(measurements: Sequence[Measurement]) -> dict[str, Certified]:
    """By plane; planes without certificates (runs of before had none) are absent."""
    worst: dict[tuple[str, str], Level] = {}
    causes: dict[str, dict[Level, Counter[str]]] = defaultdict(lambda: defaultdict(Counter))
    checks: dict[str, dict[str, Level]] = defaultdict(dict)
    missing: dict[str, Counter[str]] = defaultdict(Counter)
    for m in measurements:
        if not m.metric.startswith(PREFIX):
            continue
        key = m.plane, m.trial
        if math.isnan(m.value):
            worst.setdefault(key, Level.PASS)
            missing[m.plane][m.reason] += 1
            continue
        level = Level(int(m.value))
        worst[key] = max(worst.get(key, Level.PASS), level)
        if level:
            causes[m.plane][level][m.reason] += 1
            name = m.metric.removeprefix(PREFIX)
            checks[m.plane][name] = max(level, checks[m.plane].get(name, level))
    found = {}
    for plane in dict.fromkeys(plane for plane, _ in worst):
        told = [
            (level, count, cause)
            for level in sorted(causes[plane], reverse=True)
            for cause, count in sorted(ranged(causes[plane][level]).items(), key=lambda pair: -pair[1])
        ]
        found[plane] = Certified(
            trials=Counter(level for (of, _), level in worst.items() if of == plane),
            causes=told,
            checks=dict(sorted(checks[plane].items(), key=lambda pair: -pair[1])),
            missing=tuple(ranged(missing[plane])),
        )
    return found


def block(measurements: Sequence[Measurement], order: Sequence[str], notes: list[str]) -> Block | None:
    """None where no trial has a certificate. `notes` grow by what could not be told."""
    found = certified(measurements)
    if not found:
        return None
    rank = {plane: number for number, plane in enumerate(dict.fromkeys([BASE, AA, *order]))}
    rows = []
    for plane in sorted(found, key=lambda p: rank.get(p, len(rank))):
        one = found[plane]
        told = [f"{level.name} {count} × {cause}" for level, count, cause in one.causes[:MOST_CAUSES]]
        if len(one.causes) > MOST_CAUSES:
            told.append(f"and {len(one.causes) - MOST_CAUSES} more")
        causes = Cell(lines=("–",))
        if told:
            shown = ", ".join(name + " FAIL" * (level is Level.FAIL) for name, level in one.checks.items())
            tone = "bad" if one.trials[Level.FAIL] else "weak"
            causes = Cell(lines=(shown,), tone=tone, note=_note(notes, f"{plane}: {'; '.join(told)}"))
        note = None
        if one.missing:
            note = _note(notes, f"not told by this machine or plane: {'; '.join(one.missing)}")
        fails = one.trials[Level.FAIL]
        counts = [Cell(lines=(str(one.trials[level]),)) for level in (Level.PASS, Level.WARN)]
        counts.append(Cell(lines=(str(fails),), tone="bad" if fails else ""))
        rows.append((Cell(lines=(plane,), note=note), *counts, causes))
    head = ("plane", *(level.name.lower() for level in Level), "what, worst first")
    return Block(title=TITLE, head=head, rows=tuple(rows), numeric=False)


def _note(notes: list[str], text: str) -> int:
    if text not in notes:
        notes.append(text)
    return notes.index(text) + 1


def with_fidelity(built: Table, measurements: Sequence[Measurement], order: Sequence[str] = ()) -> Table:
    """The table with one more block."""
    notes = list(built.notes)
    made = block(measurements, order, notes)
    return built if made is None else Table(blocks=(*built.blocks, made), notes=tuple(notes))
