"""An event carried out in a lab: what it does to processes, captures and views, in Istio's order.

Everything goes through what a lab has anyway: its processes, its node agents, its view files. Nothing here judges.
"""

from __future__ import annotations

import dataclasses
import itertools
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from testbed import certificateevents, nftables, stages, swap
from testbed.deploy import READY_PORT, Deployment, begin, capture_batches, pod, start, wait_ready
from testbed.errors import PeerError, TrialError, UsageError
from testbed.lab import http_get, wait_for_port
from testbed.model.event import OF_CERTIFICATES, Event, Kind
from testbed.model.placement import Placement, Proxy
from testbed.nodeagent import NodeAgent
from testbed.pki import LEAF_LIFETIME_S
from testbed.runtime.enter import in_netns
from testbed.runtime.keeper import handles
from testbed.seams import Process

GRACE_S = 30.0
"""A process that was told to end and has not by then is killed, as by a kubelet (`terminationGracePeriodSeconds`)."""
READY_IN_A_ROW = 12
"""Old and new share a port and the kernel chooses: a new one that is not ready would have answered one of these."""
PUSHED_S = 0.3
"""What ends after a view has been pushed waits so long, for others to have read it."""
CRASH_WITHIN_S = 10.0
_generation = itertools.count(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    began_s: float
    """CLOCK_MONOTONIC."""
    ended_s: float
    """When what was struck was there again, or the change was complete; a drain may go on for long."""
    components: tuple[str, ...]
    """Which were struck; empty where the plane has none of the kind."""
    workloads_restarted: tuple[str, ...] = ()
    proxies_restarted: tuple[str, ...] = ()
    told: tuple[tuple[str, str, float], ...] = ()
    """(metric, unit, value) of what only this kind of event has."""


def carry_out(deployment: Deployment, event: Event, *, target: Placement | None = None, client: str = "") -> Done:
    """Now. `target` is where a change leads, `client` who sends the request of a crash.

    Raises PeerError where something does not come back.
    """
    began_s = time.monotonic()
    if event.kind is Kind.CHANGE:
        if target is None:
            raise UsageError("a change takes a stage to lead to; give the event one")
        return become(deployment, target, began_s=began_s)
    if event.kind in OF_CERTIFICATES:
        components, told = certificateevents.carry_out(deployment, event)
        return Done(began_s=began_s, ended_s=time.monotonic(), components=components, told=told)
    what, _, name = event.on.partition(":")
    struck = stages.proxies_of(deployment.placement, event.on)
    if what == "app":
        return _strike_app(deployment, event, name, began_s)
    if not struck:
        return Done(began_s=began_s, ended_s=began_s, components=())
    lived_in = () if event.kind is not Kind.UPGRADE else tuple(p.sandbox for p in struck if _in_workload(deployment, p))
    ended_s = began_s
    if lived_in:
        _restart_workloads(deployment, lived_in, stopped=struck, started=struck)
        ended_s = time.monotonic()
    elif event.kind is Kind.UPGRADE:
        for proxy in struck:
            ended_s = _upgrade(deployment, proxy)
    else:
        _strike(deployment, event, struck, client)
        ended_s = time.monotonic()
    names = tuple(p.name for p in struck)
    begun_anew = () if event.kind is Kind.HANG else names
    return Done(
        began_s=began_s, ended_s=ended_s, components=names, workloads_restarted=lived_in, proxies_restarted=begun_anew
    )


def _in_workload(deployment: Deployment, proxy: Proxy) -> bool:
    return any(w.name == proxy.sandbox for w in deployment.lab.topology.workloads)


# -- processes ---------------------------------------------------------------------------------------------------------


def _strike(deployment: Deployment, event: Event, struck: Sequence[Proxy], client: str) -> None:
    processes = [deployment.proxies[p.name] for p in struck]
    if event.kind is Kind.HANG:
        _hang(processes, event.for_s)
        return
    if event.kind is Kind.CRASH:
        _poison(deployment, client, event.on.partition(":")[2])
        processes, struck = _those_that_crashed(deployment, processes, struck, event.on)
    elif event.kind is Kind.KILL:
        for process in processes:
            process.signal(signal.SIGKILL)
    else:
        for process in processes:
            process.signal(signal.SIGTERM)
    for process in processes:
        _ended(process)
    if event.kind is not Kind.RESTART:
        time.sleep(event.for_s)
    _again(deployment, [p.name for p in struck])
    for proxy in struck:
        wait_ready(deployment, proxy)


def _ended(process: Process) -> None:
    if process.wait(GRACE_S) is None:
        process.signal(signal.SIGKILL)
        if process.wait(GRACE_S) is None:
            raise PeerError(f"{process.name} does not end, not even by SIGKILL")


def _again(deployment: Deployment, names: Sequence[str]) -> None:
    """As they were started before, under names of their own: an old one may still drain."""
    number = next(_generation)
    spawns = [dataclasses.replace(deployment.spawns[name], name=f"{name}.{number}") for name in names]
    for name, process in zip(names, deployment.lab.running.spawn(spawns), strict=True):
        deployment.proxies[name] = process


def _upgrade(deployment: Deployment, proxy: Proxy) -> float:
    """When the new one was ready."""
    old = deployment.proxies[proxy.name]
    _again(deployment, [proxy.name])
    new, deadline_s, in_a_row = deployment.proxies[proxy.name], time.monotonic() + 30.0, 0
    while in_a_row < READY_IN_A_ROW:
        if new.poll() is not None or time.monotonic() > deadline_s:
            raise PeerError(f"{new.name}: did not become ready beside {old.name}; its log: {new.log}")
        if _listeners(deployment, proxy.sandbox) < 2:
            in_a_row = 0
        else:
            status, _ = http_get(deployment.lab, proxy.sandbox, "127.0.0.1", READY_PORT, "/healthz/ready")
            in_a_row = in_a_row + 1 if status == 200 else 0
        time.sleep(0.01)
    ready_s = time.monotonic()
    old.signal(signal.SIGTERM)
    _ended(old)
    return ready_s


def _listeners(deployment: Deployment, sandbox: str) -> int:
    """Sockets that listen on the port of readiness, by the kernel's table."""
    text = in_netns(deployment.lab.netns(sandbox), lambda: Path("/proc/thread-self/net/tcp").read_text())
    rows = [line.split() for line in text.splitlines()[1:]]
    return sum(row[1].endswith(f":{READY_PORT:04X}") and row[3] == "0A" for row in rows)


def _poison(deployment: Deployment, client: str, service: str) -> None:
    """One marked request; what becomes of it is no matter."""
    found = deployment.lab.topology.service(service)
    address = (found.address, found.ports[0].port)
    request = f"GET / HTTP/1.1\r\nhost: {address[0]}:{address[1]}\r\n{stages.CRASH_HEADER}: 1\r\n\r\n".encode()

    def send() -> None:
        try:
            with socket.create_connection(address, timeout=2.0) as sock:
                sock.sendall(request)
                sock.recv(4096)
        except OSError:
            pass

    in_netns(deployment.lab.netns(client), send)


def _those_that_crashed(
    deployment: Deployment, processes: Sequence[Process], struck: Sequence[Proxy], on: str
) -> tuple[list[Process], list[Proxy]]:
    """One replica of several takes the request."""
    deadline_s = time.monotonic() + CRASH_WITHIN_S
    while time.monotonic() < deadline_s:
        gone = [number for number, process in enumerate(processes) if process.poll() is not None]
        if gone:
            return [processes[number] for number in gone], [struck[number] for number in gone]
        time.sleep(0.01)
    names = ", ".join(p.name for p in struck)
    raise TrialError(f"the marked request to {on} ended none of {names}; is the plug-in armed, and is it HTTP?")


def _hang(processes: Sequence[Process], for_s: float) -> None:
    """Whatever interrupts it, they go on."""
    try:
        for process in processes:
            process.signal(signal.SIGSTOP)
        time.sleep(for_s)
    finally:
        for process in processes:
            process.signal(signal.SIGCONT)


# -- applications ------------------------------------------------------------------------------------------------------


def _strike_app(deployment: Deployment, event: Event, name: str, began_s: float) -> Done:
    process = deployment.lab.apps[name]
    if event.kind is Kind.HANG:
        _hang([process], event.for_s)
        return Done(began_s=began_s, ended_s=time.monotonic(), components=(f"app.{name}",))
    process.signal(signal.SIGKILL if event.kind is Kind.KILL else signal.SIGTERM)
    _ended(process)
    if event.kind is Kind.KILL:
        time.sleep(event.for_s)
    _start_apps(deployment, (name,))
    return Done(
        began_s=began_s, ended_s=time.monotonic(), components=(f"app.{name}",), workloads_restarted=(name,)
    )


def _start_apps(deployment: Deployment, names: Sequence[str]) -> None:
    lab, number = deployment.lab, next(_generation)
    names = [name for name in names if name in lab.app_spawns]
    spawns = [dataclasses.replace(lab.app_spawns[name], name=f"{lab.app_spawns[name].name}.{number}") for name in names]
    for name, process in zip(names, lab.running.spawn(spawns), strict=True):
        lab.apps[name] = process
    for name in names:
        for port in lab.topology.workload(name).app.ports:
            wait_for_port(lab, name, port, process=lab.apps[name])


def _restart_workloads(
    deployment: Deployment,
    names: Sequence[str],
    *,
    stopped: Sequence[Proxy],
    started: Sequence[Proxy],
    between: Callable[[], None] = lambda: None,
) -> None:
    """A pod is told to end as a whole, and made anew as a whole; what it is captured by changes in between."""
    apps = [deployment.lab.apps[name] for name in names if name in deployment.lab.apps]
    processes = [*apps, *(deployment.proxies[p.name] for p in stopped)]
    for process in processes:
        process.signal(signal.SIGTERM)
    for process in processes:
        _ended(process)
    _leave(deployment, names if any(p not in stopped for p in started) else ())
    known = [p for p in started if p.name in deployment.spawns and p in stopped]
    for proxy in stopped:
        if proxy not in known:
            _forget(deployment, proxy)
    _again(deployment, [p.name for p in known])
    for proxy in known:
        wait_ready(deployment, proxy)
    begin(deployment, [p for p in started if p not in known])
    between()
    _start_apps(deployment, names)


def _leave(deployment: Deployment, names: Sequence[str]) -> None:
    """A pod that ends leaves its node's agent, which listens in it where a sidecar is to."""
    for agent in deployment.agents:
        for left in [one for one in agent.pods if one.name in names]:
            agent.remove(left.uid)


# -- changes -----------------------------------------------------------------------------------------------------------


def become(deployment: Deployment, after: Placement, *, began_s: float) -> Done:
    """The deployment as `after` says, with no more touched than differs."""
    lab = deployment.lab
    what = stages.change(deployment.placement, after, [w.name for w in lab.topology.workloads])
    in_pods = [p for p in what.started if p.sandbox in what.restarted]
    begin(deployment, [p for p in what.started if p not in in_pods])

    def capture() -> None:
        for name, workload in what.entered:
            _agent(deployment, name).add(pod(lab, workload))
        wanted = {c.workload for c in what.captured}
        for sandbox, batch in capture_batches(lab.topology, after, deployment.uids):
            if sandbox in wanted:
                nftables.apply(lab.netns(sandbox), batch)

    if what.restarted:
        stopped = [p for p in what.stopped if p.sandbox in what.restarted]
        _restart_workloads(deployment, what.restarted, stopped=stopped, started=in_pods, between=capture)
    else:
        capture()
    for proxy in what.told:
        push(deployment, proxy)
    deployment.placement = after
    ended_s = time.monotonic()
    left = [p for p in what.stopped if p.sandbox not in what.restarted]
    if what.released or what.left or left:
        time.sleep(PUSHED_S)
        still = {c.workload for c in after.captures}
        for capture_ in what.released:
            if capture_.workload not in still:
                nftables.apply(lab.netns(capture_.workload), nftables.removal(nftables.CAPTURE_TABLE))
        for name, workload in what.left:
            if workload not in what.restarted:
                _agent(deployment, name).remove(workload)
        for proxy in left:
            deployment.proxies[proxy.name].signal(signal.SIGTERM)
        for proxy in left:
            _ended(deployment.proxies[proxy.name])
            _forget(deployment, proxy)
        ended_s = time.monotonic()
    components = [*(p.name for p in (*what.started, *what.stopped, *what.told)), *(w for _, w in what.entered)]
    return Done(
        began_s=began_s, ended_s=ended_s, components=tuple(dict.fromkeys(components)),
        workloads_restarted=what.restarted,
    )  # fmt: skip


def push(deployment: Deployment, proxy: Proxy) -> None:
    """What a control plane's push is: the view is there at once, not when the proxy looks next."""
    if proxy.program.startswith("@"):
        raise UsageError(f"{proxy.name}: a real Envoy has its configuration for life here; deploy it anew instead")
    deployment.configure(proxy, stages.told(proxy))
    process = deployment.proxies[proxy.name]
    if handles(process.pid, signal.SIGHUP):  # it would end one that does not; that looks at its file itself
        process.signal(signal.SIGHUP)


def _agent(deployment: Deployment, proxy: str) -> NodeAgent:
    return next(agent for agent in deployment.agents if agent.path.parent.name == proxy)


def _forget(deployment: Deployment, proxy: Proxy) -> None:
    """It has ended and is not to come back."""
    deployment.proxies.pop(proxy.name, None)
    deployment.spawns.pop(proxy.name, None)
    for agent in [agent for agent in deployment.agents if agent.path.parent.name == proxy.name]:
        agent.close()
        deployment.agents.remove(agent)


def deploy_anew(
    deployment: Deployment, placement: Placement, stack: ExitStack, *, leaf_lifetime_s: float = 0.0
) -> None:
    """In the place of what is there: every proxy ends at once, nothing is captured, then all begins as at first.

    Certificates as of `Cell.leaf_lifetime_s`.

    For between trials, where nobody watches. Applications stay, but those that have ended.
    """
    lab = deployment.lab
    processes = [*deployment.proxies.values(), *filter(None, [deployment.renewer])]
    for process in processes:
        process.signal(signal.SIGKILL)
    for process in processes:
        _ended(process)
    swap.uncapture(lab)  # a change that failed half-way has rules that `deployment.placement` does not name
    for agent in deployment.agents:
        agent.close()
    _start_apps(deployment, [name for name, process in lab.apps.items() if process.poll() is not None])
    made = start(
        lab, placement, stack=stack, leaf_lifetime_s=leaf_lifetime_s or LEAF_LIFETIME_S, renewed=leaf_lifetime_s > 0
    )
    for field in dataclasses.fields(Deployment):
        setattr(deployment, field.name, getattr(made, field.name))
