"""The point tables keep their word: each point has a state, and the tests that it names are there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
STATES = {"done", "done elsewhere", "differs", "not yet"}
TABLES = {
    page: [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (TESTS.parent / "docs" / page).read_text().splitlines()
        if re.match(r"\| \d", line)
    ]
    for page in ("hbone-conformance.md", "waypoint.md")
}
ROWS = [row for rows in TABLES.values() for row in rows]


@pytest.mark.parametrize(("page", "least"), [("hbone-conformance.md", 60), ("waypoint.md", 40)])
def test_every_point_has_a_state_and_four_columns(page: str, least: int) -> None:
    """A state outside the list, or a row that lost a column, is a slip of the pen."""
    assert len(TABLES[page]) > least
    assert [row for row in TABLES[page] if len(row) != 4 or row[1] not in STATES] == []


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
