"""Runs kept beside the code: small, readable like any other, and nameless."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from testbed import axisclaims, cli, kept, referencepage, report, runnames, runs, shapes
from testbed.claimlist import CLAIMS
from testbed.errors import UsageError
from testbed.fidelity import PREFIX
from testbed.fidelitytable import certified
from testbed.program import CHECKOUT
from testbed.store import Run
from testbed.table import summarise
from tests import synthetic

HERE = kept.kept_runs()


@pytest.fixture
def made(tmp_path: Path) -> Run:
    return synthetic.make_run(tmp_path / "results")


@pytest.fixture
def folder(made: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, kept."""
    monkeypatch.setattr(runnames, "CHECKOUT", tmp_path)
    return kept.keep(made.path, root=tmp_path / "results" / "reference")


def test_a_kept_run_reads_as_the_run_it_was_made_of(made: Run, folder: Path) -> None:
    """Its figures, findings and claims are the same; requests, captures and logs are not there, nor missed."""
    again = Run.open(folder)

    assert summarise(again.measurements()).frame.equals(summarise(made.measurements()).frame)
    assert again.findings() == made.findings()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ("run.json", "measurements.csv", "findings.jsonl", "journal.jsonl", "table.md", "report.html")
    )
    assert report.missing_requests(again) == [] and again.request_files() == {}
    assert "kept without its requests, captures, logs" in (folder / "report.html").read_text()
    assert "All stored requests of valid trials" in (folder / "report.html").read_text()


def test_checks_that_passed_are_counted_and_not_listed() -> None:
    """What a certificate's block is made of is all there: who passed, who did not and why."""
    one = synthetic.row("none", 1, f"{PREFIX}busy", 0.0, "host", reason="host 3% busy")
    rows = [
        dataclasses.replace(one, trial="a"),
        dataclasses.replace(one, trial="a", metric=f"{PREFIX}lag", reason="generator on time"),
        dataclasses.replace(one, trial="b"),
        dataclasses.replace(one, trial="b", metric=f"{PREFIX}lag", value=1.0, reason="generator late"),
        dataclasses.replace(one, trial="c", metric=f"{PREFIX}psi", value=float("nan"), reason="not available"),
        synthetic.row("none", 1, "latency_p50", 1.0),
    ]
    short = kept.shortened(rows)

    assert sorted(m.reason for m in short) == [
        "", "1 checks passed", "2 checks passed", "generator late", "not available"
    ]  # fmt: skip
    before, after = certified(rows)["none"], certified(short)["none"]
    assert (after.trials, after.causes, after.missing) == (before.trials, before.causes, before.missing)


@pytest.mark.parametrize("change", [{"kept": {"without": []}}, {"ended": None}])
def test_what_is_kept_already_or_not_finished_is_refused(made: Run, change: dict, tmp_path: Path) -> None:
    """A reference run is whole."""
    made._update(**change)
    with pytest.raises(UsageError, match=r"kept run already|not finished"):
        kept.keep(made.path, root=tmp_path / "reference")
    assert not (tmp_path / "reference").exists()


def test_a_run_without_its_requests_is_refused(made: Run, tmp_path: Path) -> None:
    """Its page would lack their curves without a word."""
    next(iter(made.request_files().values())).unlink()
    with pytest.raises(UsageError, match="files of requests are gone"):
        kept.keep(made.path, root=tmp_path / "reference")


def test_a_run_that_names_this_machine_is_refused(made: Run, tmp_path: Path) -> None:
    """Such as the folder in which its labs were."""
    made._update(command=f"./inv experiment.run synthetic --resume {made.path}")
    with pytest.raises(UsageError, match=r"run\.json names the run's path"):
        kept.keep(made.path, root=tmp_path / "reference")


@pytest.mark.parametrize(
    ("text", "found"),
    [("at /home/ann/x", True), ("/home/ann", True), ("/home/anne/x", False), ("x/home/ann", False)],
)
def test_places_are_found_as_whole_words(text: str, found: bool) -> None:
    """Somebody else's folder that begins alike is not this one."""
    assert bool(kept.named_in({"f": text.encode()}, {"a home folder": "/home/ann"})) is found


def test_a_second_one_takes_the_place_of_the_first(made: Run, folder: Path) -> None:
    """Nothing of the first stays, and nothing beside it."""
    (folder / "stray").touch()
    assert kept.keep(made.path, root=folder.parent) == folder
    assert not (folder / "stray").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert kept.keep(made.path, root=folder.parent / "other", dry_run=True).parent.exists() is False


def test_it_has_a_name_and_is_no_run_of_ones_own(made: Run, folder: Path, tmp_path: Path) -> None:
    """Where runs are looked for it is found by its own name only, and nobody goes on with it or makes its page anew."""
    results = tmp_path / "results"

    assert runnames.find("reference/synthetic", results) == folder
    assert runnames.find(made.path.name, results) == made.path
    with pytest.raises(UsageError, match="there are: synthetic"):
        runnames.find("reference/other", results)
    with pytest.raises(UsageError, match="no run to go on with"):
        runs.run("quickstart", resume=str(folder))
    with pytest.raises(UsageError, match="kept without its requests"):
        report.build(folder)
    assert cli.report_compare(str(made.path), str(folder)) == 0


@pytest.mark.parametrize("path", HERE, ids=[path.name for path in HERE])
def test_every_reference_run_reads(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By the code as it is now: its table, and its claims."""
    run = Run.open(path)
    measurements = run.measurements()

    assert run.info["experiment"] == path.name and run.info["commit"] and measurements
    assert runs.show(path) in (0, 3)
    assert capsys.readouterr().out
    named = [id_ for id_ in run.info["plan"]["experiment"]["claims"] if id_ in CLAIMS]
    assert [one.claim.id for one in axisclaims.judge(named, run.info, measurements, run.findings())] == named
    assert sum(file.stat().st_size for file in path.iterdir()) < 2_000_000


def test_the_page_tells_of_every_reference_run() -> None:
    """And is made of them: `./inv report.reference --write`."""
    text = (CHECKOUT / "docs" / "reference.md").read_text()
    told = {line.split("`")[1] for line in text.partition("## Runs")[2].partition("##")[0].splitlines() if "`" in line}

    assert told == {path.name for path in HERE}
    made = referencepage.page({path.name: shapes.of(Run.open(path)) for path in HERE})
    assert [line for line in made.splitlines() if line.startswith("#")] == [
        line for line in text.splitlines() if line.startswith("#")
    ]
