"""The link maker `wire`: delay, jitter, loss and rate in user space, for kernels without netem.

An impaired link is two veth pairs, from each node into the middle: a network namespace that only a wire process
holds, which forwards between them (`wireproc`). A plain link is a bare veth pair; the first impairment `set` on it
makes its ends again through the middle, with the same names, indexes, hardware addresses and routes (and back, once
plain again). So what was bound to a device, such as a capture, must be opened again after a link changed between
plain and impaired; connections go on.

A wire process that dies takes its links' devices with it: senders get "network unreachable" at once, `alive` says
False, `dead_links` names them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from testbed.errors import MachineError, PeerError
from testbed.links.delayline import Shape
from testbed.links.devices import (
    End,
    add_routes,
    in_netns,
    index_of,
    make_pairs,
    routes_via,
    set_offload,
    set_up,
    settle,
)
from testbed.links.ends import configure_ends, end, make_direct, may_offload, open_nodes, remove_ends
from testbed.links.scratch import open_new_netns
from testbed.model.topology import Impairment, Link
from testbed.seams import LiveLink, RunningLab, Spawn, end_name

LINKS_PER_PROCESS = 50
"""One process forwards 5,000 frames/s of 50 links with half a core; above, links are spread over several."""
ANSWER_TIMEOUT_S = 5.0
ROOT = Path(__file__).resolve().parents[2]
BOOT = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from testbed.links.wireproc import main; main()"
DEAD = "its links are dead, bring the lab up again"
MIDDLE_MAC = b"\x02\x6e\0\0\0"

Start = Callable[[RunningLab, Sequence[str], Sequence[int]], int]
"""Starts argv as root, for this lab, with these descriptors inherited at the same numbers; returns its pid."""


def start_owned(_lab: RunningLab, argv: Sequence[str], fds: Sequence[int]) -> int:
    """Starts the wire as a child that ends with this process, even by SIGKILL: it reads a pipe that only we hold."""
    owner_read, owner_write = os.pipe()
    try:
        argv = [*argv, f"--owner-fd={owner_read}"]
        child = subprocess.Popen(argv, pass_fds=[*fds, owner_read], stdin=subprocess.DEVNULL, start_new_session=True)
    finally:
        os.close(owner_read)
    threading.Thread(target=_reap, args=(child, owner_write), name=f"wire-{child.pid}", daemon=True).start()
    return child.pid


def start_in_lab(lab: RunningLab, argv: Sequence[str], fds: Sequence[int]) -> int:
    """The lab's keeper starts the wire, so that it lives and ends with a lab that outlives this process."""
    folder = lab.folder / "wire"
    folder.mkdir(mode=0o700, exist_ok=True)
    (process,) = lab.spawn(
        [
            Spawn(
                name=f"wire.{len(list(lab.folder.glob('wire-*.sock')))}",
                sandbox=next(name for name, sandbox in lab.sandboxes.items() if sandbox.kind == "node"),
                argv=argv,
                uid=0,
                folder=folder,
                capabilities=("sys_admin", "net_admin", "net_raw", "sys_nice", "ipc_lock"),
                fds=fds,
            )
        ]
    )
    return process.pid


def _reap(child: subprocess.Popen[bytes], owner_write: int) -> None:
    child.wait()
    os.close(owner_write)


class WireProcess:
    """A running wire process, spoken to over its control socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._sock.settimeout(ANSWER_TIMEOUT_S)
        with _short(path) as name:
            self._sock.connect(name)

    def __repr__(self) -> str:
        return f"<WireProcess {self.path.name}>"

    @classmethod
    def start(cls, lab: RunningLab, path: Path, start: Start, calibrated: bool) -> WireProcess:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with listener, _short(path) as name:
            listener.bind(name)
            os.chmod(path, 0o600)
            listener.listen(8)
            fd = listener.fileno()
            options = [] if calibrated else ["--uncalibrated"]
            start(lab, [sys.executable, "-I", "-c", BOOT, f"--listen-fd={fd}", *options], [fd])
        return cls(path)

    def ask(self, op: str, **arguments: object) -> dict:
        return self._ask(op, arguments)[0]

    def open_middle(self) -> int:
        """The middle namespace; close it at once after use, as it keeps a dead wire's devices."""
        return self._ask("middle", {})[1][0]

    def _ask(self, op: str, arguments: dict[str, object]) -> tuple[dict, list[int]]:
        with self._lock:
            try:
                self._sock.send(json.dumps({"op": op, **arguments}).encode() + b"\n")
                text, fds, _, _ = socket.recv_fds(self._sock, 1 << 20, 1)
            except OSError as error:
                raise PeerError(f"wire process {self.path}: {op}: {error}; {DEAD}") from error
        if not text:
            raise PeerError(f"wire process {self.path}: {op}: it has died; {DEAD}")
        answer = json.loads(text)
        if "error" in answer:
            raise PeerError(f"wire process {self.path}: {op}: {answer['error']}")
        return answer, fds

    def close(self) -> None:
        self._sock.close()


