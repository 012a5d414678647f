"""README, ARCHITECTURE and the other pages name only what is there, and README names all a user meets."""

from __future__ import annotations

import re
import subprocess
from copy import copy
from pathlib import Path

import pytest
from invoke import Collection

import tasks
from testbed import errors, registry
from testbed.program import CHECKOUT

DOCS = tuple(f"docs/{page.name}" for page in sorted((CHECKOUT / "docs").glob("*.md")))
PAGES = ("README.md", "ARCHITECTURE.md", "NOTES.md", *DOCS)
COMMAND = re.compile(r"\./inv ([a-z][a-z.-]*)([^`#\n]*)")
CODE = re.compile(r"`([^`\n]+)`")
MADE_BY_USE = (".venv", "results/", "table.md")
"""Named though no fresh checkout has them."""


def text_of(page: str) -> str:
    return (CHECKOUT / page).read_text()


def verbs() -> dict[str, set[str]]:
    """Verb -> its options as typed."""
    found: dict[str, set[str]] = {}

    def walk(collection: Collection, prefix: str) -> None:
        for name, task in collection.tasks.items():
            spare = copy(task)
            spare.help = dict(task.help)  # invoke takes it out when arguments are asked for
            names = [name for argument in spare.get_arguments() for name in argument.names]
            found[f"{prefix}{name}"] = {f"--{name.replace('_', '-')}" for name in names}
        for name, below in collection.collections.items():
            walk(below, f"{prefix}{name}.")

    walk(tasks.namespace, "")
    return found


def tracked() -> list[str]:
    done = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip("not a git checkout: what belongs to the project cannot be told from what lies about")
    return done.stdout.splitlines()


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_a_verb_with_these_options(page: str) -> None:
    """`./inv X --y` anywhere on a page."""
    known = verbs()
    for verb, rest in COMMAND.findall(text_of(page)):
        assert verb in known, f"{page}: ./inv {verb}"
        options = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", rest.partition(" -- ")[0]))
        assert options <= known[verb], f"{page}: ./inv {verb} has no {options - known[verb]}"


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page: str) -> None:
    """Links of the checkout; those to elsewhere are not followed."""
    for target in re.findall(r"\]\(([^)#\s]+)", text_of(page)):
        if "://" not in target:
            assert ((CHECKOUT / page).parent / target).exists(), f"{page}: {target}"


@pytest.mark.parametrize("page", ("README.md", "ARCHITECTURE.md"))
def test_every_file_and_folder_named_is_there(page: str) -> None:
    """Whatever stands in backquotes and looks like a path of the checkout: a folder, a module, a pattern."""
    places = {path.partition("/")[0] for path in tracked()}
    named = 0
    for code in CODE.findall(text_of(page)):
        if not re.fullmatch(r"[\w.*-]+/[\w./*-]*|[\w*-]+\.(?:py|md|yml|toml)", code) or code.startswith(MADE_BY_USE):
            continue
        if code.partition("/")[0] in places or "/" not in code:
            found = list(CHECKOUT.glob(code.rstrip("/"))) or list((CHECKOUT / "testbed").glob(code))
            assert found, f"{page}: {code} is not there"
            named += 1
    assert named > 5, f"{page}: paths are written in another way now, and this test reads none"


def test_readme_lists_every_verb_and_no_other() -> None:
    """The table of verbs."""
    section = text_of("README.md").partition("## Verbs")[2].partition("\n## ")[0]
    rows = [line.split(" | ")[0] for line in section.splitlines() if line.startswith("| `")]
    listed = [code.split()[0] for row in rows for code in CODE.findall(row)]

    assert sorted(listed) == sorted(verbs())


def test_readme_maps_every_folder() -> None:
    """Each folder at the root has its row."""
    section = text_of("README.md").partition("## Map of folders")[2].partition("\n## ")[0]
    mapped = {row[0].rstrip("/") for line in section.splitlines() if (row := re.findall(r"^\| `([^`]+)/`", line))}

    assert mapped == {path.partition("/")[0] for path in tracked() if "/" in path}


