"""What a ztunnel costs: CPU per request and per MiB, idle memory, bulk speed, ours beside Envoy in its role.

Everything is on loopback: client → outbound proxy → mTLS/HBONE → inbound proxy → echo. Rounds are interleaved over the
implementations; CPU is the processes' own clock, so a noisy machine moves it little. One connection's bulk speed counts
bytes in one direction.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from testbed.bench.compared import Rows
from testbed.bench.loopback import (
    CLIENT_URI,
    SERVER_URI,
    TRUST_DOMAIN,
    cpu_s,
    envoy_binary,
    local_view,
    pss_mb,
    wait_for_port,
    write_certificates,
    ztunnel_config,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    implementation: str
    requests_per_s: float
    outbound_us: float
    inbound_us: float
    outbound_pss_mb: float
    inbound_pss_mb: float
    bulk_gbit: float
    outbound_bulk_us: float
    """CPU per MiB through one connection: it moves less than the speed does when neighbours take the cores."""
    inbound_bulk_us: float


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.sink = False

    def data_received(self, data: bytes) -> None:
        if self.sink or data[:4] == b"SINK":
            self.sink = True
            self.got = getattr(self, "got", 0) + len(data)
        else:
            self.transport.write(data)

    def eof_received(self) -> bool:
        if self.sink:
            self.transport.write(str(self.got).encode())
            self.transport.write_eof()
        return False


class _Caller(asyncio.Protocol):
    def __init__(self, message: bytes, counted: list[int]) -> None:
        self.message, self.counted, self.got = message, counted, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.transport.write(self.message)

    def data_received(self, data: bytes) -> None:
        self.got += len(data)
        if self.got >= len(self.message):
            self.got = 0
            self.counted[0] += 1
            self.transport.write(self.message)


async def saturate(
    target: tuple[str, int], pids: tuple[int, int], *, connections: int, size: int, window_s: float
) -> tuple[float, float, float]:
    """(requests per second, µs of outbound CPU per request, µs of inbound CPU per request), closed loop."""
    loop = asyncio.get_running_loop()
    counted = [0]
    made = [await loop.create_connection(lambda: _Caller(b"x" * size, counted), *target) for _ in range(connections)]
    await asyncio.sleep(0.7)
    start, before, began_s = counted[0], [cpu_s(pid) for pid in pids], loop.time()
    await asyncio.sleep(window_s)
    requests, spent_s = counted[0] - start, loop.time() - began_s
    used = [cpu_s(pid) - was for pid, was in zip(pids, before, strict=True)]
    for transport, _ in made:
        transport.abort()
    await asyncio.sleep(0.2)
    if not requests:
        raise RuntimeError(f"no request came back from {target}")
    return requests / spent_s, used[0] / requests * 1e6, used[1] / requests * 1e6


def bulk(target: tuple[str, int], pids: tuple[int, int], megabytes: int) -> tuple[float, float, float]:
    """(Gbit/s, µs of outbound CPU per MiB, µs of inbound CPU per MiB)."""
    before = [cpu_s(pid) for pid in pids]
    gbit = bulk_gbit(target, megabytes)
    used = [(cpu_s(pid) - was) / megabytes * 1e6 for pid, was in zip(pids, before, strict=True)]
    return gbit, used[0], used[1]


def bulk_gbit(target: tuple[str, int], megabytes: int) -> float:
    chunk = b"SINK" + b"y" * ((1 << 18) - 4)
    with socket.create_connection(target) as sock:
        began_s = time.perf_counter()
        for _ in range(megabytes * 4):
            sock.sendall(chunk)
        sock.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: sock.recv(100), b""))
        spent_s = time.perf_counter() - began_s
    if answer != str(megabytes << 20).encode():
        raise RuntimeError(f"bulk: sent {megabytes << 20} bytes, the sink counted {answer!r}")
    return (megabytes << 23) / spent_s / 1e9


def serve_echo(address: str, port: int) -> None:
    uvloop = import_module("uvloop")
    loop = uvloop.new_event_loop()
    loop.run_until_complete(loop.create_server(Echo, address, port))
    loop.run_forever()


def _start(folder: Path, implementation: str, base: int) -> tuple[list[subprocess.Popen[bytes]], tuple[str, int]]:
    """Outbound and inbound proxy of one implementation; returns them and where a client connects."""
    client, server = f"127.77.{base}.1", f"127.77.{base}.2"
    view = local_view(client, server)
    processes = []
    if implementation == "envoy":
        make = import_module("planes.envoy.hbone")
        binary = envoy_binary()
        assert binary is not None
        configs = {
            "server": make.server_config(
                listen=(server, 15008), authorities=[f"{server}:8080"], folder=folder, name="server",
                trust_domain=TRUST_DOMAIN,
            ),
            "client": make.client_config(
                listen=(client, 15001), authority=f"{server}:8080", dial=(server, 15008), folder=folder, name="client",
                expected=SERVER_URI,
            ),
        }  # fmt: skip
        for name, config in configs.items():
            file = folder / f"envoy-{name}.json"
            file.write_text(json.dumps(config))
            argv = [str(binary), "-c", str(file), "--disable-hot-restart", "--concurrency", "1", "-l", "error"]
            processes.append(subprocess.Popen(argv))
    else:
        for name, address in (("server", server), ("client", client)):
            home = folder / f"{implementation}-{name}"
            home.mkdir(exist_ok=True)
            for file in folder.glob("*.pem"):
                home.joinpath(file.name).write_bytes(file.read_bytes())
            home.joinpath(f"{name}.key").write_bytes(folder.joinpath(f"{name}.key").read_bytes())
            config = ztunnel_config(name, address, view, (server, 8080) if name == "client" else None)
            home.joinpath("config.json").write_text(json.dumps(config))
            argv = [sys.executable, "-m", "planes.ztunnel", "--config", str(home / "config.json")]
            processes.append(subprocess.Popen(argv))
    processes.append(
        subprocess.Popen([sys.executable, "-m", "testbed.bench.l4", "echo", server, "8080"])
    )
    try:
        for address in ((server, 8080), (server, 15008), (client, 15001)):
            wait_for_port(address)
    except OSError:
        for process in processes:
            process.kill()
            process.wait()
        raise
    return processes, (client, 15001)


def run(*, rounds: int = 5, window_s: float = 2.0, connections: int = 16, size: int = 128) -> list[Reading]:
    implementations = ["meshbed"] + (["envoy"] if envoy_binary() is not None else [])
    readings: list[Reading] = []
    running: dict[str, tuple[list[subprocess.Popen[bytes]], tuple[str, int]]] = {}
    with tempfile.TemporaryDirectory(prefix="meshbed-bench-") as text:
        folder = Path(text)
        write_certificates(folder, {"client": CLIENT_URI, "server": SERVER_URI})
        try:
            for number, name in enumerate(implementations):
                running[name] = _start(folder, name, 10 + number)
            time.sleep(0.5)
            idle = {name: [pss_mb(p.pid) for p in held[0][:2]] for name, held in running.items()}
            for number in range(rounds):
                for name in random.sample(implementations, len(implementations)):
                    processes, target = running[name]
                    pids = (processes[1].pid, processes[0].pid)
                    rps, outbound, inbound = asyncio.run(
                        saturate(target, pids, connections=connections, size=size, window_s=window_s)
                    )
                    gbit, bulk_outbound, bulk_inbound = bulk(target, pids, 256)
                    print(f"round {number + 1}/{rounds} {name}: {rps:,.0f} rps, {outbound:.1f} + {inbound:.1f} µs, "
                          f"{gbit:.2f} Gbit/s at {bulk_outbound:,.0f} + {bulk_inbound:,.0f} µs/MiB",
                          file=sys.stderr)  # fmt: skip
                    readings.append(
                        Reading(
                            implementation=name, requests_per_s=rps, outbound_us=outbound, inbound_us=inbound,
                            outbound_pss_mb=idle[name][1], inbound_pss_mb=idle[name][0], bulk_gbit=gbit,
                            outbound_bulk_us=bulk_outbound, inbound_bulk_us=bulk_inbound,
                        )
                    )  # fmt: skip
        finally:
            for processes, _ in running.values():
                for process in processes:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
    return readings


def rows(readings: list[Reading]) -> Rows:
    found: Rows = {}
    for quantity, value in (
        ("requests/s, saturated", lambda r: r.requests_per_s),
        ("out: CPU µs/request", lambda r: r.outbound_us),
        ("out: CPU µs/MiB", lambda r: r.outbound_bulk_us),
        ("out: idle PSS MB", lambda r: r.outbound_pss_mb),
        ("in: CPU µs/request", lambda r: r.inbound_us),
        ("in: CPU µs/MiB", lambda r: r.inbound_bulk_us),
        ("in: idle PSS MB", lambda r: r.inbound_pss_mb),
        ("one long stream, MB/s", lambda r: r.bulk_gbit * 125),
    ):  # fmt: skip
        for reading in readings:
            found.setdefault(("ztunnel", quantity), {}).setdefault(reading.implementation, []).append(value(reading))
    return found


if __name__ == "__main__":
    _, address, port = sys.argv[1:]
    serve_echo(address, int(port))