class WireLink:
    """A live link of a lab, wired or (while plain) direct. `link` holds the impairments as they are now."""

    backend = "wire"

    def __init__(self, wires: LabWires, link: Link, process: WireProcess | None) -> None:
        self._wires = wires
        self.link = link
        self._process = process

    def __repr__(self) -> str:
        return f"<WireLink {self.link.name} {self._process or 'direct'}>"

    def set(self, *, a_to_b: Impairment | None = None, b_to_a: Impairment | None = None) -> None:
        new = dataclasses.replace(self.link, a_to_b=a_to_b or self.link.a_to_b, b_to_a=b_to_a or self.link.b_to_a)
        plain = is_plain(new)
        if plain != (self._process is None):
            self._process = self._wires.remake(self.link, new, self._process)
        elif self._process is not None:
            self._wires.offload(self.link, new)
            self._process.ask("set", name=new.name, **shapes(new))
        self.link = new

    def alive(self) -> bool:
        if self._process is None:
            with open_nodes(self._wires.lab, [self.link]) as nodes:
                return all(index_of(nodes[node], end_name(self.link, node)) for node in (self.link.a, self.link.b))
        try:
            return self._process.ask("status")["links"].get(self.link.name, False)
        except PeerError:
            return False

    def counters(self) -> dict[str, dict[str, int]]:
        """What the wire did per direction: received, sent, lost, tail_dropped, …; empty while direct."""
        return self._process.ask("stats")["links"][self.link.name] if self._process else {}


class LabWires:
    """The wire processes of one lab and which link is where."""

    def __init__(self, lab: RunningLab, start: Start, links_per_process: int, calibrated: bool) -> None:
        self.lab = lab
        self.processes: list[WireProcess] = []
        self._start = start
        self._links_per_process = links_per_process
        self._calibrated = calibrated
        self._load: dict[WireProcess, int] = {}
        self._born = 0

    def reopen(self) -> dict[str, WireProcess]:
        """Connects to the wire processes that another process of ours started for this lab; link name → process."""
        held: dict[str, WireProcess] = {}
        for path in sorted(self.lab.folder.glob("wire-*.sock")):
            with contextlib.suppress(OSError):  # a dead one: its links count as direct, whose ends are gone: not alive
                process = WireProcess(path)
                names = process.ask("status")["links"]
                held |= dict.fromkeys(names, process)
                self.processes.append(process)
                self._load[process] = len(names)
        return held

    def wire(
        self, nodes: dict[str, int], links: Sequence[Link], indexes: dict[tuple[str, str], int]
    ) -> list[WireProcess]:
        """Makes these links through middles, unconfigured ends down; returns each link's process."""
        placed = [self._process_with_room() for _ in links]
        for process in dict.fromkeys(placed):
            mine = [link for link, its in zip(links, placed, strict=True) if its is process]
            first = self._born
            self._born += len(mine)
            tag = f"{os.getpid() % 100000}"  # a lab may be served by several orchestrators, one after another
            names = [(f"a{tag}.{first + n}", f"b{tag}.{first + n}") for n in range(len(mine))]
            middle = process.open_middle()
            try:
                pairs = []
                for link, (a, b) in zip(mine, names, strict=True):
                    for node, name, side in ((link.a, a, b"\1"), (link.b, b, b"\2")):
                        far = End(netns=middle, name=name, mac=MIDDLE_MAC + side)
                        pairs.append((end(nodes[node], link, node, indexes.get((link.name, node), 0)), far))
                make_pairs(pairs)
                set_up(middle, [name for pair in names for name in pair])
            finally:
                os.close(middle)
            for link, (a, b) in zip(mine, names, strict=True):
                process.ask("attach", name=link.name, a=a, b=b, **shapes(link))
        return placed

    def remake(self, old: Link, new: Link, process: WireProcess | None) -> WireProcess | None:
        """Moves a link between direct and wired; the nodes see the same devices with the same routes."""
        with open_nodes(self.lab, [old]) as nodes:
            indexes = {(old.name, node): index_of(nodes[node], end_name(old, node)) for node in (old.a, old.b)}
            routes = {node: routes_via(nodes[node], indexes[old.name, node]) for node in (old.a, old.b)}
            if process is not None:
                process.ask("detach", name=old.name)
                self._load[process] -= 1
            remove_ends(nodes, old)
            moved_to = None
            if process is None:
                moved_to = self.wire(nodes, [new], indexes)[0]
            else:
                a, b = (end(nodes[node], new, node, indexes[new.name, node]) for node in (new.a, new.b))
                make_pairs([(a, b)])
            configure_ends(nodes, [new])
            self.settle([moved_to])
            for node, its in routes.items():
                add_routes(nodes[node], its)
        return moved_to

    def settle(self, processes: Iterable[WireProcess | None]) -> None:
        """Waits until the middles of these pass frames, once the nodes' ends are up."""
        for process in dict.fromkeys(processes):
            if process is not None:
                middle = process.open_middle()
                try:
                    settle(middle)
                finally:
                    os.close(middle)

    def offload(self, old: Link, new: Link) -> None:
        for node, before, after in ((old.a, old.a_to_b, new.a_to_b), (old.b, old.b_to_a, new.b_to_a)):
            if may_offload(before) != may_offload(after):
                with open_nodes(self.lab, [old]) as nodes:
                    set_offload(nodes[node], end_name(old, node), may_offload(after))

    def _process_with_room(self) -> WireProcess:
        process = min(self.processes, key=lambda p: self._load[p], default=None)
        if process is None or self._load[process] >= self._links_per_process:
            taken = {path.name for path in self.lab.folder.glob("wire-*.sock")}
            number = next(n for n in range(len(taken) + 1) if f"wire-{n}.sock" not in taken)
            path = self.lab.folder / f"wire-{number}.sock"
            process = WireProcess.start(self.lab, path, self._start, self._calibrated)
            self.processes.append(process)
            self._load[process] = 0
        self._load[process] += 1
        return process


