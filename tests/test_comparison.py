"""Two runs beside each other, for people and for programs."""

from __future__ import annotations

import dataclasses
import json
import math
import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from testbed import cli, comparison, store
from testbed.comparison import Agreement, Difference, difference
from testbed.errors import UsageError
from testbed.model.experiment import Cell, Load
from testbed.table import Summary, summarise
from tests import synthetic


def empty_run(folder: Path, name: str) -> Path:
    plan = store.Plan(topology=synthetic.topology(), seed=1, block_order=(), runtime="netns", link_kind="wire")
    experiment = dataclasses.replace(synthetic.experiment(("none",)), name=name)
    with store.Run.create(folder, experiment, plan, started="2026-01-02T03:04:05Z") as run:
        return run.path


def noisy(
    *, planes: Mapping[str, float], rounds: int, seed: int, drift: float = 1.0, spread: float = 0.02
) -> Summary:
    """A run in which each plane's latency is so many ms, with the machine's mood in each round and luck in each
    trial."""
    chance = random.Random(seed)
    rows = []
    for number in range(1, rounds + 1):
        mood = drift * math.exp(chance.gauss(0, 0.1))
        for plane, level in planes.items():
            value = level * mood * math.exp(chance.gauss(0, spread))
            rows.append(synthetic.row(plane, number, "latency_p50", value))
    return summarise(rows)


SAME = {"none": 2.0, "none (A/A)": 2.0, "x": 4.0}


def of_x(a: Summary, b: Summary) -> Difference:
    found = difference(a, b, "x", "latency_p50")
    assert found is not None
    return found


def test_the_same_plane_on_a_machine_that_drifted_agrees() -> None:
    """Half as slow again between the runs: beside the baseline of the same rounds nothing differs."""
    a = noisy(planes=SAME, rounds=12, seed=1)
    b = noisy(planes=SAME, rounds=12, seed=2, drift=1.5)

    found = of_x(a, b)
    assert found.verdict is Agreement.AGREES and found.text.startswith("agrees within ±")
    assert found.ratio.holds(1.0) and found.b_ms > 1.3 * found.a_ms
    base = difference(a, b, "none", "latency_p50")
    assert base is not None and not base.beside and base.verdict is Agreement.CANNOT_TELL
    assert base.why_not == "drift of the machine is in it" and base.ratio.low > 1.2


@pytest.mark.parametrize("rounds", [6, 12])
def test_a_planted_difference_is_told_with_its_size(rounds: int) -> None:
    """A quarter slower in B: the interval is about that, by ranks and by the bootstrap."""
    slower = {**SAME, "x": 5.0}
    found = of_x(noisy(planes=SAME, rounds=rounds, seed=3), noisy(planes=slower, rounds=rounds, seed=4))

    assert found.verdict is Agreement.DIFFERS and found.why_not == ""
    assert found.ratio.low < 1.25 < found.ratio.high and found.ratio.low > 1.1
    assert found.text.startswith("differs by +2")


def test_two_runs_of_the_same_are_seldom_told_apart() -> None:
    """A/A over 30 pairs of runs: by both rules, the interval and the resolution, at most a twentieth and chance."""
    runs = [noisy(planes=SAME, rounds=6, seed=seed) for seed in range(60)]

    assert sum(of_x(a, b).verdict is Agreement.DIFFERS for a, b in zip(runs[::2], runs[1::2], strict=True)) <= 3


def test_what_may_not_be_claimed_says_why() -> None:
    """Too few rounds, no A/A pair, a pair as far apart as the runs, an interval too wide to agree."""
    six = noisy(planes=SAME, rounds=6, seed=5)
    slower = {**SAME, "x": 5.0}
    few = of_x(noisy(planes=SAME, rounds=5, seed=6), noisy(planes=slower, rounds=6, seed=7))
    alone = {plane: ms for plane, ms in slower.items() if plane != "none (A/A)"}
    biased = [noisy(planes={**SAME, "none (A/A)": 3.0, "x": ms}, rounds=6, seed=8) for ms in (4.0, 5.0)]
    wide = of_x(noisy(planes=SAME, rounds=6, seed=9, spread=0.5), noisy(planes=SAME, rounds=6, seed=10, spread=0.5))

    assert few.why_not == "5 rounds in one; a claim takes 6 in each"
    assert "no A/A pair" in of_x(six, noisy(planes=alone, rounds=6, seed=8)).why_not
    assert "below the resolution" in of_x(*biased).why_not
    assert wide.verdict is Agreement.CANNOT_TELL and "the interval holds no difference" in wide.why_not
    assert wide.text.startswith("cannot tell ")


