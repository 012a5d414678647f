"""Floods, slow peers and too many of them, at ztunnel, sidecar and waypoint, Envoy beside ours: `./inv bench.floods`.

All on loopback. For each role and attack: peak memory of the proxy, and the latency of another tenant's connection
before, during and after. Both sides of an attack share two cores with everything else, so a latency during one says
that others are served, not how fast a machine with more cores would be. Limits of each are in docs/floods.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from testbed.bench import l4, l7
from testbed.bench.floodattacks import ATTACKS, Plan, percentiles
from testbed.bench.l7config import HOST, WAYPOINT_URI, Net
from testbed.bench.loopback import (
    CLIENT_URI,
    SERVER_URI,
    TRUST_DOMAIN,
    cpu_s,
    envoy_binary,
    pss_mb,
    write_certificates,
)

ROLES = ("ztunnel", "sidecar", "waypoint")
URIS = {
    "client": CLIENT_URI, "server": SERVER_URI, "waypoint": WAYPOINT_URI,
    "other": f"spiffe://{TRUST_DOMAIN}/ns/other/sa/other",
}  # fmt: skip
BEFORE_S, AFTER_S = 1.2, 1.2
SAMPLE_EVERY_S = 0.1
ONLY_AT = {"one byte": ("sidecar",), "idle": ROLES}
SEPARATE = ("idle",)
"""Not among the rest: it takes long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Under:
    """A proxy under attack."""

    pid: int
    address: tuple[str, int]
    authority: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    role: str
    implementation: str
    attack: str
    said: str
    connections: int
    sent_mb: float
    cpu_s: float
    """Of the proxy, while the attack went on."""
    pss_before_mb: float
    pss_peak_mb: float
    before_ms: tuple[float, float]
    during_ms: tuple[float, float]
    after_ms: tuple[float, float]
    """p50 and p99 of the other tenant."""
    lost: int
    """Of its calls, in the whole."""


@contextlib.contextmanager
def running(folder: Path, role: str, implementation: str, number: int) -> Iterator[Under]:
    if role == "ztunnel":
        base = 60 + number
        processes, _ = l4._start(folder, implementation, base)
        server = f"127.77.{base}.2"
        try:
            yield Under(pid=processes[0].pid, address=(server, 15008), authority=f"{server}:8080")
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return
    net = Net.of(f"127.78.{60 + number}")
    chain_role = "waypoint" if role == "waypoint" else "sidecar http/1.1"
    with l7.chain(folder, implementation, chain_role, net) as chain, l7.application(net):
        if role == "waypoint":
            yield Under(pid=chain.measured["waypoint"], address=(net.waypoint, 15008), authority=f"{net.vip}:80")
        else:
            yield Under(pid=chain.measured["in"], address=(net.server, 15006), authority="")


def _program(plan: Plan, **more: object) -> list[str]:
    return [sys.executable, "-m", "testbed.bench.floodattacks", json.dumps({**asdict(plan), **more})]


