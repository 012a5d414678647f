"""docs/sidecar.md keeps its word: each point has a state, and the tests that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (TESTS.parent / "docs" / "sidecar.md").read_text().splitlines()
    if re.match(r"\| \d", line)
]


def test_every_point_has_a_state_and_what_is_not_plainly_done_says_why() -> None:
    """Four columns; a difference has its reason, what is done its test."""
    assert len(ROWS) > 40
    assert [r for r in ROWS if len(r) != 4 or r[1] not in ("done", "differs", "not yet")] == []
    assert [r[0] for r in ROWS if r[1] == "differs" and not r[2]] == []
    assert [r[0] for r in ROWS if r[1] != "not yet" and "`test_" not in r[3]] == []


def test_the_tests_it_names_exist() -> None:
    """By function or by module, where the row says."""
    here = {n for f in TESTS.glob("test_*.py") for n in (f.stem, *_functions(f))}
    namespaced = {n for f in (TESTS / "namespaced").glob("test_*.py") for n in (f.stem, *_functions(f))}
    envoy = {n for f in (TESTS / "envoy").glob("test_*.py") for n in (f.stem, *_functions(f))}
    places = {"": here, "N: ": namespaced, "E: ": envoy}
    for row in ROWS:
        for where, name in re.findall(r"([NE]: )?`(test_\w+)`", row[3]):
            assert name in places[where], f"{row[0]}: {name}"


def _functions(file: Path) -> list[str]:
    return re.findall(r"^ *(?:async )?def (test_\w+)", file.read_text(), re.M)
