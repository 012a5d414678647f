"""What sidecar and waypoint share as programs: settings, view, identity, admin ports, reload, drain, end."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import random
import socket
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import IO

from planes.l7.dial import Dialler
from planes.l7.route import RouteTable
from planes.l7.settings import Settings
from planes.l7.telemetry import HttpMetrics
from planes.l7.view import L7View
from planes.mesh import baggage, net, tls
from planes.mesh.admin import Answer, OneShot
from planes.mesh.metrics import Metrics
from planes.mesh.view import MeshView, WorkloadView
from planes.mesh.watch import watch
from testbed.errors import TestbedError, UsageError

DRAIN_AT_LEAST_S = 0.25
"""Handshakes and first bytes under way become connections that a drain knows of."""
IDLE_GRACE_S = 1.0
"""How long a drain leaves idle keep-alive connections open for a last request."""


class Ended:
    """Something with connections that a drain waits for and an end cuts."""

    def sweep(self, now_s: float) -> None:
        """Now and then: end what is idle for too long."""

    def drain(self) -> None: ...
    def press(self) -> None:
        """Within a drain, again and again: who is served is told to go elsewhere; who stays idle has had its time."""

    def stop(self) -> None: ...
    @property
    def busy(self) -> bool:
        return False


class L7Program(ABC):
    """One proxy. A role adds its listeners in `open`, as `Ended` parts."""

    def __init__(self, loop: asyncio.AbstractEventLoop, settings: Settings) -> None:
        self.loop = loop
        self.settings = settings
        self.mesh = self._read_view()
        local = self.mesh.local(*settings.workload)
        if local is None:
            raise UsageError(f"workload {'/'.join(settings.workload)} is not in the view {settings.view}")
        self.local: WorkloadView = local
        self.l7 = L7View.parse(settings.l7)
        self.table = RouteTable(self.l7)
        uri, files = next(iter(settings.identities.items()))
        self.contexts = tls.IdentityContexts(uri, files, settings.keylog)
        self.uri = uri
        if settings.mark is not None:
            net.must_mark(settings.mark)
        self.dialler = Dialler(loop, self.contexts, baggage=lambda: self._baggage, mark=settings.mark)
        self.draw: Callable[[], float] = random.random
        self.random_bits: Callable[[int], int] = random.getrandbits
        self.http_metrics = HttpMetrics()
        self.tcp_metrics = Metrics()
        self.parts: list[Ended] = []
        self.on_renewal: list[Callable[[], Awaitable[None]]] = []
        """Whoever listens with the identity's context takes the new one here."""
        self.ready = False
        self.draining = False
        self.ended = asyncio.Event()
        self.log: IO[str] | None = None
        if settings.access_log == "stderr":
            self.log = sys.stderr
        elif settings.access_log != "off":
            self.log = open(settings.folder / settings.access_log, "a", buffering=1)  # noqa: SIM115 - for life
        self._stamp = self._view_stamp()
        self._tasks: set[asyncio.Task[None]] = set()
        self._baggage = baggage.render(self.local)

    def _read_view(self) -> MeshView:
        return MeshView.parse(json.loads(self.settings.view.read_text()))

    def _view_stamp(self) -> tuple[int, int]:
        status = self.settings.view.stat()
        return status.st_mtime_ns, status.st_ino

    def warn(self, text: str) -> None:
        print(f"{time.strftime('%Y-%m-%dT%H:%M:%S')} {self.settings.name} {text}", file=sys.stderr, flush=True)

    def spawn(self, work: object) -> None:
        task = self.loop.create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def listen(self, port: int) -> socket.socket:
        return net.listen(self.settings.address, port)

    @abstractmethod
    async def open(self) -> None: ...

    @abstractmethod
    def reloaded(self) -> None:
        """A new view is in place."""

    async def start(self) -> None:
        settings = self.settings
        metrics = {"/metrics": self._metrics, "/stats/prometheus": self._metrics}
        for address, port, routes in (
            (settings.open_address, settings.ready_port, {"/healthz/ready": self._readiness}),
            (settings.open_address, settings.stats_port, metrics),
            (settings.open_address, settings.envoy_stats_port, metrics),
            (settings.admin_address, settings.admin_port, {"/config_dump": self._dump, "/quitquitquit": self._quit}),
        ):
            if port:
                sock = net.listen(address, port)
                await net.serve(self.loop, lambda routes=routes: OneShot(routes), sock)
        await self.open()
        self.spawn(
            watch(self.loop, self._view_stamp, self._stamp, changed=self.reload_view, housekeep=self._housekeep)
        )
        gc.collect()
        gc.freeze()  # what is here now lives as long as the process: the collector need not walk it again
        self.ready = True

    # -- reloads -------------------------------------------------------------------------------------------------------

    def _housekeep(self, now_s: float) -> None:
        self.reload_certificates()
        self.dialler.expire()
        for part in self.parts:
            part.sweep(now_s)

    def reload(self) -> None:
        """SIGHUP: whatever is in the files now."""
        self.reload_view()
        self.reload_certificates()

    def reload_view(self) -> None:
        """A view that cannot be read changes nothing but the log. Its `l7` and `sidecars`, if it has them, replace the
        first ones."""
        try:
            raw = json.loads(self.settings.view.read_text())
            l7, sidecars = raw.pop("l7", None), raw.pop("sidecars", None)
            mesh = MeshView.parse(raw)
            view = L7View.parse(l7) if l7 is not None else self.l7
            local = mesh.local(*self.settings.workload)
            if local is None:
                raise ValueError(f"workload {'/'.join(self.settings.workload)} is not in it")
        except (OSError, ValueError, TestbedError) as cause:
            self.warn(f"new view refused, the old one stays: {cause}")
            return
        if sidecars is not None:
            self.settings = dataclasses.replace(self.settings, sidecars=frozenset(sidecars))
        self.mesh, self.l7, self.local = mesh, view, local
        self.table = RouteTable(view)
        self._baggage = baggage.render(local)
        self.reloaded()

    def reload_certificates(self) -> None:
        try:
            changed = self.contexts.reload()
        except TestbedError as cause:
            self.warn(f"renewal: {cause}; the old certificate stays")
            return
        if changed:
            for renew in self.on_renewal:
                self.spawn(renew())

    # -- end -----------------------------------------------------------------------------------------------------------

    def quit(self) -> None:
        if not self.draining:
            self.draining = True
            self.ready = False
            self.spawn(self._drain())

    async def _drain(self) -> None:
        for part in self.parts:
            part.drain()
        began_s = self.loop.time()
        await asyncio.sleep(min(DRAIN_AT_LEAST_S, self.settings.drain_deadline_s))
        while any(part.busy for part in self.parts):
            spent_s = self.loop.time() - began_s
            if spent_s >= self.settings.drain_deadline_s:
                break
            for part in self.parts:
                part.press()
            await asyncio.sleep(0.05)
        for part in self.parts:
            part.stop()
        self.dialler.stop()
        await asyncio.sleep(0)  # lets the closes reach their sockets
        self.ended.set()

    def stop_watching(self) -> None:
        for task in self._tasks:
            task.cancel()

    # -- admin ---------------------------------------------------------------------------------------------------------

    def _readiness(self) -> Answer:
        return (200, "ready\n") if self.ready else (500, "not ready\n")

    def _metrics(self) -> Answer:
        return 200, self.http_metrics.render() + self.tcp_metrics.render()

    def _dump(self) -> Answer:
        dump = {
            "name": self.settings.name,
            "ready": self.ready,
            "workload": "/".join(self.settings.workload),
            "identity": self.uri,
            "services": [s.key for s in self.l7.config.services],
            "serves": list(self.l7.config.serves),
            "policies": [f"{p.namespace}/{p.name}" for p in self.l7.config.authorization],
            "workloads": [w.uid for w in self.mesh.workloads],
        }
        return 200, json.dumps(dump, indent=2) + "\n"

    def _quit(self) -> Answer:
        self.quit()
        return 200, "shutdown now\n"
