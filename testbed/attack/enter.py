"""Into a component of the lab: its namespaces, its user id, its capabilities, its folder; then `insider` begins there.

    python -m testbed.attack.enter PID < job > rows

What is started there stands in for code that a bug let into the component's process, so it gets what that process has:
its memory, too, as a descriptor, for the kernel asks who opens and not who reads. User id and capabilities are read
from the process itself and not from what it was meant to have.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from testbed.program import CHECKOUT
from testbed.runtime import kernel
from testbed.runtime.child import Launcher
from testbed.runtime.launch import drop

NAMESPACES = (("net", kernel.NEWNET), ("pid", kernel.NEWPID), ("mnt", kernel.NEWNS))
"""The last one hides the files that the others are opened by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A process as /proc/<pid>/status tells it."""

    uid: int
    capabilities: tuple[str, ...]
    pid_inside: int
    """Its number in its own PID namespace."""


def standing(status: str) -> Standing:
    fields = {name: value.split() for name, _, value in (line.partition(":") for line in status.splitlines())}
    held = int(fields["CapEff"][0], 16)
    return Standing(
        uid=int(fields["Uid"][1]),
        capabilities=tuple(name for bit, name in enumerate(kernel.CAPABILITIES) if held >> bit & 1),
        pid_inside=int(fields.get("NSpid", fields["Pid"])[-1]),
    )


def main(argv: list[str] | None = None) -> int:
    (pid,) = sys.argv[1:] if argv is None else argv
    with open(f"/proc/{pid}/status") as file:
        who = standing(file.read())
    cwd, interpreter = os.readlink(f"/proc/{pid}/cwd"), sys.executable
    with open(f"/proc/{pid}/environ", "rb") as file:
        env = dict(pair.split(b"=", 1) for pair in file.read().split(b"\0") if b"=" in pair)
    own = os.stat("/proc/self/ns/pid").st_ino != os.stat(f"/proc/{pid}/ns/pid").st_ino
    fds = {name: os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY) for name, _ in NAMESPACES}
    memory, maps = (os.open(f"/proc/{pid}/{name}", os.O_RDONLY) for name in ("mem", "maps"))
    launcher = Launcher(sharing=False)
    for name, kind in NAMESPACES:
        kernel.setns(fds[name], kind)
        os.close(fds[name])
    child = os.fork()  # only a child is in the PID namespace
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        os.chdir(cwd)
        os.set_inheritable(memory, True)
        os.set_inheritable(maps, True)
        launcher.make(list(drop(list(who.capabilities), who.uid, single_uid=os.geteuid() == who.uid)))
        words = [interpreter, "-m", "testbed.attack.insider", *map(str, (who.pid_inside, memory, maps, int(own)))]
        os.execve(interpreter, words, {**env, b"PYTHONPATH": os.fsencode(CHECKOUT), b"PYTHONDONTWRITEBYTECODE": b"1"})
    except BaseException as error:
        print(f"enter: {error!r}", file=sys.stderr)
    finally:
        os._exit(126)


if __name__ == "__main__":
    sys.exit(main())
