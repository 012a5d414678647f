"""What a proxy does when time passes: keepalive, limits, watches, retries. Real sockets and TLS, a clock that jumps."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import shutil
import socket
import ssl
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from planes.mesh import frames, net, tls
from planes.mesh.relay import Tunnel
from planes.mesh.session import HboneSession
from planes.ztunnel import inpod
from planes.ztunnel.program import Ztunnel
from planes.ztunnel.settings import Settings
from testbed.bench.loopback import CLIENT_URI, SERVER_URI, local_view, write_certificates
from testbed.errors import PeerError
from tests.jumping import JumpingLoop

NETWORK = f"127.{70 + os.getpid() % 8}.{os.getpid() // 8 % 250 + 1}"
CLIENT, SERVER = f"{NETWORK}.1", f"{NETWORK}.2"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_certificates(tmp_path, {"client": CLIENT_URI, "server": SERVER_URI})
    return tmp_path


@pytest.fixture
def loop() -> Iterator[JumpingLoop]:
    made = JumpingLoop()
    yield made
    for task in asyncio.all_tasks(made):
        task.cancel()
    made.run_until_complete(asyncio.sleep(0))
    made.close()


def files_of(folder: Path, name: str) -> tls.KeyFiles:
    return tls.KeyFiles(
        certificate=folder / f"{name}.pem", key=folder / f"{name}.key", roots=folder / "roots.pem"
    )


def contexts(folder: Path, name: str, uri: str) -> tls.IdentityContexts:
    return tls.IdentityContexts(uri, files_of(folder, name))


class Mute(asyncio.Protocol):
    """An HTTP/2 peer that says its SETTINGS and then only listens."""

    def __init__(self) -> None:
        self.got = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.write(frames.PREFACE * isinstance(self, MuteClient) + frames.settings(()))  # type: ignore[attr-defined]

    def data_received(self, data: bytes) -> None:
        self.got += data


class MuteClient(Mute): ...


def kinds(data: bytes) -> list[int]:
    """Frame types in order."""
    found, at = [], 0
    while at + 9 <= len(data):
        found.append(data[at + 3])
        at += 9 + int.from_bytes(data[at : at + 3])
    return found


async def joined(
    loop: asyncio.AbstractEventLoop, folder: Path, client: Callable[[], object], server: Callable[[], object]
) -> tuple[object, object]:
    """Both ends of one TLS connection on loopback."""
    made: list[object] = []

    def accept() -> asyncio.BaseProtocol:
        made.append(server())
        return made[0]  # type: ignore[return-value]

    listening = net.listen(SERVER, 0)
    address = listening.getsockname()
    await net.serve(loop, accept, listening, contexts(folder, "server", SERVER_URI).server)
    dialled = await net.connect(
        loop, client, net.upstream(address), address, contexts(folder, "client", CLIENT_URI).client  # type: ignore[arg-type]
    )
    return dialled, made[0]


def session(loop: asyncio.AbstractEventLoop, *, client: bool) -> HboneSession:
    return HboneSession(loop, client=client, refusal_of=lambda _: None, on_request=lambda *_: None)


def test_a_client_gives_a_mute_peer_up_with_its_tunnels(loop: JumpingLoop, folder: Path) -> None:
    """One PING at 10 s, nothing at 20 s, and at 30 s the connection is dropped and its tunnel is told."""

    async def try_it() -> tuple[bool, bool, bool, list[int]]:
        ours, peer = await joined(loop, folder, lambda: session(loop, client=True), Mute)
        assert isinstance(ours, HboneSession) and isinstance(peer, Mute)
        await ours.settings_seen
        tunnel = Tunnel()
        tunnel.join(ours, ours.connection.open([(b":method", b"CONNECT"), (b":authority", b"a:1")]))
        ours.schedule()
        began_s = loop.time()
        await asyncio.sleep(29.5 - began_s)
        before = ours.closed
        await asyncio.sleep(1.0)
        return before, ours.closed, tunnel.stream_over, kinds(peer.got.removeprefix(frames.PREFACE))

    before, closed, over, seen = loop.run_until_complete(try_it())
    assert (before, closed, over) == (False, True, True)
    assert seen.count(frames.PING) == 1


def test_a_server_says_goaway_before_it_drops_a_mute_peer(loop: JumpingLoop, folder: Path) -> None:
    """As ztunnel: GOAWAY(NO_ERROR), at once cut."""

    async def try_it() -> tuple[bool, list[int]]:
        peer, ours = await joined(loop, folder, MuteClient, lambda: session(loop, client=False))
        assert isinstance(ours, HboneSession) and isinstance(peer, MuteClient)
        await asyncio.sleep(31.0)
        return ours.closed, kinds(peer.got)

    closed, seen = loop.run_until_complete(try_it())
    assert closed
    assert seen[-2:] == [frames.PING, frames.GOAWAY]


def test_peers_that_answer_pings_stay(loop: JumpingLoop, folder: Path) -> None:
    """Two of ours, ten minutes without a tunnel."""

    async def try_it() -> tuple[bool, bool]:
        near, far = await joined(
            loop, folder, lambda: session(loop, client=True), lambda: session(loop, client=False)
        )
        await asyncio.sleep(600.0)
        return near.closed, far.closed  # type: ignore[attr-defined]

    assert loop.run_until_complete(try_it()) == (False, False)


def run_ztunnel(
    loop: JumpingLoop, folder: Path, name: str, body: Callable[[Ztunnel], Awaitable[None]], **options: object
) -> str:
    """A whole ztunnel on the jumping clock while `body` runs; returns its access log."""
    address, uri = (CLIENT, CLIENT_URI) if name == "client" else (SERVER, SERVER_URI)
    log = folder / "access.log"
    settings = Settings(
        **{
            "name": "z", "folder": folder, "view": local_view(CLIENT, SERVER),
            "identities": {uri: files_of(folder, name)}, "workload": ("default", name), "address": address,
            "original_source": False, "mark": None, "access_log": str(log),
            "admin_port": 0, "stats_port": 0, "ready_port": 0, **options,
        }
    )  # fmt: skip

    async def all_of_it() -> None:
        ztunnel = Ztunnel(loop, settings)
        await ztunnel.start()
        try:
            await body(ztunnel)
        finally:
            ztunnel.quit()
            await ztunnel.ended.wait()
            ztunnel.stop_watching()

    loop.run_until_complete(all_of_it())
    return log.read_text()


def test_a_peer_that_never_shakes_hands_meets_the_limit_and_the_hint(loop: JumpingLoop, folder: Path) -> None:
    """TCP to 15008 connects and TLS gets no answer: after 10 s the application is closed, and the log says what may be.

    The same limit covers a SYN that nobody answers, which a NetworkPolicy causes.
    """
    with socket.create_server((SERVER, 15008)):

        async def body(_: Ztunnel) -> None:
            reader, writer = await asyncio.open_connection(CLIENT, 15001)
            began_s = loop.time()
            assert await reader.read() == b""
            assert 10.0 <= loop.time() - began_s < 10.5
            writer.close()

        log = run_ztunnel(loop, folder, "client", body, original_destination=(SERVER, 8080))
    assert "maybe a NetworkPolicy is blocking the HBONE port 15008" in log


async def shown(folder: Path) -> int:
    """Serial number of the certificate that a handshake with the inbound proxy shows."""
    context = contexts(folder / "outside", "client", CLIENT_URI).client
    _, writer = await asyncio.open_connection(SERVER, 15008, ssl=context, server_hostname="")
    serial = int(writer.get_extra_info("ssl_object").getpeercert()["serialNumber"], 16)
    writer.close()
    return serial


def test_certificate_files_are_looked_at_every_ten_seconds(loop: JumpingLoop, folder: Path) -> None:
    """Without a signal: a renewed certificate is not served at 9 s and is at 11 s."""
    outside = folder / "outside"
    shutil.copytree(folder, outside)

    async def body(_: Ztunnel) -> None:
        old = await shown(folder)
        renewed = folder / "renewed"
        renewed.mkdir()
        write_certificates(renewed, {"client": CLIENT_URI, "server": SERVER_URI})
        for file in renewed.iterdir():
            shutil.copy(file, folder / file.name)
        shutil.copy(renewed / "roots.pem", outside / "roots.pem")
        for kind in ("pem", "key"):
            shutil.copy(renewed / f"client.{kind}", outside / f"client.{kind}")
        await asyncio.sleep(max(0.0, 9.0 - loop.time()))
        with pytest.raises(ssl.SSLError):  # the old certificate, by the old root
            await shown(folder)
        await asyncio.sleep(2.0)
        assert await shown(folder) != old

    run_ztunnel(loop, folder, "server", body)


def test_the_node_agent_is_sought_with_a_growing_pause(loop: JumpingLoop, tmp_path: Path) -> None:
    """The pause doubles up to 15 s; an agent that comes at last is greeted."""
    told_s: list[float] = []

    async def nothing(*_: object) -> None: ...

    async def try_it() -> bytes:
        follow = loop.create_task(
            inpod.follow(
                tmp_path / "zds.sock", add=nothing, remove=nothing, snapshot=nothing,
                warn=lambda _: told_s.append(loop.time()),
            )
        )  # fmt: skip
        await asyncio.sleep(120.0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as agent:
            agent.bind(str(tmp_path / "zds.sock"))
            agent.listen()
            await asyncio.sleep(16.0)
            agent.setblocking(False)
            proxy, _ = agent.accept()
            with proxy:
                proxy.settimeout(5)
                hello = proxy.recv(4096)
        follow.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await follow
        return hello

    assert loop.run_until_complete(try_it()) == b'{"hello": {"version": "V1"}}'
    pauses = [round(b - a, 1) for a, b in itertools.pairwise(told_s)]
    assert pauses[:5] == [1.6, 3.2, 6.4, 12.8, 15.0]
    assert set(pauses[5:-1]) == {15.0}


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="entering a namespace needs root")
def test_a_workload_that_failed_is_tried_again_every_five_seconds(loop: JumpingLoop, folder: Path) -> None:
    """The view comes to know it late: its listeners open at the next try, and only then is the proxy ready."""
    with subprocess.Popen(["unshare", "-n", "sh", "-c", "echo up; exec sleep 60"], stdout=subprocess.PIPE) as pod:
        assert pod.stdout is not None and pod.stdout.readline() == b"up\n"
        whole = local_view(CLIENT, SERVER)
        view = folder / "view.json"
        view.write_text(json.dumps({**whole, "workloads": whole["workloads"][:1]}))

        async def body(ztunnel: Ztunnel) -> None:
            await ztunnel.snapshot(set())
            assert ztunnel._readiness()[0] == 200
            with pytest.raises(PeerError, match="is not in the view"):
                await ztunnel.add("u1", "default", "server", os.open(f"/proc/{pod.pid}/ns/net", os.O_RDONLY))
            failed_s = loop.time()
            assert ztunnel._readiness()[0] == 500
            view.write_text(json.dumps(whole))
            ztunnel.reload_view()
            await asyncio.sleep(4.5)
            assert ztunnel._readiness()[0] == 500
            await asyncio.sleep(1.0)
            assert ztunnel._readiness()[0] == 200
            assert loop.time() - failed_s < 6.0

        try:
            run_ztunnel(loop, folder, "server", body, view=view, workload=None, uds=folder / "no-agent.sock")
        finally:
            pod.kill()
