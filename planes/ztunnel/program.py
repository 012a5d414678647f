"""The program: settings to a running ztunnel, its reloads and its end."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Iterator
from pathlib import Path

from planes.mesh import net, resolver
from planes.mesh.admin import Answer, OneShot
from planes.mesh.resolver import Resolver
from planes.mesh.view import MeshView
from planes.mesh.watch import watch
from planes.ztunnel import inbound, inpod, outbound, passthrough
from planes.ztunnel.certificates import Certificates
from planes.ztunnel.decisions import ViewDecisions
from planes.ztunnel.own import OwnProxy
from planes.ztunnel.revocation import Revocation
from planes.ztunnel.settings import Settings
from planes.ztunnel.telemetry import Telemetry
from planes.ztunnel.workload import Context, Sides, WorkloadProxy
from testbed.errors import TestbedError

RETRY_S = 5.0
SIDES = Sides(outbound=outbound.serve, plaintext=passthrough.serve, hbone=inbound.session)


class Ztunnel:
    def __init__(self, loop: asyncio.AbstractEventLoop, settings: Settings) -> None:
        self.settings = settings
        self.ready = False
        self.decisions = ViewDecisions(self._read_view(), settings.ports.illegal)
        self._tasks: set[asyncio.Task[None]] = set()
        certificates = Certificates(settings.identities_now, settings.keylog, scrubbed=self._scrub)
        certificates.fetch_all()
        self.context = Context(
            loop=loop,
            settings=settings,
            decisions=self.decisions,
            certificates=certificates,
            telemetry=Telemetry(loop, settings.access_log, debug=settings.access_log_debug),
            resolver=Resolver(
                settings.hosts, resolver.server(settings.name_server) if settings.name_server else None, loop.time
            ),
        )
        self.revocation = self.context.revocation = Revocation(settings.crl, self.warn) if settings.crl else None
        self.proxies: dict[str, WorkloadProxy] = {}
        self.own = OwnProxy(self.context, SIDES, *settings.own_workload) if settings.own_workload else None
        self.ended: asyncio.Event = asyncio.Event()
        self._pending: dict[str, WorkloadProxy] = {}
        self._view_stamp = self._stamp()

    def _read_view(self) -> MeshView:
        view = self.settings.view
        return MeshView.parse(view if isinstance(view, dict) else json.loads(view.read_text()))

    def _stamp(self) -> tuple[int, int] | None:
        if isinstance(self.settings.view, Path):
            status = self.settings.view.stat()
            return status.st_mtime_ns, status.st_ino
        return None

    async def start(self) -> None:
        settings, loop = self.settings, self.context.loop
        for port, routes in (
            (settings.ready_port, {"/healthz/ready": self._readiness}),
            (settings.stats_port, {"/metrics": self._metrics, "/stats/prometheus": self._metrics}),
            (settings.admin_port, {"/config_dump": self._dump, "/quitquitquit": self._quit}),
        ):
            if port:
                sock = net.listen(settings.admin_address, port)
                await net.serve(loop, lambda routes=routes: OneShot(routes), sock)
        self._spawn(
            watch(loop, self._stamp, self._view_stamp, changed=self.reload_view, housekeep=self._housekeep)
        )
        if self.revocation is not None:
            stamp = self.revocation.stamp()
            self.revocation.load()
            self._spawn(watch(loop, self.revocation.stamp, stamp, changed=self._revoke, housekeep=lambda _: None))
        if self.own is not None:
            await self.own.start()
        if settings.uds is not None:
            self._spawn(
                inpod.follow(
                    settings.uds, add=self.add, remove=self.remove, snapshot=self.snapshot, warn=self.context.warn
                )
            )
        elif settings.workload is not None:
            proxy = WorkloadProxy(self.context, SIDES, *settings.workload)
            await proxy.start()
            self.proxies["dedicated"] = proxy
            self.ready = True

    def _scrub(self, steps: Iterator[int]) -> None:
        """Before anybody is served at once; then so that nobody waits for more than a step."""

        async def one_by_one() -> None:
            for _ in steps:
                await asyncio.sleep(0)

        if self.ready:
            self._spawn(one_by_one())
        else:
            sum(steps)

    def _spawn(self, work: object) -> None:
        task = self.context.loop.create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def _running(self) -> list[WorkloadProxy]:
        return [*self.proxies.values(), *([self.own] if self.own is not None else [])]

    # -- workloads -------------------------------------------------------------------------------------------------

    async def add(self, uid: str, namespace: str, name: str, netns: int) -> None:
        old = self.proxies.pop(uid, None) or self._pending.pop(uid, None)
        if old is not None:
            old.drain()
            old.stop()
        proxy = WorkloadProxy(self.context, SIDES, namespace, name, netns=netns)
        try:
            await proxy.start()
        except TestbedError:
            self._pending[uid] = proxy
            self._spawn(self._retry(uid, proxy))
            raise
        self.proxies[uid] = proxy

    async def _retry(self, uid: str, proxy: WorkloadProxy) -> None:
        while self._pending.get(uid) is proxy:
            await asyncio.sleep(RETRY_S)
            try:
                await proxy.start()
            except TestbedError as cause:
                self.context.warn(f"{proxy!r}: {cause}; trying again in {RETRY_S:g} s")
                continue
            if self._pending.pop(uid, None) is proxy:
                self.proxies[uid] = proxy

    async def remove(self, uid: str) -> None:
        """The pod is gone: no time in which a GOAWAY would be of use (facts/hbone 1.9)."""
        proxy = self.proxies.pop(uid, None) or self._pending.pop(uid, None)
        if proxy is not None:
            proxy.drain()
            proxy.stop()
        if self.ready:
            await self._forget()

    async def snapshot(self, seen: set[str]) -> None:
        for uid in {*self.proxies, *self._pending} - seen:
            await self.remove(uid)
        self.ready = True
        await self._forget()
        gc.collect()
        gc.freeze()  # what is here now lives as long as the process: the collector need not walk it again

    async def _forget(self) -> None:
        """Keys of identities that no workload here has any longer leave the memory, not only the table."""
        here = (*self._running, *self._pending.values())
        if not self.context.certificates.keep_only({uri for proxy in here for uri in proxy.identities}):
            return
        await asyncio.sleep(0.01)  # what was closed above ends in the next turns, and holds its context till then
        gc.unfreeze()
        gc.collect()
        gc.freeze()

    # -- reloads ---------------------------------------------------------------------------------------------------

    def _housekeep(self, now_s: float) -> None:
        self.reload_certificates()
        for proxy in self._running:
            proxy.pool.expire(now_s)

    def reload(self) -> None:
        """SIGHUP: whatever is in the files now, without waiting for the next look at them."""
        self.reload_view()
        self.reload_certificates()

    def reload_view(self) -> None:
        """A view that cannot be read changes nothing but the log."""
        try:
            view = self._read_view()
        except (OSError, ValueError) as cause:
            self.context.warn(f"new view refused, the old one stays: {cause}")
            return
        self.decisions.view = view
        for proxy in self._running:
            proxy.recheck()

    def _revoke(self) -> None:
        assert self.revocation is not None
        self.revocation.load()
        for proxy in self._running:
            self.revocation.cut(proxy.sessions)

    def reload_certificates(self) -> None:
        renewed = self.context.certificates.reload(self.context.warn)
        for proxy in self._running:
            if proxy.local is not None and proxy.local.identity in renewed:
                self._spawn(proxy.renew())

    # -- end -------------------------------------------------------------------------------------------------------

    def quit(self) -> None:
        if not self.context.draining:
            self.context.draining = True
            self.ready = False
            self._spawn(self._drain())

    async def _drain(self) -> None:
        for proxy in self._running:
            proxy.drain()
        give_up_s = self.context.loop.time() + self.settings.drain_deadline_s
        while any(proxy.busy for proxy in self._running) and self.context.loop.time() < give_up_s:
            await asyncio.sleep(0.05)
        for proxy in self._running:
            proxy.stop()
        await asyncio.sleep(0)  # lets the closes reach their sockets
        self.ended.set()

    def warn(self, text: str) -> None:
        self.context.warn(text)

    def stop_watching(self) -> None:
        for task in self._tasks:
            task.cancel()

    # -- admin -----------------------------------------------------------------------------------------------------

    def _readiness(self) -> Answer:
        if self.ready and not self._pending:
            return 200, "ready\n"
        return 500, f"not ready: {len(self._pending)} workloads pending\n"

    def _metrics(self) -> Answer:
        own = (
            f"istio_on_demand_dns_total {self.context.resolver.lookups}\n"
            f"istio_workload_manager_active_proxy_count {len(self.proxies)}\n"
            f"istio_workload_manager_pending_proxy_count {len(self._pending)}\n"
        )
        return 200, self.context.telemetry.render() + own + (self.revocation.render() if self.revocation else "")

    def _dump(self) -> Answer:
        view = self.decisions.view
        dump = {
            "name": self.settings.name,
            "ready": self.ready,
            "workloads": [w.uid for w in view.workloads],
            "services": [s.key for s in view.services],
            "policies": [p.key for p in view.policies],
            "identities": self.context.certificates.held,
            "proxies": {
                uid: {"workload": f"{p.namespace}/{p.name}", "connections": len(p.endpoints)}
                for uid, p in self.proxies.items()
            },
        }
        return 200, json.dumps(dump, indent=2) + "\n"

    def _quit(self) -> Answer:
        self.quit()
        return 200, "shutdown now\n"
