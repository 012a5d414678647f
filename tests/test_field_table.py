"""docs/traffic-fields.md is what the code says, and no field of a file is passed over in silence."""

from __future__ import annotations

from pathlib import Path

from tests import fieldtable

PAGE = Path(__file__).parent.parent / "docs" / "traffic-fields.md"


def test_the_page_is_what_the_code_says() -> None:
    """If it is not: `python -m tests.fieldtable > docs/traffic-fields.md`, and look at what has changed."""
    assert PAGE.read_text(encoding="utf-8") == fieldtable.page()


def test_what_is_called_done_is_known_to_the_model() -> None:
    """Another value gives another resource; else nobody could act on it, and some plane would have to say so."""
    found = list(fieldtable.examples())
    assert len(found) > 200
    silent = [
        f"{kind} {path}: {plane}"
        for kind, path, one, other in found
        for plane in fieldtable.PLANES
        if one == other and not fieldtable.reasons(one, plane)
    ]
    assert silent == []


def test_the_table_notices_a_field_that_nobody_reads() -> None:
    """A field that a shape knows and a reader forgets makes equal resources."""
    one, other = ({"http": [{"match": [{"statPrefix": value}]}]} for value in ("x", "y"))
    read = [fieldtable._read("VirtualService", "x", spec) for spec in (one, other)]
    assert read[0] == read[1]
    assert fieldtable.reasons(read[0], "sidecar") == ["no proxy here acts on it"]
