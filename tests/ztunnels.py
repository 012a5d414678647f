"""A pair of ztunnel programs on loopback, of a test's own: it may stop, starve or fill them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from testbed.bench.loopback import CLIENT_URI, SERVER_URI, local_view, write_certificates, ztunnel_config
from tests.loopback import ENV, ROOT

_numbers = itertools.count(1)


@dataclass
class Pair:
    folder: Path
    client: str
    server: str
    outbound: subprocess.Popen[bytes]
    inbound: subprocess.Popen[bytes]

    def connect(self) -> socket.socket:
        """As the client's application."""
        return socket.create_connection((self.client, 15001), timeout=10)


def wait_for(condition: Callable[[], bool], within_s: float = 15.0) -> None:
    give_up_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_s, "condition not met in time"
        time.sleep(0.05)


def listening(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address, timeout=1).close()
    except OSError:
        return False
    return True


def ready(address: str) -> bool:
    """Asked without touching the data path: a probing connection to it would be a tunnel like any other."""
    try:
        with urllib.request.urlopen(f"http://{address}:15021/healthz/ready", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@contextlib.contextmanager
def pair(folder: Path, *, env: dict[str, str] | None = None, **options: object) -> Iterator[Pair]:
    """The application is the test's: it listens on `server`:8080 before or after."""
    number = next(_numbers)
    net = f"127.{140 + os.getpid() % 100}.{os.getpid() // 100 % 200 + number}"
    client, server = f"{net}.1", f"{net}.2"
    write_certificates(folder, {"client": CLIENT_URI, "server": SERVER_URI})
    view = local_view(client, server)
    processes = []
    for name, address in (("client", client), ("server", server)):
        home = folder / name
        home.mkdir()
        for file in (f"{name}.pem", f"{name}.key", "roots.pem"):
            home.joinpath(file).symlink_to(folder / file)
        config = ztunnel_config(name, address, view, (server, 8080) if name == "client" else None)
        config["options"] |= {"stats_port": 15020, "ready_port": 15021, "admin_address": address} | options
        home.joinpath("config.json").write_text(json.dumps(config))
        argv = [sys.executable, "-m", "planes.ztunnel", "--config", str(home / "config.json")]
        processes.append(subprocess.Popen(argv, cwd=ROOT, env={**ENV, **(env or {})}))
    try:
        wait_for(lambda: ready(server) and ready(client))
        yield Pair(folder, client, server, *processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def rss_kib(pid: int) -> int:
    line = next(t for t in Path(f"/proc/{pid}/status").read_text().splitlines() if t.startswith("VmRSS"))
    return int(line.split()[1])
