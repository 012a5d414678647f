"""Each parser against its corpus, and against some hundred variations of it drawn by a fixed seed."""

from __future__ import annotations

import random

import pytest

from fuzz.targets import TARGETS, Target

VARIATIONS = 150


@pytest.mark.parametrize("name", TARGETS)
def test_every_input_of_the_corpus_keeps_the_promises(name: str) -> None:
    """Seeds, and what fuzzing found: each crashed once."""
    target = TARGETS[name]
    corpus = target.corpus()
    assert corpus, f"{name} has no seeds"
    for path in corpus:
        _kept(target, path.read_bytes(), path.name)


@pytest.mark.parametrize("name", TARGETS)
def test_variations_keep_the_promises(name: str) -> None:
    """A short walk without coverage, the same each time: what a change breaks at once is seen here."""
    target, draw = TARGETS[name], random.Random(name)
    seeds = [data for path in target.corpus() if len(data := path.read_bytes()) <= target.max_bytes]
    for number in range(VARIATIONS):
        _kept(target, target.change(draw.choice(seeds), draw)[: target.max_bytes], f"variation {number}")


def _kept(target: Target, data: bytes, what: str) -> None:
    try:
        target.check(data)
    except Exception as error:
        error.add_note(f"{target.name}, {what}: {data[:400]!r}")
        raise