def test_architecture_names_every_package() -> None:
    """A package of the testbed or the planes without a row has no rule of what it may import."""
    text = text_of("ARCHITECTURE.md")
    packages = {str(Path(path).parent) for path in tracked() if re.fullmatch(r"testbed/\w+/__init__\.py", path)}
    words = set(re.findall(r"[\w.-]+", text))

    assert not [package for package in packages if package.partition("/")[2] not in words]


def test_what_is_registered_is_in_the_readme() -> None:
    """Planes, runtimes, links and shipped topologies by the names that a user types."""
    codes = set(CODE.findall(text_of("README.md")))
    shipped = {path.stem for path in (CHECKOUT / "topologies").glob("*.yml") if "." not in path.stem}

    assert {*registry.BUILT_IN["plane"], *registry.BUILT_IN["runtime"], *registry.BUILT_IN["link"], *shipped} <= codes


def test_exit_codes_of_the_readme_are_those_of_the_errors() -> None:
    """A script that reads them there must find them so."""
    stated = dict(re.findall(r"(\d+) ([a-z]+)", text_of("README.md").partition("Exit codes:")[2].partition("\n\n")[0]))

    assert stated[str(errors.UsageError.exit_code)] == "wrong"
    assert stated[str(errors.TrialError.exit_code)] == "fidelity"
    assert stated[str(errors.MachineError.exit_code)] == "the"
    assert stated[str(errors.PeerError.exit_code)] == "failed"


def test_ci_runs_the_second_command_of_the_readme() -> None:
    """And not something that only CI knows."""
    commands = [verb for verb, _ in COMMAND.findall(text_of("README.md"))[:2]]

    assert commands == ["quickstart", "test"]
    assert re.search(r"^(exec )?\./inv test\b", text_of(".ci/run"), re.MULTILINE)


def test_comments_cite_only_what_is_here() -> None:
    """A fact by its number is a point of the conformance page; any other says itself what it knows."""
    cited = {}
    for path in tracked():
        if path.endswith((".py", ".md", ".yml", ".toml")) and path != "tests/test_docs.py":
            for notes in re.findall(r"\bfacts/([a-z]+)", (CHECKOUT / path).read_text()):
                cited.setdefault(notes, path)
    assert set(cited) == {"hbone"}, cited

    points = set(re.findall(r"^\| (\d+\.\d+)", text_of("docs/hbone-conformance.md"), re.MULTILINE))
    for path in tracked():
        if path.endswith(".py"):
            for point in re.findall(r"facts/hbone ([12]\.\d+)", (CHECKOUT / path).read_text()):
                assert point in points, f"{path}: facts/hbone {point} is not in docs/hbone-conformance.md"


@pytest.mark.parametrize("page", ["docs/threat-model.md", "docs/anomalies.md"])
def test_every_test_that_a_page_rests_on_is_there(page: str) -> None:
    """A statement without its test is a promise only."""
    texts = [path.read_text() for path in (CHECKOUT / "tests").rglob("*.py")]
    there = {name for text in texts for name in re.findall(r"def (test_\w+)", text)}
    cited = {code for code in CODE.findall(text_of(page)) if re.fullmatch(r"test_\w+", code) and code != "test_row_"}

    assert len(cited) > 10
    assert cited - there == set()


def test_nothing_is_started_by_a_shell() -> None:
    """So no name from a file can be a command."""
    folders = ("testbed/", "planes/", "experiments/", "tasks.py")
    shells = re.compile(r"shell=True|os\.system\(|os\.popen\(")
    assert [p for p in tracked() if p.endswith(".py") and p.startswith(folders)
            and shells.search((CHECKOUT / p).read_text())] == []  # fmt: skip


def test_yaml_is_never_made_into_objects() -> None:
    """Files are composed to nodes, or read by a safe loader, which makes plain values."""
    unsafe = re.compile(r"yaml\.(?:load|full_load|unsafe_load)(?:_all)?\(|yaml\.(?:Full|Unsafe)?Loader\b")
    assert [p for p in tracked() if p.endswith(".py") and p.startswith(("testbed/", "planes/", "tasks.py"))
            and unsafe.search((CHECKOUT / p).read_text())] == []  # fmt: skip
