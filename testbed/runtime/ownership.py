"""Whose labs are these: the state folder of each, its mark, who lives, and the removal of what dead ones left behind.

A lab's folder appears with its `lab.json` inside or not at all, and everything else of a lab is made after it and
removed before
it. So what has no folder has nothing, and a folder whose keeper (or owner, unless detached) is dead is a leftover.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import secrets
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from testbed.errors import MachineError, UsageError
from testbed.runtime import cgroups, dockerhost, dockerplan, dockersocket, enter
from testbed.runtime.keeper import MARK, remove

VERSION = 1
STATE = "lab.json"
KEY = ".key"
NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,40}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Being:
    """A process that cannot be mistaken for a later one with the same number: pid and start time in clock ticks."""

    pid: int
    started: int

    @property
    def alive(self) -> bool:
        return being(self.pid) == self


def being(pid: int) -> Being | None:
    """None when no such process runs; a zombie does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else Being(pid=pid, started=int(fields[19]))


@dataclass(frozen=True, slots=True, kw_only=True)
class LabState:
    """`lab.json`: enough to find a lab again, and to know that it is ours."""

    mark: str = MARK
    version: int = VERSION
    name: str
    owner: Being
    detached: bool
    keeper: Being | None = None
    """None until the keeper has said hello."""
    cgroup: str = ""
    """Its folder under `cgroups.TOP`; empty where cgroups are not ours to make."""
    sandboxes: tuple[dict, ...] = ()
    """name, kind, index, address of each."""
    logs: str = ""
    topology: str = ""
    engine: dict = field(default_factory=dict)
    """Of a lab on Docker: the engine's `socket`, the labels of its containers, what they stand on."""

    @property
    def alive(self) -> bool:
        if self.keeper is None:
            return self.owner.alive
        return self.keeper.alive and (self.detached or self.owner.alive)


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """Something that gc removed, or would remove."""

    kind: str
    """`lab`, `cgroup`, `containers` or `folder`."""
    name: str
    why: str = field(default="")


def default_root() -> Path:
    """The same for every process of a user, in a user namespace or not."""
    if os.geteuid() == 0 and os.access("/run", os.W_OK):
        return Path("/run/meshbed")
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime and os.access(runtime, os.W_OK):  # after `su` it may be the caller's
        return Path(runtime, "meshbed")
    return Path(f"/tmp/meshbed-{enter.user_id()}")


def state_root() -> Path:
    """Where labs keep their state: $MESHBED_STATE, else /run/meshbed, else the user's runtime folder.

    Made on first use. Raises MachineError where that is not possible or nothing can be written there.
    """
    root = Path(os.environ.get("MESHBED_STATE") or default_root()).absolute()
    mend = "set MESHBED_STATE to a folder of yours that can be written to, or to a new one in such a folder"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{root}: labs cannot keep their state there ({error.strerror}); {mend}") from error
    if root.stat().st_uid not in (os.geteuid(), 0):
        raise UsageError(f"{root} belongs to user {root.stat().st_uid}; set MESHBED_STATE to a folder of yours")
    if not os.access(root, os.W_OK | os.X_OK):
        raise MachineError(f"{root}: labs cannot keep their state there (it cannot be written to); {mend}")
    return root


def claim(state: LabState, root: Path) -> Path:
    """Makes the lab's folder with its state inside, whole or not at all. Raises UsageError when the name is taken."""
    if not NAME.fullmatch(state.name):
        raise UsageError(f"lab name {state.name!r}: use up to 41 of a-z 0-9 _ . -, starting with a letter or digit")
    made = root / f".{state.name}.{state.owner.pid}.{state.owner.started}"
    made.mkdir(mode=0o700)
    write(state, made)
    try:
        with turn(root):
            made.rename(root / state.name)
    except OSError as error:
        remove(str(made))
        raise UsageError(
            f"a lab called {state.name!r} is up already; `lab.down {state.name}` first, or another --name"
        ) from error
    return root / state.name


def write(state: LabState, folder: Path) -> None:
    temporary = folder / f".{STATE}.new"
    shallow = {one.name: getattr(state, one.name) for one in fields(state)}  # asdict copies every sandbox: 5 ms of 100
    temporary.write_text(json.dumps(shallow, default=asdict))
    temporary.rename(folder / STATE)


