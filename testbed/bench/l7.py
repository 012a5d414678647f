"""What an L7 hop costs: sidecars (HTTP/1.1 and HTTP/2 between them) and a waypoint, ours beside Envoy.

Everything is on loopback: client → proxy → mTLS → proxy → application, or client → ztunnel → waypoint → ztunnel →
application with our ztunnels around either waypoint. Per round and role both implementations are saturated with
keep-alive connections, taking turns several times, then each is called at 400/s in an open loop. Small GETs; CPU is the
process's own clock.
The added latency is over a direct call in the same round.
"""

from __future__ import annotations

import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from testbed.bench.compared import Rows, table
from testbed.bench.l7config import HOST, WAYPOINT_URI, Net, proxy_config, write_config
from testbed.bench.l7load import Chain, open_loop, post, saturate
from testbed.bench.loopback import (
    CLIENT_URI,
    SERVER_URI,
    TRUST_DOMAIN,
    envoy_binary,
    pss_mb,
    wait_for_port,
    write_certificates,
)

OPEN_LOOP_PER_S = 400


# -- chains of processes


ROLES = ("sidecar http/1.1", "sidecar http/2", "waypoint")


def _ours(folder: Path, role: str, name: str, config: dict) -> subprocess.Popen[bytes]:
    home = folder / f"{config['role']}-{name}-{config['options']['address']}"
    file = write_config(folder, home, config)
    return subprocess.Popen([sys.executable, "-m", f"planes.{role}", "--config", str(file)])


def _envoy(folder: Path, name: str, config: dict) -> subprocess.Popen[bytes]:
    file = folder / f"envoy-{name}.json"
    file.write_text(json.dumps(config))
    argv = [str(envoy_binary()), "-c", str(file), "--disable-hot-restart", "--concurrency", "1", "-l", "error"]
    return subprocess.Popen(argv)


def _sidecars(folder: Path, implementation: str, net: Net, *, http2: bool = False, protocol: str = "http") -> Chain:
    if implementation == "envoy":
        make = import_module("planes.envoy.loopback")
        server = _envoy(folder, f"server-{net.server}", make.sidecar_inbound(
            make.identity(SERVER_URI, folder, "server"), listen=(net.server, 15006), trust_domain=TRUST_DOMAIN,
            application=(net.server, 8080),
        ))  # fmt: skip
        client = _envoy(folder, f"client-{net.client}", make.sidecar_outbound(
            make.identity(CLIENT_URI, folder, "client"), listen=(net.client, 15001), host=HOST,
            dial=(net.server, 15006), expected=SERVER_URI, http2=http2,
        ))  # fmt: skip
    else:
        # Nothing captures on loopback: the client's side is told that the service's port is the server's 15006.
        server = _ours(folder, "sidecar", "server", proxy_config(
            net, "sidecar", "server", target_port=8080, protocol=protocol, original_destination=[net.server, 8080]
        ))  # fmt: skip
        client = _ours(folder, "sidecar", "client", proxy_config(
            net, "sidecar", "client", target_port=15006, protocol=protocol, original_destination=[net.vip, 80],
            http2_upstream=http2,
        ))  # fmt: skip
    return Chain(
        target=(net.client, 15001), measured={"out": client.pid, "in": server.pid}, processes=[server, client]
    )


def _waypoint(folder: Path, implementation: str, net: Net) -> Chain:
    if implementation == "envoy":
        make = import_module("planes.envoy.loopback")
        waypoint = _envoy(folder, f"waypoint-{net.waypoint}", make.waypoint(
            make.identity(WAYPOINT_URI, folder, "waypoint"), listen=(net.waypoint, 15008), authority=f"{net.vip}:80",
            trust_domain=TRUST_DOMAIN, target=f"{net.server}:8080", dial=(net.server, 15008), expected=SERVER_URI,
        ))  # fmt: skip
    else:
        waypoint = _ours(folder, "waypoint", "waypoint", proxy_config(
            net, "waypoint", "waypoint", target_port=8080
        ))  # fmt: skip
    around = [
        _ours(folder, "ztunnel", "server", proxy_config(net, "ztunnel", "server", target_port=8080)),
        _ours(folder, "ztunnel", "client", proxy_config(
            net, "ztunnel", "client", target_port=8080, original_destination=[net.vip, 80]
        )),
    ]  # fmt: skip
    return Chain(target=(net.client, 15001), measured={"waypoint": waypoint.pid}, processes=[waypoint, *around])


@contextlib.contextmanager
def chain(folder: Path, implementation: str, role: str, net: Net) -> Iterator[Chain]:
    """A role of an implementation, started and ready; its application is the caller's, on port 8080 of `net.server`."""
    made = None
    try:
        if role == "waypoint":
            made = _waypoint(folder, implementation, net)
        elif role == "sidecar tcp":
            made = _sidecars(folder, implementation, net, protocol="tcp")
        else:
            made = _sidecars(folder, implementation, net, http2=role.endswith("2"))
        wait_for_port(made.target)
        if role == "waypoint":
            wait_for_port((net.waypoint, 15008))
            wait_for_port((net.server, 15008))
        else:
            wait_for_port((net.server, 15006))
        yield made
    finally:
        for process in made.processes if made is not None else ():
            process.kill()
            process.wait()


