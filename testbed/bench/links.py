"""What links really do on this machine, beside what was asked: one table, in under a minute.

Accuracy idle and with all cores busy, TCP throughput, small packets a second (also when the wire stands still for a
moment, as a busy host makes it), 50 links in one wire process, jitter,
loss (independent and bursty), rate. Every figure is the median of repeats with their range. All in scratch
namespaces. "One-way" is from the near device to the far one, by the kernel's stamps (`links.oneway`); "RTT/2" is what
a program sees of a ping, less what was asked, halved: a bare veth pair (asked 0) has most of that as well. Other work
on the machine is in all of it (`stolen`: what the host took), so the tails are the neighbours'. Nothing is asserted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

from testbed.links import gauge, oneway
from testbed.links.devices import in_netns
from testbed.links.oneway import Flight
from testbed.links.scratch import ScratchLab
from testbed.links.wire import WireLinks
from testbed.model.topology import GilbertElliott, Impairment, Link, link_addresses
from testbed.seams import LiveLink, Progress

SHORT_DELAYS_MS = (0.0, 0.1)
"""Apart from the others: idle cores are kept awake for them, which would flatter the longer delays."""
DELAYS_MS = (0.5, 1.0, 5.0, 20.0, 100.0)
TCP_DELAYS_MS = (0.1, 5.0)
OFFERED_PPS = ((75_000, 0.0), (75_000, 0.1), (100_000, 0.0))
"""And for how long the wire stands still meanwhile."""
LINKS = 50
REPEATS = 3
PROBES = 80
SPACING_S = 0.0053
"""Does not divide any of the delays: a period that does makes each send meet a delivery."""
TCP_S, UDP_S = 1.2, 0.7
CHAIN = GilbertElliott(p=0.01, r=0.2, loss_bad=1.0, loss_good=0.0)
LOSS, JITTER_MS, JITTER_DELAY_MS = 0.02, 1.0, 20.0
RATES_MBIT = (10.0, 100.0)
FRAME_OVERHEAD_BYTES = 42
"""Ethernet, IPv4 and UDP headers."""
SEND_TCP = """
import socket, sys, time
sock, until = socket.socket(fileno=int(sys.argv[1])), time.monotonic() + float(sys.argv[2])
block = bytes(1 << 20)
while time.monotonic() < until:
    sock.sendall(block)
"""
SEND_UDP = """
import socket, sys, time
sock, until, rate = socket.socket(fileno=int(sys.argv[1])), time.monotonic() + float(sys.argv[2]), float(sys.argv[3])
frame, start, sent, send = bytes(22), time.monotonic(), 0, sock.send
while (now := time.monotonic()) < until:
    due = int((now - start) * rate) - sent
    for _ in range(due):
        send(frame)
    sent += due
    time.sleep(0.0002)
print(sent)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    quantity: str
    case: str
    asked: str
    unit: str
    median: float
    low: float
    high: float
    repeats: int


def row(quantity: str, case: str, asked: str, unit: str, values: Sequence[float]) -> Row:
    return Row(
        quantity=quantity, case=case, asked=asked, unit=unit, repeats=len(values),
        median=statistics.median(values), low=min(values), high=max(values),
    )  # fmt: skip


def delayed(*delays_ms: float) -> list[Link]:
    """One link a delay, from node a<n> to b<n>."""
    return [linked(number, Impairment(delay_ms=delay_ms)) for number, delay_ms in enumerate(delays_ms)]


def linked(number: int, forth: Impairment, back: Impairment | None = None) -> Link:
    mine, theirs = link_addresses(number)
    return Link(
        a=f"a{number}",
        b=f"b{number}",
        a_address=mine,
        b_address=theirs,
        a_to_b=forth,
        b_to_a=forth if back is None else back,
    )


@contextlib.contextmanager
def wired(links: Sequence[Link], *, calibrated: bool = True) -> Iterator[tuple[ScratchLab, WireLinks, list[LiveLink]]]:
    maker = WireLinks(calibrated=calibrated)
    nodes = sorted({node for link in links for node in (link.a, link.b)})
    with ScratchLab(nodes) as lab, contextlib.closing(maker):
        yield lab, maker, maker.join(lab, links)


