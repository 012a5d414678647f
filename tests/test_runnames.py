"""How a run may be named, and what is said of a name that is none or two."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testbed import cli
from testbed.errors import UsageError
from testbed.runnames import find
from tests import synthetic
from tests.test_comparison import empty_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two runs of one experiment that begin alike, and one of another with the id of the first."""
    for name in ("one", "two"):
        empty_run(tmp_path, name)
    other = empty_run(tmp_path, "one")
    assert other.name == "20260102T030405Z-2"
    return tmp_path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("two/20260102T030405Z", "two/20260102T030405Z"),
        ("two/2026", "two/20260102T030405Z"),
        ("one/20260102T030405Z", "one/20260102T030405Z"),
        ("20260102T030405Z-2", "one/20260102T030405Z-2"),
        ("20260102T030405Z-", "one/20260102T030405Z-2"),
    ],
)
def test_an_id_or_its_beginning_finds_the_run(root: Path, text: str, found: str) -> None:
    """A whole id wins over others that begin with it."""
    assert find(text, root) == root / found


def test_a_path_is_a_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it lies; with a slash at its end, too."""
    run = root / "two" / "20260102T030405Z"
    assert find(str(run), root / "elsewhere") == run
    assert find(f"{run}/", root) == run
    monkeypatch.chdir(run.parent)
    assert find("20260102T030405Z", root).resolve() == run
    assert find("./20260102T030405Z", root).resolve() == run


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("20260102T030405Z", "may be .*one/20260102T030405Z.*; give more of it, or experiment/run"),
        ("one/2026", "may be one/20260102T030405Z-2, one/20260102T030405Z"),
        ("two/20260102T030405Y", "no run is 'two/20260102T030405Y'.*did you mean 'two/20260102T030405Z'"),
        ("three/2026", "no run is 'three/2026', neither a path nor one in"),
        ("", "which run\\? give its path, or its id in"),
    ],
)
def test_a_name_of_none_or_two_is_refused_with_those_there_are(root: Path, text: str, says: str) -> None:
    """Nobody reads the wrong run unawares."""
    with pytest.raises(UsageError, match=says):
        find(text, root)


def test_a_folder_that_is_no_run_is_called_so(root: Path) -> None:
    """Such as an experiment's."""
    with pytest.raises(UsageError, match=r"has no run\.json, so it is no run"):
        find(str(root / "one"), root)
    with pytest.raises(UsageError, match=r"holds none; \./inv quickstart makes one"):
        find("2026", root / "one" / "20260102T030405Z")


def test_every_verb_that_takes_a_run_takes_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """show, build and compare."""
    made = synthetic.make_run(tmp_path)
    monkeypatch.setenv("MESHBED_RESULTS", str(tmp_path))
    monkeypatch.chdir(os.path.dirname(tmp_path))
    whole, id_ = f"{made.path.parent.name}/{made.path.name}", made.path.name

    cli.experiment_show(id_[:6])
    assert "Latency, from the intended send time" in capsys.readouterr().out
    assert cli.report_build(whole) == 0
    assert capsys.readouterr().out.strip() == str(made.path / "report.html")
    assert cli.report_build(id_, dry_run=True) == 0
    assert cli.report_compare(id_, whole) == 0