def read(folder: Path) -> LabState | None:
    """None for a folder that does not carry our mark."""
    try:
        data = json.loads((folder / STATE).read_text())
        if data.pop("mark") != MARK or data.pop("version") != VERSION:
            return None
        people = {key: Being(**data[key]) if data[key] else None for key in ("owner", "keeper")}
        return LabState(**{**data, **people, "sandboxes": tuple(data["sandboxes"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def labs(root: Path | None = None) -> list[LabState]:
    """Every lab that has a state folder, dead or alive, by name."""
    root = root or state_root()
    found = [read(folder) for folder in sorted(root.iterdir()) if not folder.name.startswith(".")]
    return [state for state in found if state is not None]


def join(name: str, root: Path | None = None) -> None:
    """Enters the user namespace of an ordinary user's lab, or of the only one that is up; see `enter.join`.

    Nothing where there is no such lab: who asked for it says so.
    """
    found = [state for state in labs(root) if state.alive and state.keeper and name in ("", state.name)]
    if len(found) == 1 and found[0].keeper is not None:
        enter.join(found[0].keeper.pid)


def gc(*, dry_run: bool = False, everything: bool = False, root: Path | None = None) -> list[Left]:
    """Removes what dead labs left, and with `everything` living ones too; never what does not carry our mark."""
    root = root or state_root()
    # Before the labs are read: what belongs to a lab that begins meanwhile is not among them.
    removed, troubles = [], []
    candidates = _our_cgroups(root)
    socket, containers = "", []
    try:
        socket = dockerhost.socket_path(dockerhost.found())
        containers = _our_containers(socket, root)
    except (TimeoutError, ValueError) as error:  # one that hangs, or that cannot be found: it may hold some of ours
        troubles.append(f"containers of labs that are no more are not looked for: {error}")
    except OSError:
        pass  # there is none
    for state in labs(root):
        if everything or not state.alive:
            removed.append(
                Left(kind="lab", name=state.name, why="asked for" if state.alive else "its keeper or owner is dead")
            )
            if not dry_run:
                try:
                    bury(state, root)
                except MachineError as error:  # its engine does not answer; the others can go
                    troubles.append(str(error))
                    removed.pop()
    for folder in sorted(root.glob(".*.*.*")):
        *_, pid, started = folder.name.split(".")
        if pid.isdigit() and started.isdigit() and not Being(pid=int(pid), started=int(started)).alive:
            removed.append(Left(kind="folder", name=folder.name, why="its maker died while making it"))
            if not dry_run:
                remove(str(folder))
    kept = {state.cgroup for state in labs(root)} - {left.name for left in removed if dry_run}
    for cgroup in candidates:
        if cgroup.is_dir() and cgroup.name not in kept and not cgroups.processes(cgroup):
            removed.append(Left(kind="cgroup", name=str(cgroup), why="no lab of that name"))
            if not dry_run:
                cgroups.remove(cgroup)
    for name, ids in dockerplan.leftovers(containers, [state.name for state in labs(root)]).items():
        if name not in {left.name for left in removed}:
            removed.append(Left(kind="containers", name=f"{len(ids)} of {name}", why="no lab of that name"))
            if not dry_run and (failed := dockersocket.remove(socket, ids)):
                troubles.append(f"lab {name}: {len(failed)} containers could not be removed; ./inv lab.gc again")
                removed.pop()
    if troubles:
        raise MachineError("\n".join(troubles))
    return removed


def bury(state: LabState, root: Path) -> None:
    """Ends a lab for good: its keeper (with it all processes), its cgroups, its folder; in this order,
    and again if need be.
    """
    with turn(root):
        now = read(root / state.name)
        if now is not None and (now.owner != state.owner or state.keeper not in (None, now.keeper)):
            return  # that lab is gone, and its name has gone to another
        if not (root / state.name).exists():
            return  # the folder goes last
        if state.keeper is not None:
            end(state.keeper)
        else:
            for keeper in keepers(state.name, root):
                end(keeper)
        if (made := now or state).engine:
            sweep(made)
        if state.cgroup:
            for tree in cgroups.trees().all:
                if (folder := tree / cgroups.TOP / state.cgroup).exists():
                    cgroups.remove(folder)
        remove(str(root / state.name))


def sweep(state: LabState) -> None:
    """Removes the containers of a lab. Raises MachineError when its engine does not answer: they may be there yet."""
    try:
        dockersocket.sweep(state.engine["socket"], state.engine["labels"])
    except OSError as error:
        raise MachineError(
            f"lab {state.name}: its containers cannot be removed ({error}); start the engine at "
            f"{state.engine['socket']}, then ./inv lab.gc; if it is gone for good, remove the lab's state folder"
        ) from error


@contextlib.contextmanager
def turn(root: Path) -> Iterator[None]:
    """One process at a time takes a lab's name or buries a lab: else a name could be taken just before the removal."""
    fd = os.open(root, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def end(keeper: Being, *, timeout_s: float = 5.0) -> None:
    """SIGKILL, and wait until it is gone: the end of a PID 1 waits for the end of all in its namespace."""
    try:
        pidfd = os.pidfd_open(keeper.pid)
    except ProcessLookupError:
        return
    try:
        if keeper.alive:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        deadline = time.monotonic() + timeout_s
        while keeper.alive and time.monotonic() < deadline:
            time.sleep(0.002)
    except ProcessLookupError:
        pass
    finally:
        os.close(pidfd)


def keepers(lab: str, root: Path) -> list[Being]:
    """Processes that say on their command line that they keep this lab."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if MARK.encode() in words and str(root / lab).encode() in words and (one := being(int(entry.name))):
                found.append(one)
    return found


def _our_containers(socket: str, root: Path) -> list[dict]:
    """Containers of labs with this state root, in the engine behind that socket; and of those with one at the same
    path, on whatever machine, the labs of which nothing runs: such as ours of before the state root was wiped.

    Raises OSError where no engine answers.
    """
    uid = enter.user_id()
    ours = dockerplan.owner(root, uid, key(root)) if (root / KEY).exists() else ""  # who only cleans up draws none
    like_ours = dockerplan.old_owner(root, uid)
    return dockerplan.removable(dockersocket.find(socket, {dockerplan.OWNER: None}), ours=ours, like_ours=like_ours)


def key(root: Path) -> str:
    """What tells this state root from one at the same path on another machine; drawn when it is first asked for."""
    file = root / KEY
    with contextlib.suppress(FileNotFoundError):
        return file.read_text()
    temporary = root / f"{KEY}.{os.getpid()}"
    temporary.write_text(secrets.token_hex(4))
    try:
        os.link(temporary, file)  # whole, and only if nobody was quicker
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
    return file.read_text()


def _our_cgroups(root: Path) -> list[Path]:
    """Cgroups of labs with this state root: a lab of another root carries that root's tag in its name."""
    tag = cgroups.lab_folder("", root, default_root())
    found = []
    for tree in cgroups.trees().all:
        if (top := tree / cgroups.TOP).is_dir():
            found += [c for c in sorted(top.iterdir()) if c.is_dir() and "@".join(["", *c.name.split("@")[1:]]) == tag]
    return found
