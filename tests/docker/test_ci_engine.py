"""The engine that CI starts for itself: it is there, it is alone, and it leaves nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.docker import archive, layer
from testbed.docker import engine as engines
from testbed.program import CHECKOUT

pytestmark = [pytest.mark.docker, pytest.mark.root]


def ci(verb: str, folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [CHECKOUT / ".ci" / "engine", verb, str(folder)], capture_output=True, text=True, timeout=120,
        env={**os.environ, **environ},
    )  # fmt: skip


def runs(pid: int) -> bool:
    """A process that has ended may still wait for its parent to hear of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, for a socket lies in it."""
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("needs root and dockerd (apt-get install docker.io)")
    made = Path(tempfile.mkdtemp(prefix="mesh-"))
    yield made
    ci("stop", made)


def test_it_starts_serves_and_ends_without_a_trace(folder: Path) -> None:
    """Also with a container inside that ignores every request to end, which alone would take its whole patience."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("needs busybox (apt-get install busybox-static)")
    started = ci("start", folder)
    if started.returncode != 0:
        pytest.skip(f"needs a machine where dockerd starts: {started.stderr[-300:]}")
    engine = engines.connect(started.stdout.strip())
    program = layer.Entry(path="bin/busybox", source=Path(busybox), executable=True)
    archive.load(engine, [program], tag="stubborn:1", settings={"Cmd": ["/bin/busybox", "sleep", "600"]})
    container = engine.client.containers.run("stubborn:1", detach=True, network_mode="none")
    container.reload()
    pids = [int((folder / "pid").read_text()), container.attrs["State"]["Pid"]]
    engine.close()
    assert all(runs(pid) for pid in pids)

    ended = ci("stop", folder)

    assert (ended.returncode, ended.stderr) == (0, "")
    assert not [pid for pid in pids if runs(pid)]
    assert not folder.exists()
    assert str(folder) not in Path("/proc/mounts").read_text()


def test_what_was_never_started_is_stopped_without_complaint(folder: Path) -> None:
    """And a process that has the number of a daemon long gone is left alone."""
    (folder / "pid").write_text(str(os.getpid()))

    assert ci("stop", folder).returncode == 0
    assert not folder.exists()


def test_without_a_daemon_it_says_so(folder: Path, tmp_path: Path) -> None:
    """CI then goes on without the tier, aloud."""
    for name in ("sh", "id", "cat", "rm", "tail"):
        (tmp_path / name).symlink_to(shutil.which(name) or "")

    said = ci("start", folder, PATH=str(tmp_path))

    assert (said.returncode, said.stdout) == (1, "")
    assert "no Docker engine: dockerd is not installed" in said.stderr