class WireLinks:
    """The `wire` link maker. With `start`, a lab's keeper can be the parent of the wires: they live with the lab."""

    name = "wire"

    def __init__(
        self, *, start: Start = start_owned, links_per_process: int = LINKS_PER_PROCESS, calibrated: bool = True
    ) -> None:
        self._start = start
        self._links_per_process = links_per_process
        self._calibrated = calibrated
        self._labs: list[LabWires] = []

    def check(self) -> list[str]:
        """What this machine lacks for it, each with its mend."""
        try:
            netns = open_new_netns()
        except MachineError as error:
            return [str(error)]
        try:
            in_netns(netns, lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0).close())
        except OSError as error:
            return [f"packet sockets: {error}; run as root (CAP_NET_RAW, CAP_NET_ADMIN and CAP_SYS_ADMIN)"]
        finally:
            os.close(netns)
        return []

    def join(self, lab: RunningLab, links: Sequence[Link]) -> list[LiveLink]:
        wires = LabWires(lab, self._start, self._links_per_process, self._calibrated)
        self._labs.append(wires)
        with open_nodes(lab, links) as nodes:
            wired = [link for link in links if not is_plain(link)]
            make_direct(nodes, [link for link in links if is_plain(link)])
            held = dict(zip((k.name for k in wired), wires.wire(nodes, wired, {}), strict=True))
            configure_ends(nodes, links)
            wires.settle(held.values())
        return [WireLink(wires, link, held.get(link.name)) for link in links]

    def attach(self, lab: RunningLab, links: Sequence[Link]) -> list[LiveLink]:
        """The live links of a lab that another process joined; `links` as they were declared or last set."""
        wires = LabWires(lab, self._start, self._links_per_process, self._calibrated)
        self._labs.append(wires)
        held = wires.reopen()
        return [WireLink(wires, link, held.get(link.name)) for link in links]

    def status(self) -> list[dict]:
        """What each wire process was promised and does: scheduling, calibrated, early_ns, lead_ns, idle_cores,
        cpu_s, links, and pid, which under a lab's keeper is one of its PID namespace: nothing to send signals to."""
        return [process.ask("status") for wires in self._labs for process in wires.processes]

    def close(self) -> None:
        """Ends the wire processes and so their links. For labs whose keeper does not end them."""
        for wires in self._labs:
            for process in wires.processes:
                with contextlib.suppress(PeerError):  # the answer is its end
                    process.ask("end")
                process.close()
                process.path.unlink(missing_ok=True)
        self._labs.clear()


def is_plain(link: Link) -> bool:
    return link.a_to_b.is_plain and link.b_to_a.is_plain


def shapes(link: Link) -> dict[str, dict]:
    return {"a_to_b": dataclasses.asdict(Shape.of(link.a_to_b)), "b_to_a": dataclasses.asdict(Shape.of(link.b_to_a))}


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of `path` that fits a Unix socket's 107 bytes, however deep the folder."""
    if not path.parent.is_dir():
        raise MachineError(f"wire socket {path}: no such folder")
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
