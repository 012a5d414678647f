"""docs/hbone-conformance.md keeps its word: each point has a state, and the tests that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (TESTS.parent / "docs" / "hbone-conformance.md").read_text().splitlines()
    if re.match(r"\| \d", line)
]
STATES = {"done", "done elsewhere", "differs", "not yet"}


def test_every_point_has_a_state_and_four_columns() -> None:
    """A state outside the list, or a row that lost a column, is a slip of the pen."""
    assert len(ROWS) > 60
    assert [row for row in ROWS if len(row) != 4 or row[1] not in STATES] == []


def test_what_is_done_names_a_test() -> None:
    """Nothing is done by reading alone; what differs says why."""
    assert [row[0] for row in ROWS if row[1].startswith("done") and "`test_" not in row[3]] == []
    assert [row[0] for row in ROWS if row[1] == "differs" and not row[2]] == []


def test_the_tests_it_names_exist() -> None:
    """By function or by module."""
    files = [*TESTS.glob("test_*.py"), *TESTS.glob("*/test_*.py")]
    known = {name for file in files for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.M)}
    known |= {file.stem for file in files}
    named = {name for row in ROWS for name in re.findall(r"`(test_\w+)`", row[3])}
    assert named - known == set()
