"""The embedded runtime: nodes and workloads as network namespaces, held by one keeper process a lab.

`up` encodes all messages while the keeper is still starting, hands them over in one frame, and has a lab when the
answer comes. What the keeper is and when it ends: `keeper`. What a program of the lab can see: `launch`.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from testbed import netlink
from testbed.errors import MachineError, PeerError, UsageError
from testbed.model.topology import Topology
from testbed.runtime import cgroups, enter, ownership, wiring
from testbed.runtime.keeper import BASE, MARK
from testbed.runtime.launch import TMP, prepare
from testbed.runtime.ownership import LabState, being
from testbed.runtime.process import Connection, LabProcess
from testbed.runtime.routing import routes
from testbed.runtime.ways import Ways
from testbed.runtime.wiring import Batch, Planned
from testbed.seams import Process, Sandbox, Spawn

T = TypeVar("T")
PROJECT = Path(__file__).resolve().parents[2]
START = f"import sys; sys.path.insert(0, {str(PROJECT)!r}); from testbed.runtime.keeper import main; main()"
PASSED_ON = ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "LANG", "LC_ALL", "TZ", "PYTHONHASHSEED")
"""All that a program of a lab inherits of our environment; the rest may hold secrets."""


class NetnsLab:
    """A lab that is up (`seams.RunningLab`)."""

    runtime = "netns"

    def __init__(
        self, *, state: LabState, root: Path, connection: Connection, starter: subprocess.Popen[bytes] | None
    ) -> None:
        self.name = state.name
        self.folder = root / state.name
        self.state = state
        self.planned = tuple(Planned(**row) for row in state.sandboxes)
        self.sandboxes: Mapping[str, Sandbox] = self._sandboxes()
        self.processes: dict[str, LabProcess] = {}
        self._index = {p.name: p.index for p in self.planned}
        self._root = root
        self._connection = connection
        self._starter = starter
        self._trees = cgroups.trees()
        self._single_uid = enter.single_uid()
        self._in_user_namespace = enter.in_user_namespace()
        for name, (pid, _) in connection.processes.items():
            self.processes[name] = self._process(name, int(pid or 0))

    def __enter__(self) -> NetnsLab:
        return self

    def __exit__(self, *_: object) -> None:
        self.down()

    @property
    def pids(self) -> Mapping[str, int]:
        """Host pid of each program started so far, by name."""
        return {name: process.pid for name, process in self.processes.items()}

    def spawn(self, spawns: Sequence[Spawn]) -> list[LabProcess]:
        """Starts all, side by side; returns when each has become its program.

        Raises PeerError naming those that did not.
        """
        for spawn in spawns:
            if spawn.sandbox not in self._index:
                known = ", ".join(sorted(self._index))
                raise UsageError(
                    f"lab {self.name}: {spawn.name!r} is for sandbox {spawn.sandbox!r}, known are: {known}"
                )
        ways = Ways()
        asked, failed = 0, []
        with self._connection.held():
            for spawn in spawns:  # the keeper starts one while this process prepares the next
                self._connection.codes.pop(spawn.name, None)
                try:
                    job = self._job(spawn, ways)
                    prepare(job["folder"], job["uid"], job["single_uid"])
                except OSError as error:
                    failed.append(f"{spawn.name}: {error}")
                    continue
                self._connection.send(job, spawn.fds)
                asked += 1
            for _ in range(asked):
                answer = self._connection.answer()
                if answer["op"] == "started":
                    self.processes[answer["name"]] = self._process(answer["name"], answer["pid"])
                else:
                    failed.append(f"{answer['name']}: {answer['why']}")
        if failed:
            raise PeerError(f"lab {self.name}: could not start {len(failed)} of {len(spawns)}: {'; '.join(failed[:3])}")
        return [self.processes[spawn.name] for spawn in spawns]

    def open_netns(self, sandbox: str) -> int:
        return os.open(self.sandboxes[sandbox].netns, os.O_RDONLY | os.O_CLOEXEC)

    def in_netns(self, sandbox: str, function: Callable[[], T]) -> T:
        """What `function` returns when called inside the sandbox's network namespace (see `enter.in_netns`)."""
        return enter.in_netns(self.sandboxes[sandbox].netns, function)

    def route(self, topology: Topology) -> None:
        """Routes between nodes over the links, whose devices must be there by now and up."""
        ways = routes(topology)
        indexes = {
            node.name: self.in_netns(node.name, lambda: {name: index for index, name in socket.if_nameindex()})
            for node in topology.nodes
        }
        for node, rows in ways.items():
            for _, _, device in rows:
                if device not in indexes[node]:
                    raise UsageError(
                        f"lab {self.name}: node {node} has no device {device}; join the links before routing"
                    )
        self._wire("wire", wiring.route_batches(ways, self.planned, indexes))

    def programs(self) -> Mapping[str, Process]:
        return dict(self.processes)

    def refit(self, *, ended: Sequence[str], extra: Sequence[tuple[str, str, str]]) -> None:
        """Ends these programs, and makes the sandboxes of proxies those of `extra`; all else stays (`seams.Refitted`).

        What stood half done by somebody who was killed at it is no hindrance.
        """
        try:
            stay, gone, came = wiring.rearranged(self.planned, extra)
        except ValueError as error:
            raise UsageError(f"lab {self.name}: {error}") from error
        self._end(ended)
        self._written(stay)  # first: what is not written down is not there, and is made anew
        nodes = {s.name: s.index for s in stay if s.kind == wiring.NODE}
        for guest in (*gone, *came):
            self._unwire(guest, nodes[guest.node])
        if gone:
            self._connection.ask({"op": "let_go", "namespaces": [guest.index for guest in gone]})
            self._remove(gone)
        if came:
            self._admit(came, wiring.late_batches(came, stay, BASE))
            self._written([*stay, *came])

    def _sandboxes(self) -> Mapping[str, Sandbox]:
        assert self.state.keeper is not None
        held = f"/proc/{self.state.keeper.pid}/fd"
        return {
            p.name: Sandbox(name=p.name, kind=p.kind, netns=f"{held}/{BASE + p.index}", address=p.address)
            for p in self.planned
        }

    def _written(self, sandboxes: Sequence[Planned]) -> None:
        self.planned = tuple(sandboxes)
        self.state = dataclasses.replace(self.state, sandboxes=tuple(dataclasses.asdict(s) for s in sandboxes))
        self._index = {s.name: s.index for s in sandboxes}
        self.sandboxes = self._sandboxes()
        ownership.write(self.state, self.folder)

    def _unwire(self, guest: Planned, node: int) -> None:
        """The veth of a guest that goes, or that one of the same name left."""
        device = wiring.port_name(guest.name)
        index = self.in_netns(guest.node, lambda: {name: number for number, name in socket.if_nameindex()}.get(device))
        if index is not None:
            self._wire("wire", [Batch(namespace=node, messages=(netlink.link_delete(index),))])

    def _end(self, names: Sequence[str]) -> None:
        running = [self.processes[name] for name in names if name in self.processes]
        for process in running:
            process.signal(signal.SIGKILL)
        for process in running:
            if process.wait(10.0) is None:
                raise PeerError(f"lab {self.name}: {process.name} (pid {process.pid}) does not end, even by SIGKILL")
            del self.processes[process.name]
            if process.cgroup is not None:
                for tree in self._trees.all:
                    cgroups.remove(tree / process.cgroup)

    def _admit(self, came: Sequence[Planned], batches: Sequence[Batch]) -> None:
        self._wire("build", batches, namespaces=wiring.sysctls(came), first=came[0].index)

    def _remove(self, gone: Sequence[Planned]) -> None:
        """Sandboxes of which nothing is held any more."""

    def dead(self) -> list[str]:
        """Namespaces live as long as their keeper, and that ends all of the lab."""
        return []

    def detach(self) -> None:
        """From now on the lab outlives this process. Until then it ends with it, so nobody meets a half-made one."""
        answer = self._connection.ask({"op": "detach"})
        if answer["op"] != "detached":
            raise PeerError(f"lab {self.name}: its keeper would not detach: {answer.get('why', answer)}")
        self.state = dataclasses.replace(self.state, detached=True)
        ownership.write(self.state, self.folder)

    def down(self) -> None:
        """Idempotent. Ends every process and removes every namespace, cgroup and file of this lab and of no other."""
        if not self._connection.closed:
            try:
                self._connection.send({"op": "down"})
                self._connection.wait_closed(10.0)
            except PeerError:
                pass
            self._connection.close()
        if self._starter is not None:
            try:
                self._starter.wait(5.0)
            except subprocess.TimeoutExpired:
                pass
        ownership.bury(self.state, self._root)  # what the keeper could not, or all, when it was killed
        if self._starter is not None:
            self._starter.wait()

    def _wire(self, op: str, batches: Sequence[Batch], **more: object) -> None:
        parts = [(batch.namespace, netlink.chunks(batch.messages)) for batch in batches]
        answer = self._connection.ask({"op": op, "batches": parts, **more}, timeout_s=120)
        if answer["op"] == "failed":
            raise MachineError(f"lab {self.name}: {answer['why']}; run `doctor` to see what this machine lacks")
        if answer["refused"]:
            number, position, errno = answer["refused"][0]
            index = batches[number].namespace
            where = next((p.name for p in self.planned if p.index == index), "a sandbox to be")
            refused = [(position, errno)] * len(answer["refused"])
            raise netlink.explain(f"lab {self.name}, {where}", batches[number].messages, refused)

    def _process(self, name: str, pid: int) -> LabProcess:
        cgroup = f"{cgroups.TOP}/{self.state.cgroup}/{name}" if self.state.cgroup else None
        return LabProcess(self._connection, name=name, pid=pid, cgroup=cgroup, log=self._log(name))

    def _log(self, name: str) -> Path:
        return Path(self.state.logs or self.folder / "logs", f"{name}.log")

    def _job(self, spawn: Spawn, ways: Ways) -> dict:
        folder = _absolute(spawn.folder)
        shown = [folder, *map(_absolute, spawn.shared_folders)]
        code = ways.code_folders(spawn.argv[0])
        needed = [] if self._single_uid else [*shown, *code]
        barred = {path: bar for path in needed if (bar := ways.barrier(path, spawn.uid)) is not None}
        in_tmp = [path for path in code if path.startswith(f"{TMP}/")]
        kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
        env = {"HOME": folder, "TMPDIR": folder, **kept, **spawn.env}
        return {
            "op": "spawn",
            "name": spawn.name,
            "namespace": self._index[spawn.sandbox],
            "programs": ways.programs(spawn.argv[0], env.get("PATH", "/usr/bin:/bin")),
            "argv": [str(word) for word in spawn.argv],
            "env": env,
            "uid": spawn.uid,
            "single_uid": self._single_uid,
            "own_proc": not self._in_user_namespace,
            "folder": folder,
            "capabilities": list(spawn.capabilities),
            "fds": [int(fd) for fd in spawn.fds],
            "pid_namespace": spawn.new_pid_namespace,
            "cgroup": cgroups.make(self._trees, f"{self.state.cgroup}/{spawn.name}") if self.state.cgroup else "",
            "log": str(self._log(spawn.name)),
            "hide": list(dict.fromkeys([TMP, str(self._root), *barred.values()])),
            "show": list(dict.fromkeys([*shown, *barred, *in_tmp])),
        }


