"""A cgroup for each program of a lab: where such trees are (v1, hybrid, v2), making them, removing them.

Only accounting is wanted, so only two trees are used: v1 `cpuacct` where there is one, and the v2 tree, whose
`cpu.stat`
needs no controller. The memory controller is left alone on purpose: it charges shared pages to whoever touched them
first (PSS divides them), and joining it would take a program out of a limit that someone above us has set.
"""

from __future__ import annotations

import os
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

TOP = "meshbed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trees:
    """Mount points of the accounting trees; None where the machine has none."""

    cpuacct: Path | None = None
    unified: Path | None = None

    @property
    def all(self) -> tuple[Path, ...]:
        return tuple(tree for tree in (self.cpuacct, self.unified) if tree is not None)


def parse_trees(mountinfo: str) -> Trees:
    """From the text of /proc/self/mountinfo; the first mount of a tree counts."""
    found: dict[str, Path] = {}
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        where = left.split()[4]
        kind, _, options = right.split(maxsplit=2)
        if kind == "cgroup2":
            found.setdefault("unified", Path(where))
        elif kind == "cgroup" and "cpuacct" in options.split(","):
            found.setdefault("cpuacct", Path(where))
    return Trees(**found)


def trees() -> Trees:
    return parse_trees(Path("/proc/self/mountinfo").read_text())


def lab_folder(lab: str, state_root: Path, default_root: Path) -> str:
    """Name of a lab's cgroup under `TOP`: the lab's; with a tag where the state root is not the usual one."""
    return lab if state_root == default_root else f"{lab}@{zlib.crc32(str(state_root).encode()):08x}"


def make(found: Trees, name: str) -> str:
    """Creates `/meshbed/<name>` in the first tree that lets us, for one is enough to count with; the file of it that
    a program writes `0` to, to join. Empty where they are not ours to make.

    In v1 that is `tasks`: a thread that moves itself alone takes no lock against all forks of the machine, which the
    kernel would first wait a grace period (10 to 30 ms) for.
    """
    for tree in found.all:
        folder = f"{tree}/{TOP}/{name}"
        if _made(folder):
            return f"{folder}/{'tasks' if tree == found.cpuacct else 'cgroup.procs'}"
    return ""


def _made(folder: str) -> bool:
    for _ in range(5):
        try:
            os.makedirs(folder, exist_ok=True)
            return True
        except FileNotFoundError:
            continue  # the last lab of another process took the top folder away between two steps of ours
        except OSError:
            break
    return False


def remove(folder: Path, *, timeout_s: float = 2.0) -> bool:
    """Removes a cgroup and those below it, waiting for the last process to be gone; False when it would not go."""
    deadline = time.monotonic() + timeout_s
    while True:
        below = sorted((Path(path) for path, _, _ in os.walk(folder)), reverse=True)
        for cgroup in below:
            try:
                cgroup.rmdir()
            except OSError:
                pass
        if not folder.exists():
            if folder.parent.name == TOP:
                try:
                    folder.parent.rmdir()  # refused while another lab has a folder in it
                except OSError:
                    pass
            return True
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)


def processes(folder: Path) -> list[int]:
    """Process ids in a cgroup and below it."""
    found = []
    for path, _, _ in os.walk(folder):
        try:
            found += [int(word) for word in Path(path, "cgroup.procs").read_text().split()]
        except OSError:
            continue
    return found
