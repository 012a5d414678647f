"""Proxies on loopback, outside any lab: certificates, views, configurations; whether they are up; what they cost."""

from __future__ import annotations

import datetime
import socket
import sys
import time
from importlib import util
from pathlib import Path

TRUST_DOMAIN = "cluster.local"
CLIENT_URI = f"spiffe://{TRUST_DOMAIN}/ns/default/sa/client"
SERVER_URI = f"spiffe://{TRUST_DOMAIN}/ns/default/sa/server"
_LISTEN = "0A"
"""A socket's state in /proc/net/tcp."""


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
