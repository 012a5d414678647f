"""A machine whose only cgroup tree is v2: this one, in a mount namespace that shows no other."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from testbed.program import CHECKOUT
from tests.labs import needs_root

V2_ALONE = """
import json, os, subprocess, sys
sys.path.insert(0, sys.argv[1])
from testbed.runtime import kernel
kernel.unshare(kernel.NEWNS)
kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
for words in (["umount", "-R", "-l", "/sys/fs/cgroup"], ["mount", "-t", "cgroup2", "none", "/sys/fs/cgroup"]):
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        print(json.dumps({"lacking": done.stderr.strip()}))
        sys.exit()

import time
from testbed.observe import procstat
from testbed.runtime.netns import NetnsRuntime
from testbed.seams import Spawn
from tests.labs import line
burn = (
    "import os, time\\n"
    "if not os.fork():\\n while time.process_time() < 0.3: pass\\n os._exit(0)\\n"
    "os.wait(); print('done', flush=True); time.sleep(600)"
)
with NetnsRuntime().up(line(1, 1), name=sys.argv[2]) as lab:
    argv = [sys.executable, "-I", "-S", "-c", burn]
    (program,) = lab.spawn([Spawn(name="burner", sandbox="w1-0", argv=argv, uid=3000, folder=lab.folder / "burner")])
    deadline = time.monotonic() + 60
    while "done" not in program.log.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    seen = procstat.read(program, now=0.0)
    folder = procstat.trees().unified / program.cgroup
    there = folder.is_dir()
print(json.dumps({
    "trees": [str(tree) for tree in procstat.trees().all], "weaker": NetnsRuntime().weaker(), "source": seen.source,
    "cpu_ns": seen.cpu_ns, "pss_bytes": seen.pss_bytes, "there": there, "left": folder.parent.exists(),
}))
"""


@pytest.mark.root
@needs_root
def test_a_lab_is_accounted_by_v2_where_there_is_nothing_else() -> None:
    """Ended children count, memory is read of the same group, and no group is left."""
    done = subprocess.run(
        [sys.executable, "-c", V2_ALONE, str(CHECKOUT), f"v{os.getpid()}"],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    if "lacking" in found:
        pytest.skip(f"needs a place for cgroup2 alone: {found['lacking']}")

    assert (found["trees"], found["weaker"], found["source"]) == (["/sys/fs/cgroup"], [], "cpu.stat")
    assert 0.29e9 < found["cpu_ns"] < 5e9
    assert found["pss_bytes"] > 500_000
    assert (found["there"], found["left"]) == (True, False)