def attacked(under: Under, role: str, implementation: str, attack: str, folder: Path, plan_more: dict) -> Row:
    plan = Plan(role=role, attack=attack, address=under.address, authority=under.authority, host=HOST,
                folder=str(folder), **plan_more)  # fmt: skip
    other = subprocess.Popen(
        _program(plan, attack="victim", name="other"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    calls: list[tuple[float, float | None]] = []
    assert other.stdout is not None

    def listen() -> None:
        for line in other.stdout or ():
            at, _, told = line.partition(" ")
            calls.append((float(at), None if told.startswith("lost") else float(told)))

    listening = threading.Thread(target=listen, daemon=True)
    listening.start()
    try:
        give_up_s = time.monotonic() + 20
        while not calls and time.monotonic() < give_up_s:
            time.sleep(0.05)
        time.sleep(BEFORE_S)
        pss_before, cpu_before, began_s = pss_mb(under.pid), cpu_s(under.pid), time.monotonic()
        peak = pss_before
        attacker = subprocess.Popen(_program(plan), stdout=subprocess.PIPE, text=True)
        while attacker.poll() is None:
            peak = max(peak, pss_mb(under.pid))
            time.sleep(SAMPLE_EVERY_S)
        ended_s = time.monotonic()
        used_s = cpu_s(under.pid) - cpu_before
        assert attacker.stdout is not None
        outcome = json.loads(attacker.stdout.read() or '{"connections": 0, "bytes": 0, "said": {"attacker failed": 1}}')
        time.sleep(AFTER_S)
        peak = max(peak, pss_mb(under.pid))
    finally:
        other.kill()
        other.wait()
        listening.join(5)
    known = [(at, took) for at, took in calls if took is not None]

    def span(low_s: float, high_s: float) -> tuple[float, float]:
        p50, p99 = percentiles([took for at, took in known if low_s <= at < high_s])
        return round(p50, 2), round(p99, 2)

    said = ", ".join(f"{what} ×{many}" for what, many in outcome["said"].items() if many)
    return Row(
        role=role, implementation=implementation, attack=attack, said=said, connections=outcome["connections"],
        sent_mb=round(outcome["bytes"] / 1e6, 1), cpu_s=round(used_s, 2), pss_before_mb=round(pss_before, 1),
        pss_peak_mb=round(peak, 1), before_ms=span(0, began_s), during_ms=span(began_s, ended_s),
        after_ms=span(ended_s, 1e12), lost=len(calls) - len(known),
    )  # fmt: skip


def table(rows: list[Row]) -> str:
    lines = [
        "| at | of | attack | what the proxy did | connections, MB sent | its CPU s | its PSS MiB, peak | other tenant "
        "p50 / p99 ms before | during | after | lost |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        before, during, after = (f"{p50:.1f} / {p99:.1f}" for p50, p99 in (r.before_ms, r.during_ms, r.after_ms))
        lines.append(
            f"| {r.role} | {r.implementation} | {r.attack} | {r.said} | {r.connections}, {r.sent_mb:g} | {r.cpu_s:g} | "
            f"{r.pss_before_mb:.0f}, {r.pss_peak_mb:.0f} | {before} | {during} | {after} | {r.lost} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="floods and slow peers; some minutes")
    parser.add_argument("--role", nargs="*", default=ROLES, choices=ROLES)
    parser.add_argument("--of", nargs="*", default=["meshbed"] + (["envoy"] if envoy_binary() else []),
                        choices=("meshbed", "envoy"), help="implementations")  # fmt: skip
    parser.add_argument("--attack", nargs="*", default=[a for a in ATTACKS if a not in SEPARATE], choices=list(ATTACKS),
                        metavar="NAME", help=", ".join(ATTACKS))  # fmt: skip
    parser.add_argument("--seconds", type=float, default=4.0, help="of each flood (4)")
    parser.add_argument("--count", type=int, default=10_000, help="idle connections (10,000)")
    parser.add_argument("--json", action="store_true", help="a line of JSON a row")
    arguments = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="meshbed-floods-") as text:
        folder = Path(text)
        write_certificates(folder, URIS)
        number = 0
        for role in arguments.role:
            for implementation in arguments.of:
                for attack in arguments.attack:
                    if role not in ONLY_AT.get(attack, ROLES):
                        continue
                    number += 1
                    home = folder / str(number)
                    home.mkdir()
                    for file in (*folder.glob("*.pem"), *folder.glob("*.key")):
                        home.joinpath(file.name).symlink_to(file)
                    with running(home, role, implementation, number % 150) as under:
                        row = attacked(
                            under, role, implementation, attack, folder,
                            {"seconds": arguments.seconds, "count": arguments.count},
                        )  # fmt: skip
                    rows.append(row)
                    if arguments.json:
                        print(json.dumps(asdict(row)), flush=True)
                    else:
                        print(f"{role} {implementation} {attack}: {row.said}", file=sys.stderr, flush=True)
    if not arguments.json:
        print(table(rows))


if __name__ == "__main__":
    main()
