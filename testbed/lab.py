"""A topology brought up: runtime, then links, then routes, then services, then applications; and its end.

`up` is the order of bring-up; everything it starts belongs to the runtime's lab and ends with it. Nothing here names a
runtime, a link kind or a plane: they are handed in.
"""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from testbed import nftables, program
from testbed.errors import MachineError, PeerError
from testbed.model.experiment import LinkReading
from testbed.model.topology import Topology, Workload
from testbed.registry import load
from testbed.runtime.enter import in_netns
from testbed.seams import LinkMaker, LiveLink, Process, Progress, RunningLab, Runtime, Spawn

APP_UID = 2000
"""User id of every application; proxies have others, so that no application can read a proxy's key or memory."""


@dataclass(slots=True)
class Lab:
    """The mutable shell around one running lab."""

    topology: Topology
    running: RunningLab
    links: list[LiveLink]
    link_kind: str
    apps: dict[str, Process] = field(default_factory=dict)
    app_spawns: dict[str, Spawn] = field(default_factory=dict)
    """As which each application was started, to be started again."""
    readings: list[LinkReading] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.running.name

    @property
    def folder(self) -> Path:
        return self.running.folder

    def netns(self, sandbox: str) -> str:
        return self.running.sandboxes[sandbox].netns

    def dead(self) -> list[str]:
        """Links, sandboxes and applications that should be alive and are not, by name."""
        gone = self.running.dead()
        gone += [f"link {live.link.name}" for live in self.links if not live.alive()]
        return gone + [
            f"app {name} (exit {code})" for name, process in self.apps.items() if (code := process.poll()) is not None
        ]


@contextmanager
def up(
    topology: Topology,
    *,
    runtime: Runtime,
    links: LinkMaker,
    name: str,
    logs: Path,
    extra: Sequence[tuple[str, str, str]] = (),
    progress: Progress = lambda _line: None,
) -> Iterator[Lab]:
    """A lab that lasts as long as the `with`; an error on the way up, or in the body, still takes all of it down."""
    lab = start(topology, runtime=runtime, links=links, name=name, logs=logs, extra=extra, progress=progress)
    try:
        yield lab
    finally:
        lab.running.down()


def start(
    topology: Topology,
    *,
    runtime: Runtime,
    links: LinkMaker,
    name: str,
    logs: Path,
    extra: Sequence[tuple[str, str, str]] = (),
    detached: bool = False,
    progress: Progress = lambda _line: None,
) -> Lab:
    """As `up`, without its end: for labs that outlive this process (`detached`)."""
    lacks = runtime.check() + links.check()
    if lacks:
        raise MachineError("\n".join(lacks))
    for line in runtime.weaker():
        progress(f"warning: {line}")
    progress(f"lab {name}: {len(topology.nodes)} nodes, {len(topology.workloads)} workloads")
    running = runtime.up(topology, name=name, extra=extra, detached=detached, logs=logs)
    try:
        live = links.join(running, topology.links)
        running.route(topology)
        for node in topology.nodes:
            services = nftables.service_dnat(nftables.virtual_ports(topology))
            nftables.apply(running.sandboxes[node.name].netns, services.for_new_namespace())
        lab = Lab(topology=topology, running=running, links=live, link_kind=links.name)
        _start_apps(lab, topology.workloads, logs)
        return lab
    except BaseException:
        running.down()
        raise


def _start_apps(lab: Lab, workloads: Sequence[Workload], logs: Path) -> None:
    serving = [w for w in workloads if w.app.kind != "idle"]
    spawns = []
    for workload in serving:
        folder = lab.running.folder / "apps" / workload.name
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if workload.app.image:
            spawns.append(from_image(workload, folder))
            continue
        module = load("app", workload.app.kind).__name__
        arguments = ["--name", workload.name, "--log", str(folder / "requests.jsonl")]
        for port in workload.app.ports:
            arguments += ["--port", str(port)]
        if workload.app.service_time_ms:
            arguments += ["--service-time-ms", str(workload.app.service_time_ms)]
        for called in workload.app.calls:
            service = lab.topology.service(called)
            arguments += ["--call", f"http://{service.address}:{service.ports[0].port}/"]
        spawns.append(
            Spawn(
                name=f"app.{workload.name}",
                sandbox=workload.name,
                argv=program.argv(module, *arguments),
                env=program.environment(folder),
                uid=APP_UID,
                folder=folder,
            )
        )
    for workload, process in zip(serving, lab.running.spawn(spawns), strict=True):
        lab.apps[workload.name] = process
    lab.app_spawns = {workload.name: spawn for workload, spawn in zip(serving, spawns, strict=True)}
    for workload in serving:
        for port in workload.app.ports:
            wait_for_port(lab, workload.name, port, process=lab.apps[workload.name])


def from_image(workload: Workload, folder: Path) -> Spawn:
    """A program of the user's own; its environment is its image's, but for what the topology adds."""
    return Spawn(
        name=f"app.{workload.name}",
        sandbox=workload.name,
        argv=workload.app.command,
        env=dict(workload.app.environment),
        uid=APP_UID if workload.app.user_id is None else workload.app.user_id,
        folder=folder,
        image=workload.app.image,
        writable=workload.app.writable,
    )


def wait_for_port(
    lab: Lab, sandbox: str, port: int, *, process: Process, address: str = "127.0.0.1", limit_s: float = 20.0
) -> None:
    """Until something in the sandbox accepts on the port. Raises PeerError with the end of the program's log."""
    deadline = time.monotonic() + limit_s

    def attempt() -> bool:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex((address, port)) == 0

    while not in_netns(lab.netns(sandbox), attempt):
        if process.poll() is not None or time.monotonic() > deadline:
            state = (
                f"ended with {process.poll()}" if process.poll() is not None else f"did not listen within {limit_s:g} s"
            )
            raise PeerError(f"{process.name} in {sandbox}: {state} (port {port}); its log ends:\n{log_tail(process)}")
        time.sleep(0.01)


def log_tail(process: Process, lines: int = 12) -> str:
    """The end of what a program printed, for an error's text."""
    try:
        return "\n".join(Path(process.log).read_text(errors="replace").splitlines()[-lines:])
    except OSError as error:
        return f"(no log: {error})"


def http_get(
    lab: Lab, sandbox: str, address: str, port: int, path: str, *, timeout_s: float = 2.0
) -> tuple[int, bytes]:
    """One GET from inside a sandbox by a connected socket, for readiness and metrics.

    Status 0 when nothing answered.
    """

    def attempt() -> socket.socket | None:
        try:
            return socket.create_connection((address, port), timeout=timeout_s)
        except OSError:
            return None

    connected = in_netns(lab.netns(sandbox), attempt)
    if connected is None:
        return 0, b""
    connection = http.client.HTTPConnection(address, port, timeout=timeout_s)
    connection.sock = connected
    try:
        connection.request("GET", path, headers={"host": f"{address}:{port}", "connection": "close"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()
