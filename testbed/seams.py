"""The protocols that everything plugs into; the only place they are defined. Implementations are named in `registry`.

Each stays small: five verbs or so. A seam that wants an eighth is two seams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from testbed.model.experiment import Load as LoadPlan
from testbed.model.experiment import LoadRecord
from testbed.model.placement import Placement
from testbed.model.topology import Impairment, Link, Topology


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox:
    """A live namespace (or container) of a node, workload or waypoint.

    `netns` is a path that setns(2) and nsenter take.
    """

    name: str
    kind: str
    """`node`, `workload` or `proxy` (a waypoint's own)."""
    netns: str
    address: str
    container: str | None = None
    """Name of the container that it is, in the engine; None where it is a namespace only."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spawn:
    """A program to run inside a sandbox. It gets a PID namespace, a mount namespace and a user id of its own."""

    name: str
    """Unique in the lab: `app.client`, `ztunnel.node-a`."""
    sandbox: str
    argv: Sequence[str]
    uid: int
    folder: Path
    """Its private folder (0700, owned by uid): config, keys, sockets. Other processes of the lab do not see it."""
    env: Mapping[str, str] = field(default_factory=dict)
    capabilities: Sequence[str] = ()
    """Ambient capabilities it keeps: ztunnel needs `sys_admin`, `net_admin`, `net_raw`; apps none."""
    fds: Sequence[int] = ()
    """Descriptors it inherits, at the same numbers."""
    new_pid_namespace: bool = True
    shared_folders: Sequence[Path] = ()
    """Folders of the lab it may also see (read-write), such as the run's log folder."""
    image: str = ""
    """An image of the user's own that it runs from, with the image's own command where `argv` is empty; only runtimes
    of containers can. It sees neither our code nor `folder`.
    """
    writable: Sequence[str] = ()
    """With `image`: paths in it that become empty folders in memory; the rest of it is read-only."""


class Process(Protocol):
    """A started program of the lab."""

    name: str
    pid: int
    """As the host sees it."""
    cgroup: str | None
    """Name under which `observe.procstat` reads its CPU and memory; None where cgroups are not ours to make."""
    log: Path | None
    """What it prints, both streams."""

    def poll(self) -> int | None: ...
    def signal(self, number: int) -> None: ...
    def wait(self, timeout_s: float) -> int | None:
        """Exit code, or None when `timeout_s` ran out."""
        ...


class RunningLab(Protocol):
    """What a runtime hands back: sandboxes by name, the power to start programs, and its own end."""

    name: str
    runtime: str
    """Name of the runtime that made it."""
    folder: Path
    """State folder of the lab under the runtime directory."""
    sandboxes: Mapping[str, Sandbox]

    def spawn(self, spawns: Sequence[Spawn]) -> list[Process]: ...
    def open_netns(self, sandbox: str) -> int:
        """A descriptor of the sandbox's network namespace; the caller closes it."""
        ...
    def route(self, topology: Topology) -> None:
        """Routes between nodes over the links, whose devices must be there by now and up."""
        ...
    def dead(self) -> list[str]:
        """Sandboxes that ended, or were begun again, since this process knows them; each with what happened."""
        ...
    def detach(self) -> None:
        """From now on the lab outlives this process. Until then it ends with it, so nobody meets a half-made one."""
        ...
    def down(self) -> None:
        """Idempotent. Ends every process and removes every namespace, cgroup and file of this lab and of no other."""
        ...


class Refitted(Protocol):
    """What a running lab also has where its plane can be changed while it is up."""

    def programs(self) -> Mapping[str, Process]:
        """All that was started in it, by name, whoever started it; one that has ended may be among them."""
        ...

    def refit(self, *, ended: Sequence[str], extra: Sequence[tuple[str, str, str]]) -> None:
        """Ends these programs, and makes the sandboxes of proxies those of `extra` (as `Runtime.up` has it): one that
        is the same stays, others go and come. Nodes, workloads, links and all other programs are not touched.
        """
        ...


class Runtime(Protocol):
    name: str

    def check(self) -> list[str]:
        """What this machine lacks for it, each with its mend; empty when it can run."""
        ...

    def weaker(self) -> list[str]:
        """What works here, but not as well as it could, each with its mend."""
        ...

    def about(self) -> dict[str, str]:
        """What a result must say of it beside the machine, such as its engine; words, by name."""
        ...

    def up(
        self,
        topology: Topology,
        *,
        name: str,
        extra: Sequence[tuple[str, str, str]] = (),
        detached: bool = False,
        logs: Path | None = None,
    ) -> RunningLab:
        """Sandboxes for every node, workload and `extra` (name, node, address: waypoints), wired and routed, links
        plain. What programs print goes to `logs`, or to the lab's own folder, which ends with the lab.

        A link's two ends are devices named `eth-<peer index>`-like in the nodes; the link maker gets them. Unless
        `detached`, the lab dies with this process, even by SIGKILL.
        """
        ...

    def attach(self, name: str) -> RunningLab:
        """A lab that is up already, of this or another process. Raises UsageError naming those there are."""
        ...


class LiveLink(Protocol):
    link: Link
    """With the impairments as they are now."""
    backend: str
    """Name of its maker."""

    def set(self, *, a_to_b: Impairment | None = None, b_to_a: Impairment | None = None) -> None: ...
    def alive(self) -> bool: ...


class LinkMaker(Protocol):
    """Makes the links of a lab between sandboxes. `netem` shapes a veth pair; `wire` stands in the middle of two."""

    name: str

    def check(self) -> list[str]: ...
    def join(self, lab: RunningLab, links: Sequence[Link]) -> list[LiveLink]:
        """Creates devices, addresses and impairment of all links in one batch; ends are named by `end_name(link,
        node)`.
        """
        ...

    def attach(self, lab: RunningLab, links: Sequence[Link]) -> list[LiveLink]:
        """The live links of a lab that another process joined; `links` as they were declared or last set."""
        ...


class Plane(Protocol):
    """Pure: text and topology in, data out. `options` are a plane's own (e.g. waypoint node)."""

    def place(self, topology: Topology, options: Mapping[str, object]) -> Placement: ...


class Observer(Protocol):
    """One concern watched over a window; `stop` returns its evidence."""

    def start(self) -> None: ...
    def stop(self) -> object: ...


class LoadDriver(Protocol):
    """Drives load from inside a client workload's sandbox and returns raw rows."""

    def run(
        self, lab: RunningLab, *, client: str, target: tuple[str, int], plan: LoadPlan, seed: int, folder: Path
    ) -> LoadRecord: ...


Progress = Callable[[str], None]
"""Called with one short line whenever something that may take over two seconds moves on."""


def end_name(link: Link, node: str) -> str:
    """Device name of a link's end inside `node`: at most 15 bytes, stable, readable: `to-<peer>`."""
    peer = link.b if node == link.a else link.a
    return f"to-{peer}"[:15]
