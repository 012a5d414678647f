"""What is found by name: our own, and what installed packages add."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from testbed import cli, registry
from testbed.errors import UsageError


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts packages where Python looks for them, as pip leaves them: modules, and metadata with entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def put(package: str, entries: str, **modules: str) -> None:
        for name, text in modules.items():
            monkeypatch.delitem(sys.modules, name, raising=False)
            (tmp_path / f"{name}.py").write_text(text)
        metadata = tmp_path / f"{package}-1.dist-info"
        metadata.mkdir()
        (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1\n")
        (metadata / "entry_points.txt").write_text(entries)

    return put


@pytest.mark.parametrize("seam", sorted(registry.BUILT_IN))
def test_all_that_is_built_in_can_be_loaded_and_fits_its_seam(seam: str) -> None:
    """A line of the registry that leads nowhere would be found by a user first."""
    for name in registry.BUILT_IN[seam]:
        loaded = registry.load(seam, name)
        assert seam not in registry.WANTED or hasattr(loaded, registry.WANTED[seam]), name


def test_an_installed_package_adds_a_plane(install) -> None:
    """By its entry point; the name is known from then on, also to who mistypes it."""
    install("strange", "[testbed.plane]\nstrange = strange_plane:PLANE\n", strange_plane="class PLANE:\n  place = 7\n")

    assert registry.load("plane", "strange").place == 7
    assert "strange" in registry.names("plane")
    with pytest.raises(UsageError, match=r"'stange'; did you mean 'strange'\? known: .*none.*strange"):
        registry.load("plane", "stange")


def test_a_name_of_ours_stays_ours(install) -> None:
    """A package cannot become the baseline that all is compared with."""
    install("thief", "[testbed.plane]\nnone = thief_plane:PLANE\n", thief_plane="class PLANE:\n  place = 7\n")

    assert registry.load("plane", "none").place != 7


@pytest.mark.parametrize(
    ("target", "text", "said"),
    [
        ("absent_module:PLANE", "", "ModuleNotFoundError: No module named 'absent_module'"),
        ("odd_plane:ABSENT", "", "AttributeError"),
        ("odd_plane:PLANE", "PLANE = 1 / 0", "ZeroDivisionError"),
        ("odd_plane:PLANE", "PLANE = 7", "is 7, which has no 'place'"),
    ],
)
def test_a_broken_entry_point_says_whose_it_is_and_what_is_wrong(install, target: str, text: str, said: str) -> None:
    """Its package, what it names, and the error: no traceback of a stranger's module."""
    install("odd", f"[testbed.plane]\nodd = {target}\n", odd_plane=text)

    with pytest.raises(UsageError) as refused:
        registry.load("plane", "odd")
    assert str(refused.value).startswith(f"plane 'odd': the entry point '{target}' of package odd ")
    assert said in str(refused.value)


def test_one_name_in_two_packages_is_nobodys(install) -> None:
    """Which one was measured would depend on the order of a folder."""
    for package in ("left", "right"):
        install(package, f"[testbed.plane]\nboth = {package}_plane:PLANE\n")

    with pytest.raises(UsageError, match=r"'both' is an entry point of package (left|right) and package (left|right);"):
        registry.load("plane", "both")


def test_a_broken_experiment_does_not_hide_the_others(install, capsys: pytest.CaptureFixture[str]) -> None:
    """They are listed; the broken one is named, and the exit code is that of a warning."""
    install("odd", "[testbed.experiment]\nodd = absent_module:EXPERIMENT\n")

    code = cli.experiment_list()
    printed = capsys.readouterr()

    assert code == 3
    assert "quickstart" in printed.out and "package odd" in printed.err


def test_the_list_says_how_long_at_least(capsys: pytest.CaptureFixture[str]) -> None:
    """Five planes and the A/A pair, five rounds, load of 5 s each: two and a half minutes, and never told shorter."""
    experiment = registry.load("experiment", "quickstart")
    least_s = experiment.rounds * 6 * (experiment.load.warmup_s + experiment.load.window_s)

    assert cli.experiment_list() == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("quickstart "))
    assert experiment.loaded_s == least_s and int(line.split(" min")[0].split()[-1]) * 60 >= least_s
