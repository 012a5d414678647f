"""What the wire reaches on this machine: accuracy asked/measured, idle and busy; throughput; packets a second; 50
links at once.

All in scratch namespaces. Errors are half of the round trip's, achieved minus asked, in microseconds; other work on
the machine is in them, so medians count and the tails are the neighbours'. Nothing is asserted here.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

from testbed.links import gauge
from testbed.links.calibrate import cached_bias_ns
from testbed.links.devices import in_netns
from testbed.links.scratch import ScratchLab
from testbed.links.wire import WireLinks
from testbed.model.topology import Impairment, Link, link_addresses
from testbed.seams import LiveLink, Progress

DELAYS_MS = (0.1, 0.5, 1.0, 5.0, 20.0, 100.0)
TCP_DELAYS_MS = (0.1, 5.0)
OFFERED_PPS = (50_000, 75_000, 100_000, 150_000)
LINKS = 50
PROBES = 300
TCP_S, UDP_S = 3.0, 1.5
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


def pair(delay_ms: float) -> Link:
    mine, theirs = link_addresses(0)
    delay = Impairment(delay_ms=delay_ms)
    return Link(a="a", b="b", a_address=mine, b_address=theirs, a_to_b=delay, b_to_a=delay)


@contextlib.contextmanager
def wired(delay_ms: float, *, calibrated: bool = True) -> Iterator[tuple[ScratchLab, WireLinks, LiveLink]]:
    maker = WireLinks(calibrated=calibrated)
    with ScratchLab(["a", "b"]) as lab, contextlib.closing(maker):
        yield lab, maker, maker.join(lab, [pair(delay_ms)])[0]


def errors_us(rtts_ns: list[int], asked_rtt_ms: float) -> list[float]:
    return sorted((rtt / 1000 - asked_rtt_ms * 1000) / 2 for rtt in rtts_ns)


def accuracy(progress: Progress, *, calibrated: bool, busy: bool) -> list[dict]:
    rows = []
    with (
        wired(DELAYS_MS[0], calibrated=calibrated) as (lab, _, live),
        busy_cores() if busy else contextlib.nullcontext(),
    ):
        for delay_ms in DELAYS_MS:
            live.set(a_to_b=Impairment(delay_ms=delay_ms), b_to_a=Impairment(delay_ms=delay_ms))
            probed = gauge.probe(lab, [live.link], probes=PROBES)[0]
            errors = errors_us(probed.rtts_ns, 2 * delay_ms)
            row = {"delay_ms": delay_ms, "calibrated": calibrated, "busy": busy, "lost": probed.sent - len(errors)}
            row |= {f"p{share}_us": gauge.percentile(errors, share / 100) for share in (50, 90, 99)}
            rows.append(row)
            progress(f"{delay_ms:g} ms{' busy' if busy else ''}: p50 {row['p50_us']:.0f} us")
    return rows


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


def throughput(delay_ms: float) -> dict:
    """One TCP flow, goodput after the first third."""
    with wired(delay_ms) as (lab, _, live):
        for node in ("a", "b"):
            inside(lab, node, _large_windows)
        address = (live.link.b_address, 7000)
        with (
            inside(lab, "b", lambda: socket.create_server(address)) as server,
            inside(lab, "a", lambda: socket.create_connection(address, timeout=10)) as client,
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
    return {"delay_ms": delay_ms, "gbit_s": (received - first[1]) * 8 / (end_s - first[0]) / 1e9}


def small_packets(offered_pps: int, delay_ms: float = 5.0) -> dict:
    """64-byte frames in one direction; counted where they leave a and where they reach b."""
    with wired(delay_ms) as (lab, maker, live):
        address = (live.link.b_address, 7000)
        with (
            inside(lab, "b", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sink,
            inside(lab, "a", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as source,
        ):
            sink.bind(address)
            source.connect(address)
            sender = _start(SEND_UDP, source, UDP_S, offered_pps)
            sent = int(sender.communicate()[0])
            time.sleep(0.3)
            reached = inside(lab, "b", lambda: _received_frames("to-a"))
            counters = live.counters()["a_to_b"]
            cpu_s = maker.status()[0]["cpu_s"]
    return {
        "offered_pps": offered_pps,
        "sent_pps": sent / UDP_S,
        "loss": 1 - reached / sent,
        "wire_cpu_s": cpu_s,
        "late_dropped": counters["stale"],
    }


def many_links() -> dict:
    nodes = [f"n{number}" for number in range(LINKS + 1)]
    delay = Impairment(delay_ms=5)
    links = []
    for number in range(LINKS):
        mine, theirs = link_addresses(number)
        links.append(
            Link(a=nodes[number], b=nodes[number + 1], a_address=mine, b_address=theirs, a_to_b=delay, b_to_a=delay)
        )
    maker = WireLinks()
    with ScratchLab(nodes) as lab, contextlib.closing(maker):
        start_s = time.monotonic()
        maker.join(lab, links)
        joined_s = time.monotonic() - start_s
        before, start_s = maker.status()[0]["cpu_s"], time.monotonic()
        probed = gauge.probe(lab, links, probes=100)
        took_s = time.monotonic() - start_s - gauge.GRACE_S
        status = maker.status()
    medians = [gauge.percentile(errors_us(one.rtts_ns, 10.0), 0.5) for one in probed]
    together = sorted(error for one in probed for error in errors_us(one.rtts_ns, 10.0))
    return {
        "links": LINKS,
        "processes": len(status),
        "joined_s": joined_s,
        "core_share": (status[0]["cpu_s"] - before) / took_s,
        "frames_per_s": sum(4 * one.sent for one in probed) / 2 / took_s,
        "p50_us": gauge.percentile(together, 0.5),
        "p99_us": gauge.percentile(together, 0.99),
        "worst_link_p50_us": max(medians),
        "lost": sum(one.sent - len(one.rtts_ns) for one in probed),
        "probes": sum(one.sent for one in probed),
    }


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


def run(progress: Progress) -> dict:
    result: dict = {"machine": {"kernel": platform.release(), "cores": os.cpu_count(), "load": os.getloadavg()}}
    with ScratchLab([]) as lab:
        result["bias_us"] = cached_bias_ns(lab.folder.parent) / 1000
    progress(f"calibrated: {result['bias_us']:.1f} us are taken off each delay")
    result["accuracy"] = []
    for calibrated, busy in ((False, False), (True, False), (True, True)):
        result["accuracy"] += accuracy(progress, calibrated=calibrated, busy=busy)
    result["tcp"] = [
        max((throughput(delay_ms) for _ in range(2)), key=lambda row: row["gbit_s"]) for delay_ms in TCP_DELAYS_MS
    ]
    progress("TCP done")
    result["udp"] = [small_packets(pps) for pps in OFFERED_PPS]
    progress("UDP done")
    result["many"] = many_links()
    with wired(1.0) as (_, maker, _):
        result["scheduling"] = maker.status()[0]["scheduling"]
    return result


def table(result: dict) -> str:
    lines = [
        f"wire, scheduling {result['scheduling']}, constant {result['bias_us']:.1f} us, {result['machine']}",
        "",
        "| delay ms | | RTT/2 error p50 us | p90 | p99 | lost |",
        "|---|---|---|---|---|---|",
    ]
    for row in result["accuracy"]:
        how = ("calibrated" if row["calibrated"] else "as is") + (", all cores busy" if row["busy"] else "")
        lines.append(
            f"| {row['delay_ms']:g} | {how} | {row['p50_us']:.0f} | {row['p90_us']:.0f} "
            f"| {row['p99_us']:.0f} | {row['lost']} |"
        )
    lines.append("")
    lines += [
        f"TCP, one flow, {row['delay_ms']:g} ms each way: {row['gbit_s']:.1f} Gbit/s (better of 2)"
        for row in result["tcp"]
    ]
    lines += [
        f"64-byte frames, offered {row['offered_pps']}/s: sent {row['sent_pps']:.0f}/s, lost {row['loss']:.3%}, "
        f"wire CPU {row['wire_cpu_s']:.2f} s of {UDP_S}"
        for row in result["udp"]
    ]
    many = result["many"]
    lines.append(
        f"{many['links']} links in {many['processes']} process, joined in {many['joined_s']:.2f} s: "
        f"{many['frames_per_s']:.0f} frames/s, {many['core_share']:.0%} of a core, error p50 {many['p50_us']:.0f}, "
        f"p99 {many['p99_us']:.0f}, worst link's p50 {many['worst_link_p50_us']:.0f} us, "
        f"lost {many['lost']} of {many['probes']}"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="measures the wire on this machine; about a minute, as root")
    parser.add_argument("--json", action="store_true", help="figures for programs")
    arguments = parser.parse_args()
    result = run(lambda line: print(line, file=sys.stderr, flush=True))
    print(json.dumps(result, indent=1) if arguments.json else table(result))


if __name__ == "__main__":
    main()