def test_the_same_data_twice_differs_by_nothing(tmp_path: Path) -> None:
    """Five rounds cannot agree either; the table says so in words, the JSON in numbers."""
    a, b = synthetic.make_run(tmp_path), synthetic.make_run(tmp_path)

    compared = comparison.compare(a.path, b.path)
    rows = comparison.as_table(compared).blocks[0].rows

    assert {one.plane for one in compared.differences} == set(synthetic.PLANES)
    assert all(one.ratio.estimate == 1 and one.ratio.holds(1) for one in compared.differences)
    assert all("a claim takes 6 in each" in row[5].lines[0] for row in rows)
    assert len(rows) == len(compared.differences) == 2 * len(synthetic.PLANES)
    assert compared.unlike == ()


def test_cells_of_a_sweep_are_compared_each_with_its_own(tmp_path: Path) -> None:
    """What differs along an axis is no difference between runs."""
    load = Load(rate_rps=100)
    cells = (Cell(name="near", load=load), Cell(name="far", load=load))
    experiment = dataclasses.replace(synthetic.experiment(("none", "sidecar")), name="two", cells=cells)
    runs = []
    for far_ms in (4.0, 40.0):
        plan = store.Plan(topology=synthetic.topology(), seed=1, block_order=(), runtime="netns", link_kind="wire")
        with store.Run.create(tmp_path, experiment, plan, started="2026-01-02T03:04:05Z") as run:
            for number in range(1, 4):
                for cell, ms in (("near", 4.0), ("far", far_ms)):
                    for plane, value in (("none", 2.0), ("sidecar", ms)):
                        made = synthetic.row(plane, number, "latency_p50", value)
                        run.append_trial([dataclasses.replace(made, cell=cell, trial=f"{number}{cell}{plane}")])
            runs.append(run.path)

    found = {(d.cell, d.plane): d.ratio.estimate for d in comparison.compare(*runs).differences}
    assert found["near", "sidecar"] == pytest.approx(1) and found["far", "sidecar"] == pytest.approx(10)
    assert "sidecar, far" in {row[0].lines[0] for row in comparison.as_table(comparison.compare(*runs)).blocks[0].rows}


def test_what_the_runs_did_not_share_is_named() -> None:
    """Another rate, another runtime: figures of different questions under one name."""
    one = {"plan": {"experiment": {"load": {"rate_rps": 1}, "rounds": 6}, "topology": {}}, "runtime": "netns"}
    other = {"plan": {"experiment": {"load": {"rate_rps": 2}, "rounds": 6}, "topology": {}}, "runtime": "docker"}

    assert comparison.unlike(one, other) == ("experiment: load", "runtime")
    assert comparison.unlike(one, one) == ()


def test_a_program_reads_what_the_table_shows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Unrounded, with the names of both runs; nothing else on stdout."""
    a, b = synthetic.make_run(tmp_path), synthetic.make_run(tmp_path)

    assert cli.report_compare(str(a.path), str(b.path), as_json_text=True) == 0
    told = json.loads(capsys.readouterr().out)

    assert (told["a"], told["b"]) == (a.path.name, b.path.name)
    compared = comparison.compare(a.path, b.path)
    assert [one["ratio"] for one in told["differences"]] == [one.ratio.estimate for one in compared.differences]
    assert {one["verdict"] for one in told["differences"]} == {"cannot tell"}
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

    for compared, notes in ((whole, 2), (half, 4)):
        made = comparison.as_table(compared)
        called = {cell.note for row in made.blocks[0].rows for cell in row if cell.note}
        assert called == set(range(1, notes + 1)) and len(made.notes) == notes
    assert {text.split(":")[0].split(" (")[0] for text in made.notes[:2]} == {"as it is", "beside none"}


def test_runs_of_two_experiments_are_not_compared(tmp_path: Path) -> None:
    """Their figures answer different questions."""
    with pytest.raises(UsageError, match="cannot compare a run of one with one of two"):
        comparison.compare(empty_run(tmp_path, "one"), empty_run(tmp_path, "two"))