def _absolute(path: str | Path) -> str:
    """As text: a hundred programs have some thousands of paths compared, for which `Path` takes as long as a start."""
    return os.path.join(os.getcwd(), path)


class NetnsRuntime:
    name = "netns"
    lab: type[NetnsLab] = NetnsLab
    runs_images: bool = False
    """Whether a workload can be an image of the user's own."""

    def check(self) -> list[str]:
        """What this machine lacks for any lab at all, each with its mend."""
        lacks = []
        if sys.platform != "linux":
            return [f"network namespaces need Linux, this is {sys.platform}: use a Linux machine or a virtual one"]
        if not os.path.exists("/proc/self/ns/net"):
            lacks.append("the kernel has no network namespaces: use one with CONFIG_NET_NS")
        if os.geteuid() != 0:
            limit = Path("/proc/sys/user/max_user_namespaces")
            if not limit.exists() or int(limit.read_text()) == 0:
                lacks.append(
                    "neither root nor user namespaces: run as root, or `sysctl user.max_user_namespaces=10000`"
                )
        return lacks

    def weaker(self) -> list[str]:
        """What works here, but not as well as it could, each with its mend."""
        found = []
        if os.geteuid() != 0 or enter.in_user_namespace():
            found.append(
                "not root: wires have no real-time priority and small buffers (less exact, slower); run as root"
            )
            if enter.single_uid():
                found.append(
                    "one user id for all programs of a lab: only mount and PID namespaces keep keys apart, and "
                    "sidecars are told from applications by a mark; run as root, or install uidmap (newuidmap) and "
                    "have a range in /etc/subuid and /etc/subgid"
                )
        if not any(os.access(tree, os.W_OK) for tree in cgroups.trees().all):
            found.append(
                "no cgroup tree to write to: CPU is read from process clocks, which forget ended children; run as root"
            )
        return found

    def about(self) -> dict[str, str]:
        """Nothing beyond what `machine.describe` says of any run."""
        return {}

    def up(
        self,
        topology: Topology,
        *,
        name: str,
        extra: Sequence[tuple[str, str, str]] = (),
        detached: bool = False,
        logs: Path | None = None,
    ) -> NetnsLab:
        """As `seams.Runtime.up`; programs' output goes to `logs`, or to the lab's own folder, which ends with the lab.

        An ordinary user's process becomes root of a user namespace by this, for good (`enter.become_root`).
        """
        if not self.runs_images:
            _refuse_images(topology, self.name)
        enter.become_root()
        try:
            sandboxes = wiring.plan(topology, extra)
        except ValueError as error:
            raise UsageError(f"topology {topology.name}: {error}") from error
        root = ownership.state_root()
        old = ownership.read(root / name) if ownership.NAME.fullmatch(name) else None
        if old is not None and not old.alive:
            ownership.bury(old, root)
        owner = being(os.getpid())
        assert owner is not None
        trees = cgroups.trees()
        folder = cgroups.lab_folder(name, root, ownership.default_root())
        state = LabState(
            name=name,
            owner=owner,
            detached=detached,
            cgroup=folder if not enter.single_uid() and any(os.access(tree, os.W_OK) for tree in trees.all) else "",
            sandboxes=tuple(dataclasses.asdict(sandbox) for sandbox in sandboxes),
            logs=str(Path(logs).absolute()) if logs else "",
            topology=topology.name,
        )
        ownership.claim(state, root)
        try:
            return self._begin(state, root, sandboxes, [str(tree / cgroups.TOP / folder) for tree in trees.all])
        except BaseException:
            ownership.bury(state, root)
            raise

    def _begin(self, state: LabState, root: Path, sandboxes: Sequence[Planned], groups: Sequence[str]) -> NetnsLab:
        folder = root / state.name
        (Path(state.logs) if state.logs else folder / "logs").mkdir(parents=True, exist_ok=True)
        connection, starter = start_keeper(state.name, folder)
        settings = {"folder": str(folder), "detached": state.detached, "cgroups": list(groups) if state.cgroup else []}
        connection.send(settings)
        batches = wiring.batches(sandboxes, BASE)  # while the keeper starts, on the other core
        sysctls = wiring.sysctls(sandboxes)
        state = greeted(connection, state, folder)
        lab = NetnsLab(state=state, root=root, connection=connection, starter=starter)
        try:
            lab._wire("build", batches, namespaces=sysctls)
        except BaseException:
            lab.down()
            raise
        return lab

    def attach(self, name: str) -> NetnsLab:
        """A lab that is up already, of this or another process. Raises UsageError naming those there are."""
        root = ownership.state_root()
        state = ownership.read(root / name) if ownership.NAME.fullmatch(name) else None
        if state is None or not state.alive or state.keeper is None:
            known = ", ".join(lab.name for lab in ownership.labs(root) if lab.alive) or "none"
            raise UsageError(f"no lab called {name!r} is up; up are: {known}")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        folder = os.open(root / name, os.O_PATH | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{folder}/control")  # the full path may be longer than a socket address holds
        except OSError as error:
            raise PeerError(f"lab {name}: its keeper does not listen ({error}); `lab.gc` removes it") from error
        finally:
            os.close(folder)
        connection = Connection(sock, name)
        while not connection.keeper_pid and not connection.closed:
            connection.news(5.0)
        return self.lab(state=state, root=root, connection=connection, starter=None)


def greeted(connection: Connection, state: LabState, folder: Path) -> LabState:
    """The lab's state once its keeper has said who it is, written down. Raises MachineError when it never does."""
    while not connection.keeper_pid:
        connection.news(10.0)
        if connection.closed:
            said = (folder / "keeper.log").read_text().strip().splitlines()
            raise MachineError(
                f"lab {state.name}: its keeper ended at once ({said[-1] if said else 'no word'}); "
                "`doctor` says what is missing"
            )
    state = dataclasses.replace(state, keeper=being(connection.keeper_pid))
    if state.keeper is None:
        raise PeerError(f"lab {state.name}: its keeper ended at once")
    ownership.write(state, folder)
    return state


def _refuse_images(topology: Topology, runtime: str) -> None:
    found = next((w for w in topology.workloads if w.app.image), None)
    if found is not None:
        raise UsageError(
            f"topology {topology.name}: workload {found.name} is the image {found.app.image}, which runtime {runtime} "
            f"cannot run; use --runtime docker"
        )


def start_keeper(name: str, folder: Path, program: str = START) -> tuple[Connection, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    pidfd = os.pidfd_open(os.getpid())
    try:
        with open(folder / "keeper.log", "ab") as log:
            starter = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", program, str(theirs.fileno()), str(pidfd), MARK, str(folder)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(theirs.fileno(), pidfd), cwd="/",
            )  # fmt: skip
    finally:
        theirs.close()
        os.close(pidfd)
    return Connection(ours, name), starter
