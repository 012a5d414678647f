"""Two runs beside each other, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from testbed import cli, comparison, store
from testbed.errors import UsageError
from tests import synthetic


def empty_run(folder: Path, name: str) -> Path:
    plan = store.Plan(topology=synthetic.topology(), seed=1, block_order=(), runtime="netns", link_kind="wire")
    experiment = dataclasses.replace(synthetic.experiment(("none",)), name=name)
    with store.Run.create(folder, experiment, plan, started="2026-01-02T03:04:05Z") as run:
        return run.path


def test_the_same_data_twice_differs_by_nothing(tmp_path: Path) -> None:
    """And the interval holds zero; the table says so in words, the JSON in numbers."""
    a, b = synthetic.make_run(tmp_path), synthetic.make_run(tmp_path)

    compared = comparison.compare(a.path, b.path)
    rows = comparison.as_table(compared).blocks[0].rows

    assert {one.plane for one in compared.differences} == set(synthetic.PLANES)
    assert all(one.change_ms == 0 and one.low_ms <= 0 <= one.high_ms for one in compared.differences)
    assert {row[4].lines[0] for row in rows} == {"0.000"}
    assert len(rows) == len(compared.differences) == 2 * len(synthetic.PLANES)


def test_a_program_reads_what_the_table_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unrounded, with the names of both runs; nothing else on stdout."""
    a, b = synthetic.make_run(tmp_path), synthetic.make_run(tmp_path)

    assert cli.report_compare(str(a.path), str(b.path), as_json_text=True) == 0
    told = json.loads(capsys.readouterr().out)

    assert (told["a"], told["b"]) == (a.path.name, b.path.name)
    assert told["differences"] == [dataclasses.asdict(d) for d in comparison.compare(a.path, b.path).differences]
    assert cli.report_compare(str(a.path), str(b.path)) == 0
    assert a.path.name in capsys.readouterr().out


def test_planes_of_one_run_only_are_named(tmp_path: Path) -> None:
    """They would else be passed over in silence."""
    a = synthetic.make_run(tmp_path)
    b = empty_run(tmp_path, a.info["experiment"])

    compared = comparison.compare(a.path, b)

    assert compared.differences == () and compared.only_b == ()
    assert set(compared.only_a) == set(synthetic.PLANES)
    made = comparison.as_table(compared)
    assert {row[0].lines[0] for row in made.blocks[0].rows} == set(synthetic.PLANES)
    assert {made.notes[row[0].note - 1] for row in made.blocks[0].rows} == {"only in A, so not compared"}


def test_every_note_is_called_by_a_cell(tmp_path: Path) -> None:
    """A number below the table that stands nowhere in it tells nobody what it is about."""
    a, b = synthetic.make_run(tmp_path), synthetic.make_run(tmp_path)
    whole = comparison.compare(a.path, b.path)
    half = dataclasses.replace(whole, only_a=("x",), only_b=("y", "z"))

    for compared, notes in ((whole, 1), (half, 3)):
        made = comparison.as_table(compared)
        called = {cell.note for row in made.blocks[0].rows for cell in row if cell.note}
        assert called == set(range(1, notes + 1)) and len(made.notes) == notes
    assert "unpaired" in made.notes[0] and all(row[4].note == 1 for row in made.blocks[0].rows[:-3])


def test_runs_of_two_experiments_are_not_compared(tmp_path: Path) -> None:
    """Their figures answer different questions."""
    with pytest.raises(UsageError, match="cannot compare a run of one with one of two"):
        comparison.compare(empty_run(tmp_path, "one"), empty_run(tmp_path, "two"))
