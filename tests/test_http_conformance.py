"""docs/http-conformance.md names tests and rows of tables that exist."""

from __future__ import annotations

import re
from pathlib import Path

from tests import test_http1_chunks, test_http1_fields

ROOT = Path(__file__).parent.parent
DOC = (ROOT / "docs" / "http-conformance.md").read_text()
HTTP1, HTTP2 = DOC.split("## RFC 9113: HTTP/2\n")


def test_every_test_that_is_named_exists() -> None:
    """A renamed test must not leave a row without proof."""
    files = list((ROOT / "tests").rglob("test_*.py"))
    defined = {path.stem for path in files}
    defined |= set(re.findall(r"(?:def|class) (\w+)", "".join(path.read_text() for path in files)))
    named = set(re.findall(r"`(?:Test\w+::)?(test_\w+|Test\w+)[`:]", DOC))
    assert len(named) > 80
    assert named - defined == set()


def test_every_row_that_is_named_exists() -> None:
    """`TABLE["key"]`, and further keys in the same cell."""
    tables = {
        "REFUSED": test_http1_fields.REFUSED, "REFUSED_RESPONSES": test_http1_fields.REFUSED_RESPONSES,
        "TARGETS": test_http1_fields.TARGETS, "WHOLE": test_http1_chunks.WHOLE, "BROKEN": test_http1_chunks.BROKEN,
    }  # fmt: skip
    missing, seen, table = [], 0, ""
    for name, key in re.findall(r'`([A-Z_]*)\["([^"]*)"\]`', DOC):
        table = name or table
        seen += 1
        if "…" not in key and key not in tables[table]:
            missing.append((table, key))
    assert seen > 40
    assert missing == []


def test_every_point_has_a_state() -> None:
    """One of the words that the page explains."""
    common = {"done", "differs", "not yet"}
    for part, words in ((HTTP1, {*common, "exchange"}), (HTTP2, {*common, "elsewhere"})):
        rows = re.findall(r"^\| (\d[^|]*|RFC [^|]*|421[^|]*) \| ([^|]*) \|", part, re.MULTILINE)
        assert len(rows) > 55
        assert {state for _, state in rows} <= words


def test_what_is_done_names_its_test() -> None:
    """Or the same as the row above. What HTTP/2 has been read over for only, its part says of itself."""
    bare = [
        row for row in HTTP1.splitlines()
        if re.match(r"\| \d[^|]*\| done \|", row) and "`" not in row.split("|")[3]
        and row.split("|")[3].strip() not in ("the same", "content is never transformed")
    ]  # fmt: skip
    assert bare == []