def accuracy(*, calibrated: bool, busy: bool) -> list[Row]:
    rows = []
    for delays_ms in (SHORT_DELAYS_MS, DELAYS_MS):
        links = delayed(*delays_ms)
        found: dict[tuple[str, float], list[float]] = {}
        with (
            wired(links, calibrated=calibrated) as (lab, _, _),
            busy_cores() if busy else contextlib.nullcontext(),
        ):
            gauge.probe(lab, links, probes=20)
            for _ in range(REPEATS):
                flights = oneway.fly(lab, links, count=PROBES, spacing_s=SPACING_S * len(links) / 2)
                probed = gauge.probe(lab, links, probes=PROBES)
                for delay_ms, flown, its in zip(delays_ms, flights, probed, strict=True):
                    errors = oneway.errors_us(flown, delay_ms)
                    halves = sorted((rtt / 1000 - 2 * delay_ms * 1000) / 2 for rtt in its.rtts_ns)
                    for what, value in (
                        ("one-way error p50", gauge.percentile(errors, 0.5)),
                        ("one-way error p90", gauge.percentile(errors, 0.9)),
                        ("RTT/2 error p50", gauge.percentile(halves, 0.5)),
                    ):
                        found.setdefault((what, delay_ms), []).append(value)
        case = ("all cores busy" if busy else "idle") + ("" if calibrated else ", uncalibrated")
        rows += [
            row(what, case, f"{delay_ms:g} ms" if delay_ms else "0 (bare veth)", "us", values)
            for (what, delay_ms), values in found.items()
        ]
    return rows


def throughput(delay_ms: float) -> float:
    """Gbit/s of one TCP flow's payload, after the first third."""
    with wired(delayed(delay_ms)) as (lab, _, live):
        for node in ("a0", "b0"):
            inside(lab, node, _large_windows)
        address = (live[0].link.b_address, 7000)
        with (
            inside(lab, "b0", lambda: socket.create_server(address)) as server,
            inside(lab, "a0", lambda: socket.create_connection(address, timeout=10)) as client,
        ):
            peer, _ = server.accept()
            client.settimeout(None)
            sender = _start(SEND_TCP, client, TCP_S)
            client.close()
            buffer, marks, received = bytearray(1 << 20), [], 0
            with peer:
                while count := peer.recv_into(buffer):
                    received += count
                    marks.append((time.monotonic(), received))
            sender.wait()
    start_s, end_s = marks[0][0], marks[-1][0]
    first = next(mark for mark in marks if mark[0] >= start_s + (end_s - start_s) / 3)
    return (received - first[1]) * 8 / (end_s - first[0]) / 1e9