@contextlib.contextmanager
def application(net: Net) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", "testbed.bench.l7load", net.server, "8080"])
    try:
        wait_for_port((net.server, 8080))
        yield
    finally:
        process.kill()
        process.wait()


# -- rounds


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    role: str
    implementation: str
    requests_per_s: float
    us: dict[str, float]
    added_p50_ms: float
    bulk_mb_per_s: float
    bulk_us: dict[str, float]
    pss_mb: dict[str, float]


def run(
    *, rounds: int = 3, window_s: float = 1.5, connections: int = 16, roles: tuple[str, ...] = ROLES,
    implementations: tuple[str, ...] = ("meshbed", "envoy"), megabytes: int = 128,
) -> list[Reading]:  # fmt: skip
    uvloop = import_module("uvloop")
    if envoy_binary() is None:
        implementations = tuple(i for i in implementations if i != "envoy")
    readings: list[Reading] = []
    with tempfile.TemporaryDirectory(prefix="meshbed-bench-") as text, contextlib.ExitStack() as stack:
        folder = Path(text)
        write_certificates(folder, {"client": CLIENT_URI, "server": SERVER_URI, "waypoint": WAYPOINT_URI})
        pairs = [(role, implementation) for role in roles for implementation in implementations]
        running = {}
        for number, pair in enumerate(pairs):
            net = Net.of(f"127.79.{1 + number}")
            stack.enter_context(application(net))
            running[pair] = stack.enter_context(chain(folder, pair[1], pair[0], net))
        time.sleep(0.5)
        idle = {pair: {k: pss_mb(pid) for k, pid in held.measured.items()} for pair, held in running.items()}
        direct = (Net.of("127.79.1").server, 8080)
        for number in range(rounds):
            base_ms = uvloop.run(open_loop(direct, rate_per_s=OPEN_LOOP_PER_S, window_s=window_s))
            for role in random.sample(roles, len(roles)):
                chains = [running[role, implementation] for implementation in implementations]
                saturated = uvloop.run(saturate(chains, connections=connections, window_s=window_s))
                figures = dict(zip(implementations, saturated, strict=True))
                for implementation in random.sample(implementations, len(implementations)):
                    held, (rps, us) = running[role, implementation], figures[implementation]
                    p50_ms = uvloop.run(open_loop(held.target, rate_per_s=OPEN_LOOP_PER_S, window_s=window_s))
                    speed, bulk_us = post(held, megabytes)
                    print(f"round {number + 1}/{rounds} {role} {implementation}: {rps:,.0f} rps, "
                          f"{', '.join(f'{k} {v:.1f}' for k, v in us.items())} µs, p50 {p50_ms:.3f} ms "
                          f"(direct {base_ms:.3f}), {speed:,.0f} MB/s", file=sys.stderr)  # fmt: skip
                    readings.append(
                        Reading(
                            role=role, implementation=implementation, requests_per_s=rps, us=us,
                            added_p50_ms=p50_ms - base_ms, bulk_mb_per_s=speed, bulk_us=bulk_us,
                            pss_mb=idle[role, implementation],
                        )
                    )  # fmt: skip
    return readings


def rows(readings: list[Reading]) -> Rows:
    """Per role and process, in the order of `ROLES`."""
    found: Rows = {}

    def add(role: str, quantity: str, value: Callable[[Reading], float]) -> None:
        for reading in readings:
            if reading.role == role:
                found.setdefault((role, quantity), {}).setdefault(reading.implementation, []).append(value(reading))

    for role in (role for role in ROLES if any(r.role == role for r in readings)):
        add(role, "requests/s, saturated", lambda r: r.requests_per_s)
        for name in next(r for r in readings if r.role == role).us:
            add(role, f"{name}: CPU µs/request", lambda r, name=name: r.us[name])
            add(role, f"{name}: CPU µs/MiB", lambda r, name=name: r.bulk_us[name])
            add(role, f"{name}: idle PSS MB", lambda r, name=name: r.pss_mb[name])
        add(role, f"added p50 at {OPEN_LOOP_PER_S}/s, ms", lambda r: r.added_p50_ms)
        add(role, "one request body, MB/s", lambda r: r.bulk_mb_per_s)
    return found


def main(arguments: list[str]) -> None:
    rounds = int(arguments[0]) if arguments else 3
    roles = tuple(r for r in ROLES if not arguments[1:2] or arguments[1] in r)
    implementations = tuple(arguments[2].split(",")) if arguments[2:3] else ("meshbed", "envoy")
    print(table(rows(run(rounds=rounds, roles=roles, implementations=implementations))))


if __name__ == "__main__":
    main(sys.argv[1:])
