"""What the report says of each plane and each cell, from made-up measurements."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import pytest

from testbed import cells, effects, table
from testbed.model.experiment import Finding, Measurement, Result
from testbed.stopping import StopRule

LEVELS = {"none": 2.0, "none (A/A)": 2.0, "slow": 2.4, "alike": 2.0}


def rows(
    levels: Mapping[str, float], *, rounds: int = 8, cell: str = "", spread: float = 0.01, seed: int = 1
) -> list[Measurement]:
    chance = random.Random(seed)
    made = []
    for number in range(1, rounds + 1):
        for block, (plane, level) in enumerate(levels.items()):
            for metric, factor in (("latency_p50", 1), ("latency_p90", 1.3), ("latency_p99", 2)):
                value = level * factor * math.exp(chance.gauss(0, spread))
                made.append(
                    Measurement(
                        round=number, trial=f"r{number}-{plane}-{cell}", block=block, plane=plane, component="client",
                        metric=metric, unit="ms", value=value, cell=cell,
                    )
                )  # fmt: skip
    return made


def block_of(built: table.Table, word: str) -> table.Block:
    return next(block for block in built.blocks if word in block.title)


def texts(block: table.Block) -> dict[str, list[table.Cell]]:
    return {row[0].lines[0]: list(row[1:]) for row in block.rows}


INFO = {"plan": {"experiment": {"planes": ["none", "slow", "alike"]}}}


def test_what_differs_is_told_and_what_does_not_is_weak_with_its_reason() -> None:
    """+20 % stands as it is, nothing at all has a footnote; the baseline and its twin have no row."""
    block = block_of(cells.table_of(INFO, rows(LEVELS), ()), "Ratio to none")
    told = texts(block)

    assert list(told) == ["slow", "alike"]
    assert told["slow"][0].lines[0].startswith("+") and told["slow"][0].tone == ""
    assert all(cell.tone == "weak" and cell.note for cell in told["alike"])


def test_too_few_rounds_claim_nothing() -> None:
    """Five rounds, however clear the difference looks: no block where none could, a reason where another plane can."""
    few = [m for m in rows(LEVELS) if m.plane != "slow" or m.round <= 5]
    built = cells.table_of(INFO, few, ())

    assert all("Ratio" not in block.title for block in cells.table_of(INFO, rows(LEVELS, rounds=5), ()).blocks)
    assert all(cell.tone == "weak" for cell in texts(block_of(built, "Ratio"))["slow"])
    assert "5 rounds; a claim takes 6" in built.notes


def test_intervals_are_wider_where_the_run_might_have_stopped_early() -> None:
    """Looks are paid for in the table, too, and its title says so."""
    rule = StopRule(most_rounds=40, until_width=0.02)
    summary = table.summarise(rows(LEVELS))
    plain = effects.effect(summary, "slow", "latency_p50")
    looked = effects.effect(summary, "slow", "latency_p50", confidence=rule.confidence)
    stored = {**INFO, "stop_rule": {"most_rounds": 40, "until_width": 0.02, "budget_s": None}}

    assert plain and looked and looked.ratio.low < plain.ratio.low < plain.ratio.high < looked.ratio.high
    assert "98.4% for 5 looks" in block_of(cells.table_of(stored, rows(LEVELS), ()), "Ratio").title


def test_everything_that_is_compared_has_to_be_narrow() -> None:
    """Each plane in each cell; with `none` alone it is the pair itself; a plane never measured has no interval."""
    rule = StopRule(most_rounds=12, until_width=0.1)
    both = rows(LEVELS, cell="a") + rows(LEVELS, cell="b")
    seen = effects.watched(both, ["none", "slow", "alike", "absent"], rule)

    assert set(seen) == {f"{plane} {cell}" for plane in ("slow", "alike", "absent") for cell in "ab"}
    assert seen["absent a"] is None
    assert seen["slow a"] is not None and seen["slow a"].estimate == pytest.approx(1.2, abs=0.03)
    assert [r.estimate for r in effects.watched(rows(LEVELS), ["none"], rule).values() if r] == pytest.approx(
        [1.0], abs=0.02
    )


def swept() -> tuple[dict, list[Measurement]]:
    info = {"plan": {"experiment": {"planes": ["none", "slow"], "cells": [{"name": "small"}, {"name": "big"}]}}}
    small = {"none": 2.0, "none (A/A)": 2.0, "slow": 2.2}
    big = {"none": 50.0, "none (A/A)": 50.0, "slow": 50.0}
    return info, rows(big, cell="big") + rows(small, cell="small", seed=2)


def test_cells_are_compared_within_themselves() -> None:
    """A row each, in the experiment's order; what one cell is slow by does not show in the other."""
    info, made = swept()
    block = texts(block_of(cells.table_of(info, made, ()), "p50 by cell"))

    assert list(block) == ["small", "big"]
    assert block["small"][0].lines == (block["small"][0].lines[0],)
    assert block["small"][2].tone == "" and block["small"][2].lines[1].startswith("+")
    assert block["big"][2].tone == "weak"
    assert float(block["big"][2].lines[0].split()[0]) == pytest.approx(50, abs=1)


def test_trials_left_out_of_one_cell_are_counted_and_named_there() -> None:
    """Its figures come from the others; a cell of a plane without any is told as bad."""
    info, made = swept()
    made = [
        m
        if m.cell == "small" or m.plane != "slow"
        else Measurement(**{name: getattr(m, name) for name in m.__slots__} | {"valid": False, "reason": "late"})
        for m in made
    ]
    built = cells.table_of(info, made, ())
    counted = texts(block_of(built, "Trials that count"))

    assert [cell.lines[0] for cell in counted["small"]] == ["8", "8", "8"]
    assert [cell.lines[0] for cell in counted["big"]] == ["8", "8", "0 of 8"]
    assert counted["big"][2].tone == "bad"
    assert built.notes[counted["big"][2].note - 1] == "big, slow, left out: 8 × late"


def test_footnotes_of_boundaries_keep_their_texts() -> None:
    """The block of another table is moved under ours: its numbers change, what they stand for does not."""
    info, made = swept()
    finding = Finding(
        id="boundary.l4-denied", plane="slow", segment="wire", statement="denied", result=Result.NO_EVIDENCE,
        evidence="nobody answered", value="?",
    )  # fmt: skip
    built = cells.table_of(info, made, [finding])
    entry = texts(block_of(built, "Boundaries"))["denied by L4 policy"][1]

    assert entry.note is not None and built.notes[entry.note - 1] == "no evidence: nobody answered"
