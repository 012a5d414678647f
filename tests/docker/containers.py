"""What the cases on a lab's containers share: the engine's own view of them, and small programs in them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from testbed.runtime import dockerplan, ownership
from testbed.runtime.dockerlab import DockerLab
from testbed.runtime.dockerprocess import ContainerProcess
from testbed.seams import Spawn

PYTHON = "/opt/meshbed/bin/python"


def until(condition: Callable[[], object], what: str, within_s: float = 20.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


def docker(*words: str) -> str:
    """The engine asked by its own command line: judged by something that is not ours."""
    done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def of_lab(name: str, root: Path | None = None) -> list[str]:
    """Names of its containers, running or not."""
    root = root or Path(os.environ["MESHBED_STATE"])
    root.mkdir(exist_ok=True)
    owner = f"label={dockerplan.OWNER}={dockerplan.owner(root, 0, ownership.key(root))}"
    said = docker("ps", "-a", "--filter", owner, "--filter", f"label={dockerplan.LAB}={name}", "--format", "{{.Names}}")
    return said.split()


def python(lab: DockerLab, name: str, code: str, uid: int = 3000, **more: object) -> ContainerProcess:
    argv = [PYTHON, "-I", "-S", "-u", "-c", code]
    spawn = Spawn(name=name, sandbox="w1-0", argv=argv, uid=uid, folder=lab.folder / "p" / name, **more)  # type: ignore[arg-type]
    (process,) = lab.spawn([spawn])
    assert isinstance(process, ContainerProcess)
    return process


def said(process: ContainerProcess) -> list[str]:
    process.wait(15.0)
    assert process.log is not None
    return process.log.read_text().splitlines()
