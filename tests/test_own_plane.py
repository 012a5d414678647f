"""docs/write-your-own-plane.md does what it says: its blocks, installed, brought up, measured and judged."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

from testbed.model.experiment import Result
from testbed.program import CHECKOUT
from testbed.store import Run, runs
from tests.labs import needs_root

PAGE = (CHECKOUT / "docs" / "write-your-own-plane.md").read_text()
FILES = dict(re.findall(r"^`(examples/own_plane/[\w./]+)`:\n\n```\w+\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^(?:\./inv|\.venv/bin/python) .*", re.findall(r"^```sh\n(.*?)^```", PAGE, re.M | re.S)[0], re.M)


def test_the_page_shows_the_files_as_they_are() -> None:
    """All of the example, to the letter."""
    folder = CHECKOUT / "examples" / "own_plane"
    tracked = {path for kind in ("*.py", "*.toml") for path in folder.rglob(kind) if "build" not in path.parts}

    assert set(FILES) == {str(p.relative_to(CHECKOUT)) for p in tracked if p.name != "__init__.py"}
    for name, text in FILES.items():
        assert text == (CHECKOUT / name).read_text(), name


def installed(folder: Path) -> Path:
    """The interpreter of a new environment that has what ours has, and the page's package.

    Put there as pip would, but by hand: building a wheel takes a setuptools that has to come from somewhere.
    """
    python = folder / "venv" / "bin" / "python"
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (site / "meshbed.pth").write_text(f"{sysconfig.get_paths()['purelib']}\n{CHECKOUT}\n")
    package = folder / "examples" / "own_plane"
    for name, text in FILES.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    (package / "own_plane" / "__init__.py").touch()
    shutil.copytree(package / "own_plane", site / "own_plane")
    groups = tomllib.loads(FILES["examples/own_plane/pyproject.toml"])["project"]["entry-points"]
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in groups.items()]
    metadata = site / "own_plane-0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: own-plane\nVersion: 0.1\n")
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    return python


@pytest.mark.root
@needs_root
def test_the_page_leads_to_a_plane_that_is_measured_and_keeps_its_claims(tmp_path: Path) -> None:
    """Every command of the page, by an interpreter that knows the package only as installed."""
    python = installed(tmp_path)
    env = {**os.environ, "MESHBED_STATE": str(tmp_path / "state"), "MESHBED_RESULTS": str(tmp_path / "results")}
    env.pop("PYTHONPATH", None)
    codes = {}
    assert COMMANDS[0].endswith(" -m pip install ./examples/own_plane")
    for command in COMMANDS[1:]:
        words = shlex.split(command)
        if "curl" in words and not shutil.which("curl"):
            continue
        verb = [str(python), "-m", "testbed", *words[1:]]
        done = subprocess.run(verb, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=240)
        codes[words[1]] = done.returncode
        assert done.returncode in (0, 3, 4), f"{command}: {done.stdout}{done.stderr}"
        if "curl" in words:
            assert "200 OK" in done.stdout

    (path,) = runs(tmp_path / "results")
    run = Run.open(path)
    findings = run.findings()
    checked = {finding.id.rpartition("/")[2] for finding in findings}
    latencies = [m.value for m in run.measurements() if m.metric == "latency_p50"]

    assert {"hidden", "delivered", "tls", "identity", "boundary.identities-held"} <= checked
    assert [f for f in findings if f.result is not Result.HOLDS] == []
    assert len(latencies) == 1 and latencies[0] > 0
    assert codes["lab.up"] in (0, 3) and codes["lab.down"] == 0