def small_packets(offered_pps: int, delay_ms: float = 5.0, stall_s: float = 0.0) -> tuple[float, float, float]:
    """Of 64-byte frames, counted as they leave a and as they reach b: delivered per second, lost in percent; and how
    late the wire read one at the worst, in ms. Amid them the wire is stopped for `stall_s`, as a host may do.
    """
    with wired(delayed(delay_ms)) as (lab, maker, live):
        address = (live[0].link.b_address, 7000)
        with (
            inside(lab, "b0", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sink,
            inside(lab, "a0", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as source,
        ):
            sink.bind(address)
            source.connect(address)
            sender = _start(SEND_UDP, source, UDP_S, offered_pps)
            if stall_s:
                time.sleep(UDP_S / 3)
                _stop(maker.status()[0]["pid"], stall_s)
            sent = int(sender.communicate()[0])
            time.sleep(0.1)
            reached = inside(lab, "b0", lambda: _received_frames("to-a0"))
        late_ms = live[0].counters()["a_to_b"]["latest_us"] / 1000
    return reached / UDP_S, 100 * (1 - reached / sent), late_ms


def _stop(pid: int, for_s: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(for_s)
    finally:
        os.kill(pid, signal.SIGCONT)


def many_links() -> list[Row]:
    links = delayed(*[5.0] * LINKS)
    errors, worst, core, lost = [], [], [], []
    with wired(links) as (lab, maker, _):
        gauge.probe(lab, links, probes=5)
        for _ in range(REPEATS):
            before_s, start_s = maker.status()[0]["cpu_s"], time.monotonic()
            probed = gauge.probe(lab, links, probes=50)
            took_s = time.monotonic() - start_s - gauge.GRACE_S
            core.append(100 * (maker.status()[0]["cpu_s"] - before_s) / took_s)
            each = [sorted((rtt / 1000 - 10_000) / 2 for rtt in one.rtts_ns) for one in probed]
            errors.append(gauge.percentile(sorted(error for one in each for error in one), 0.5))
            worst.append(max((gauge.percentile(one, 0.5) for one in each), key=abs))
            lost.append(100 * (1 - sum(map(len, each)) / sum(one.sent for one in probed)))
        processes = len(maker.status())
    case = f"{LINKS} links, {processes} process, 5,000 frames/s"
    return [
        row("RTT/2 error p50, all links", case, "5 ms", "us", errors),
        row("RTT/2 error p50, worst link", case, "5 ms", "us", worst),
        row("wire process", case, "", "% of a core", core),
        row("lost", case, "0", "%", lost),
    ]


def impairments() -> list[Row]:
    delay = Impairment(delay_ms=1.0)
    links = [
        linked(0, Impairment(delay_ms=1.0, loss=LOSS), delay),
        linked(1, Impairment(delay_ms=1.0, gilbert_elliott=CHAIN), delay),
        linked(2, Impairment(delay_ms=JITTER_DELAY_MS, jitter_ms=JITTER_MS), delay),
    ]
    found: dict[str, list[float]] = {}
    with wired(links) as (lab, _, _):
        for _ in range(REPEATS):
            independent, bursty = oneway.fly(lab, links[:2], count=2000, spacing_s=0.0005)
            # Further apart than six sigma: closer frames keep their order at the cost of the spread.
            (jittered,) = oneway.fly(lab, links[2:], count=150, spacing_s=0.0067)
            found.setdefault("loss", []).append(lost_percent(independent))
            found.setdefault("bursty", []).append(lost_percent(bursty))
            found.setdefault("burst", []).append(mean_burst(bursty))
            delays_ms = [error / 1000 for error in oneway.errors_us(jittered, 0.0)]
            found.setdefault("median", []).append(statistics.median(delays_ms))
            found.setdefault("spread", []).append(statistics.stdev(delays_ms))
    expected = CHAIN.p / (CHAIN.p + CHAIN.r)
    chain = f"Gilbert-Elliott p {CHAIN.p:g} r {CHAIN.r:g}"
    jitter = f"{JITTER_DELAY_MS:g} ms, jitter {JITTER_MS:g} ms"
    rows = [
        row("loss", "independent, 2,000 frames", f"{100 * LOSS:g} %", "%", found["loss"]),
        row("loss", f"{chain}, 2,000 frames", f"{100 * expected:.2f} %", "%", found["bursty"]),
        row("burst length, mean", chain, f"{1 / CHAIN.r:g}", "frames", found["burst"]),
        row("one-way delay p50", jitter, f"{JITTER_DELAY_MS:g} ms", "ms", found["median"]),
        row("one-way standard deviation", jitter, f"{JITTER_MS:g} ms", "ms", found["spread"]),
    ]
    return rows + [row("rate on the wire", "burst of 1 KB frames", f"{mbit:g} Mbit/s", "Mbit/s",
                       [rate_mbit(mbit) for _ in range(REPEATS)]) for mbit in RATES_MBIT]  # fmt: skip


def rate_mbit(asked_mbit: float) -> float:
    count, payload = (80 if asked_mbit < 50 else 300), 1000
    link = linked(0, Impairment(rate_mbit=asked_mbit, queue_ms=200), Impairment())
    with wired([link]) as (lab, _, _):
        arrived_ns = oneway.burst(lab, link, count=count, payload_bytes=payload)
    return (len(arrived_ns) - 1) * (payload + FRAME_OVERHEAD_BYTES) * 8e3 / (arrived_ns[-1] - arrived_ns[0])


def lost_percent(flights: Sequence[Flight]) -> float:
    return 100 * sum(flight.arrived_ns is None for flight in flights) / len(flights)


def mean_burst(flights: Sequence[Flight]) -> float:
    """Lost frames by runs of them; 0 when none was lost."""
    lost = [flight.arrived_ns is None for flight in flights]
    starts = sum(now and not before for before, now in zip([False, *lost], lost, strict=False))
    return sum(lost) / starts if starts else 0.0


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """One endless loop per core; they end with this block, and by themselves after two minutes."""
    loop = "import time\nend = time.monotonic() + 120\nwhile time.monotonic() < end: pass"
    loops = [subprocess.Popen([sys.executable, "-c", loop]) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for one in loops:
            one.kill()
            one.wait()


def inside(lab: ScratchLab, node: str, work: Callable[[], socket.socket]) -> socket.socket:
    netns = lab.open_netns(node)
    try:
        return in_netns(netns, work)
    finally:
        os.close(netns)


def _start(program: str, sock: socket.socket, *arguments: float) -> subprocess.Popen[str]:
    argv = [sys.executable, "-I", "-c", program, str(sock.fileno()), *map(str, arguments)]
    return subprocess.Popen(argv, pass_fds=[sock.fileno()], stdout=subprocess.PIPE, text=True)


def _large_windows() -> None:
    """The default of 6 MB is 4.8 Gbit/s at an RTT of 10 ms: the sender's limit, not the wire's."""
    for name in ("tcp_rmem", "tcp_wmem"):
        with open(f"/proc/sys/net/ipv4/{name}", "w") as setting:
            setting.write("4096 131072 67108864")


def _received_frames(device: str) -> int:
    with open("/proc/thread-self/net/dev") as table:
        row = next(line for line in table if line.strip().startswith(device + ":"))
    return int(row.split(":")[1].split()[1])


def stolen_ticks() -> tuple[int, int]:
    """CPU time that the host gave to others, and all CPU time, since the boot."""
    with open("/proc/stat") as stat:
        ticks = [int(field) for field in stat.readline().split()[1:9]]
    return ticks[7], sum(ticks)


def run(progress: Progress, *, calibrated: bool = True) -> dict:
    start_s, (stolen, ticks) = time.monotonic(), stolen_ticks()
    rows: list[Row] = []

    def done(what: str, more: Sequence[Row]) -> None:
        rows.extend(more)
        progress(f"{what}, {time.monotonic() - start_s:.0f} s")

    with wired(delayed(1.0)) as (_, maker, _):
        scheduling = maker.status()[0]["scheduling"]
    done("idle", accuracy(calibrated=calibrated, busy=False))
    done("all cores busy", accuracy(calibrated=calibrated, busy=True))
    for delay_ms in TCP_DELAYS_MS:
        values = [throughput(delay_ms) for _ in range(REPEATS)]
        done("TCP", [row("TCP, one flow", "idle", f"{delay_ms:g} ms", "Gbit/s", values)])
    for pps, stall_s in OFFERED_PPS:
        repeats = [small_packets(pps, stall_s=stall_s) for _ in range(REPEATS)]
        delivered, lost, late_ms = zip(*repeats, strict=True)
        case = f"64-byte frames, {pps:,}/s offered" + (f", wire stopped for {stall_s * 1000:g} ms" if stall_s else "")
        done(
            "small packets",
            [
                row("delivered", case, "5 ms", "1/s", delivered),
                row("lost", case, "0", "%", lost),
                row("read late at the worst", case, f"{stall_s * 1000:g} ms", "ms", late_ms),
            ],
        )
    done("many links", many_links())
    done("impairments", impairments())
    stolen_after, ticks_after = stolen_ticks()
    return {
        "machine": {"kernel": platform.release(), "cores": os.cpu_count(), "load": os.getloadavg()[0]},
        "stolen": (stolen_after - stolen) / max(1, ticks_after - ticks),
        "scheduling": scheduling,
        "calibrated": calibrated,
        "took_s": time.monotonic() - start_s,
        "rows": [asdict(one) for one in rows],
    }


def table(result: dict) -> str:
    machine = result["machine"]
    lines = [
        f"wire, scheduling {result['scheduling']}, kernel {machine['kernel']}, {machine['cores']} cores, load "
        f"{machine['load']:.1f}, {result['stolen']:.1%} of CPU time stolen, {result['took_s']:.0f} s; "
        f"median of {REPEATS} repeats and their range",
        "",
        "| quantity | case | asked | measured | range | unit |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r['quantity']} | {r['case']} | {r['asked']} | {r['median']:.4g} | {r['low']:.4g} … {r['high']:.4g} "
        f"| {r['unit']} |".replace("| -0 |", "| 0 |")
        for r in result["rows"]
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="measures the wire on this machine; about a minute, as root")
    parser.add_argument("--json", action="store_true", help="figures for programs")
    parser.add_argument("--uncalibrated", action="store_true", help="without taking the wire's own lateness off")
    arguments = parser.parse_args()
    result = run(lambda line: print(line, file=sys.stderr, flush=True), calibrated=not arguments.uncalibrated)
    print(json.dumps(result, indent=1) if arguments.json else table(result))


if __name__ == "__main__":
    main()
