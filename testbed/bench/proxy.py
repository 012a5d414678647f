"""What a proxy costs: CPU per request, per MiB and role, idle memory, bulk speed, ours beside Envoy in every role.

Here is ztunnel's; sidecar and waypoint are `testbed.bench.l7`'s.
Everything is on loopback: client → outbound proxy → mTLS/HBONE → inbound proxy → echo. Rounds are interleaved over the
implementations; CPU is the processes' own clock, so a noisy machine moves it little. One connection's bulk speed counts
bytes in one direction.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import import_module, util
from pathlib import Path

TRUST_DOMAIN = "cluster.local"
CLIENT_URI = f"spiffe://{TRUST_DOMAIN}/ns/default/sa/client"
SERVER_URI = f"spiffe://{TRUST_DOMAIN}/ns/default/sa/server"
_LISTEN = "0A"
"""A socket's state in /proc/net/tcp."""


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


def write_certificates(folder: Path, uris: dict[str, str]) -> None:
    """`<name>.pem`, `<name>.key` for each name → SPIFFE URI, and `roots.pem`; P-256, a day long.

    Called again for the same folder, it renews: the root stays.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.datetime.now(datetime.UTC)
    span = (now - datetime.timedelta(minutes=5), now + datetime.timedelta(days=1))
    issuer = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, TRUST_DOMAIN)])
    kept = folder / "root.private"
    if kept.exists():
        root_key = serialization.load_pem_private_key(kept.read_bytes(), None)
        assert isinstance(root_key, ec.EllipticCurvePrivateKey)
    else:
        root_key = ec.generate_private_key(ec.SECP256R1())
        kept.write_bytes(_pem(root_key))

    def builder(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        made = x509.CertificateBuilder(issuer, subject, public, x509.random_serial_number())
        return made.not_valid_before(span[0]).not_valid_after(span[1])

    root = builder(issuer, root_key.public_key()).add_extension(x509.BasicConstraints(True, None), critical=True)
    if not (folder / "roots.pem").exists():
        folder.joinpath("roots.pem").write_bytes(
            root.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
    for name, uri in uris.items():
        key = ec.generate_private_key(ec.SECP256R1())
        leaf = builder(x509.Name([]), key.public_key())
        leaf = leaf.add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True
        ).add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        folder.joinpath(f"{name}.pem").write_bytes(
            leaf.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        )
        folder.joinpath(f"{name}.key").write_bytes(_pem(key))


def _pem(key) -> bytes:  # type: ignore[no-untyped-def]
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def local_view(client: str, server: str) -> dict:
    """Two workloads in ztunnel's LOCAL shape."""

    def workload(name: str, address: str) -> dict:
        return {
            "uid": f"Kubernetes//Pod/default/{name}", "name": name, "namespace": "default", "serviceAccount": name,
            "trustDomain": TRUST_DOMAIN, "workloadIps": [address], "protocol": "HBONE", "node": "bench",
            "workloadName": name, "workloadType": "deployment", "canonicalName": name, "canonicalRevision": "v1",
            "clusterId": "Kubernetes", "status": "Healthy", "services": {},
        }  # fmt: skip

    return {"workloads": [workload("client", client), workload("server", server)], "services": [], "policies": []}


def ztunnel_config(name: str, address: str, view: dict, destination: tuple[str, int] | None) -> dict:
    uri = CLIENT_URI if name == "client" else SERVER_URI
    options = {
        "address": address, "admin_port": 0, "stats_port": 0, "ready_port": 0, "access_log": "off",
        "original_source": False,
    }  # fmt: skip
    if destination is not None:
        options["original_destination"] = list(destination)
    return {
        "name": f"ztunnel-{name}", "role": "ztunnel", "node": "bench", "workload": f"default/{name}", "view": view,
        "identities": {uri: {"certificate": f"{name}.pem", "key": f"{name}.key", "roots": "roots.pem"}},
        "options": options,
    }  # fmt: skip


def envoy_binary() -> Path | None:
    spec = util.find_spec("envoy")
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        found = Path(place) / "_bin" / "envoy"
        if found.exists():
            return found
    return None


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/schedstat").read_text().split()
    threads = list(Path(f"/proc/{pid}/task").iterdir())
    if len(threads) == 1:
        return int(fields[0]) / 1e9
    return sum(int((t / "schedstat").read_text().split()[0]) for t in threads) / 1e9


def pss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def wait_for_port(address: tuple[str, int], within_s: float = 15.0) -> None:
    """Until somebody listens there. Asked of the kernel: a call would be a broken handshake in a proxy's log."""
    host, port = address
    wanted = {f"{int.from_bytes(socket.inet_aton(ip), sys.byteorder):08X}:{port:04X}" for ip in (host, "0.0.0.0")}
    give_up_s = time.monotonic() + within_s
    while True:
        for line in Path("/proc/thread-self/net/tcp").read_text().splitlines()[1:]:
            local, _, state = line.split()[1:4]
            if state == _LISTEN and local in wanted:
                return
        if time.monotonic() > give_up_s:
            raise TimeoutError(f"nobody listens on {host}:{port} after {within_s:g} s; its log above says why")
        time.sleep(0.05)


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
        subprocess.Popen([sys.executable, "-m", "testbed.bench.proxy", "echo", server, "8080"])
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


Rows = dict[tuple[str, str], dict[str, list[float]]]
"""(role, quantity) → implementation → a value per round."""


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


def table(found: Rows) -> str:
    """Medians, ours beside Envoy's; the ratio of the medians, and between which the rounds' own ratios were."""
    lines = ["| role | quantity | meshbed | envoy | ratio | rounds |", "|---|---|---:|---:|---:|---:|"]
    for (role, quantity), values in found.items():
        places = 3 if quantity.endswith("ms") else 1
        medians = {name: statistics.median(held) for name, held in values.items()}
        shown = [f"{medians[name]:,.{places}f}" if name in medians else "" for name in ("meshbed", "envoy")]
        ratio = spread = ""
        if medians.get("meshbed") and medians.get("envoy"):
            ratio = f"{medians['meshbed'] / medians['envoy']:.2f}"
            each = [a / b for a, b in zip(values["meshbed"], values["envoy"], strict=True) if b]
            spread = f"{min(each):.2f}–{max(each):.2f}" if len(each) > 1 else ""
        lines.append(f"| {role} | {quantity} | {' | '.join(shown)} | {ratio} | {spread} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["echo"]:
        serve_echo(arguments[1], int(arguments[2]))
        return
    rounds = int(arguments[0]) if arguments else 3
    l7 = import_module("testbed.bench.l7")
    print(f"{rounds} rounds of every role: some {10 + 45 * rounds} s", file=sys.stderr)
    print(table(rows(run(rounds=rounds)) | l7.rows(l7.run(rounds=rounds))))


if __name__ == "__main__":
    main(sys.argv[1:])
