"""An ordinary user for tests that run as root: each call is a process without any right, in a mount namespace of its
own where the checkout can be read and /etc knows the user, so that nothing of the machine is changed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.runtime.netns import PROJECT, Ways

UID = 47_011
"""Nobody's on a machine that anyone uses for tests; its files are in the test's own folder."""
FIRST_SUBORDINATE_ID = 3_000_000_000

# Arguments: folder, uid, "ids" or "one", the limit of user namespaces or "", then argv.
BECOME = """
import os, sys
sys.path.insert(0, {project!r})
from pathlib import Path
from testbed.runtime import kernel, launch
folder, uid, ids, limit, *argv = sys.argv[1:]
uid = int(uid)
kernel.unshare(kernel.NEWNS)
kernel.mount("none", "/", flags=kernel.MS_REC | kernel.MS_PRIVATE)
for name, line in (
    ("passwd", f"mesh-test:x:{{uid}}:{{uid}}::/nowhere:/bin/sh\\n"),
    ("subuid", f"mesh-test:{first}:65536\\n"),
    ("subgid", f"mesh-test:{first}:65536\\n")):
    known = Path("/etc", name)
    if ids == "ids" and known.exists():
        copy = Path(folder, name)
        copy.write_text(known.read_text() + line)
        copy.chmod(0o644)
        kernel.mount(str(copy), str(known), flags=kernel.MS_BIND)
launch.hide({barred!r}, {needed!r})
if limit:  # the limit of a user namespace of root's own, below which no more can be made
    reader, writer = os.pipe()
    ready, go = os.pipe()
    if not (child := os.fork()):
        os.read(reader, 1)
        for kind in ("uid_map", "gid_map"):
            Path(f"/proc/{{os.getppid()}}/{{kind}}").write_text("0 0 4294967295")
        os._exit(0)
    kernel.unshare(kernel.NEWUSER)
    os.write(writer, b"!")
    os.waitpid(child, 0)
    Path("/proc/sys/user/max_user_namespaces").write_text(limit)
os.setgroups([])
os.setresgid(uid, uid, uid)
os.setresuid(uid, uid, uid)
kernel.prctl(4, 1)  # dumpable again, as after a login
os.chdir({project!r})
os.execv(argv[0], argv)
"""


class OrdinaryUser:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state"
        for place in (folder, self.state, folder / "results"):
            place.mkdir(exist_ok=True)
            os.chown(place, UID, UID)

    def run(
        self, *argv: str, own_ids: bool = False, limit: str = "", timeout_s: float = 120
    ) -> subprocess.CompletedProcess[str]:
        """A program as this user; `own_ids` gives it a range in /etc/subuid, `limit` bounds its user namespaces."""
        needed = [str(path) for path in (Path(sys.prefix), Path(sys.base_prefix), PROJECT, self.folder)]
        barred = {str(bar) for path in needed if (bar := Ways().barrier(path, UID)) is not None}
        code = BECOME.format(project=str(PROJECT), barred=sorted(barred), needed=needed, first=FIRST_SUBORDINATE_ID)
        given = [str(self.folder), str(UID), "ids" if own_ids else "one", limit, *argv]
        kept = {key: os.environ[key] for key in ("LANG", "LC_ALL") if key in os.environ}
        return subprocess.run(
            [sys.executable, "-c", code, *given],
            env={
                **kept, "PATH": "/usr/local/bin:/usr/bin:/bin", "PYTHONPATH": str(PROJECT), "HOME": str(self.folder),
                "MESHBED_STATE": str(self.state), "MESHBED_RESULTS": str(self.folder / "results"),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip

    def inv(self, *words: str, own_ids: bool = False, limit: str = "") -> subprocess.CompletedProcess[str]:
        return self.run(sys.executable, "-m", "testbed", *words, own_ids=own_ids, limit=limit)

    def may_have_a_lab(self, *, own_ids: bool) -> None:
        """Skips aloud where this machine does not allow what the test needs."""
        code = "from testbed.runtime import enter; enter.become_root(); print(enter.single_uid())"
        done = self.run(sys.executable, "-c", code, own_ids=own_ids)
        if done.returncode != 0:
            pytest.skip(f"user namespaces are not for ordinary users here: {done.stderr.strip().splitlines()[-1]}")
        if own_ids and done.stdout.strip() != "False":
            pytest.skip("no newuidmap and newgidmap here (Debian: apt-get install uidmap)")
