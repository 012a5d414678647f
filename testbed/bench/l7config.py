"""Configurations of our sidecar, waypoint and ztunnel for chains on loopback, where nothing is captured."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from testbed.bench.loopback import CLIENT_URI, SERVER_URI, TRUST_DOMAIN

WAYPOINT_URI = f"spiffe://{TRUST_DOMAIN}/ns/default/sa/waypoint"
HOST = "web.default.svc.cluster.local"
KEY = f"default/{HOST}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Net:
    """A role's own addresses; nothing is bound to `vip`."""

    client: str
    server: str
    waypoint: str
    vip: str

    @classmethod
    def of(cls, prefix: str) -> Net:
        """`prefix`: three octets of loopback."""
        return cls(client=f"{prefix}.1", server=f"{prefix}.2", waypoint=f"{prefix}.3", vip=f"{prefix}.9")


def view(net: Net, *, target_port: int, through_waypoint: bool) -> dict:
    """LOCAL shape: two workloads, one service, and its waypoint if it has one."""

    def workload(name: str, address: str, **more: object) -> dict:
        return {
            "uid": f"Kubernetes//Pod/default/{name}", "name": name, "namespace": "default", "serviceAccount": name,
            "trustDomain": TRUST_DOMAIN, "workloadIps": [address], "node": "bench", "workloadName": name,
            "workloadType": "deployment", "canonicalName": name, "canonicalRevision": "v1", "clusterId": "Kubernetes",
            "status": "Healthy", "services": {}, "protocol": "HBONE" if through_waypoint else "TCP", **more,
        }  # fmt: skip

    service: dict = {
        "name": "web", "namespace": "default", "hostname": HOST, "vips": [f"/{net.vip}"],
        "ports": {"80": target_port},
    }  # fmt: skip
    workloads = [
        workload("client", net.client),
        workload("server", net.server, services={KEY: {"80": target_port}}),
    ]
    if through_waypoint:
        service["waypoint"] = {"destination": f"/{net.waypoint}", "hboneMtlsPort": 15008}
        workloads.append(workload("waypoint", net.waypoint))
    return {"workloads": workloads, "services": [service], "policies": []}


def l7_config(net: Net, role: str, name: str, *, target_port: int, protocol: str = "http") -> dict:
    service = {
        "name": "web", "namespace": "default", "hostname": HOST, "address": net.vip,
        "ports": [{"port": 80, "target_port": target_port, "protocol": protocol}],
    }  # fmt: skip
    serves = [] if name == "client" else [KEY]
    return {
        "role": role, "name": name, "namespace": "default", "trust_domain": TRUST_DOMAIN, "services": [service],
        "serves": serves,
    }  # fmt: skip


def proxy_config(
    net: Net, role: str, name: str, *, target_port: int, protocol: str = "http", **options: object
) -> dict:
    """config.json of our sidecar, waypoint or ztunnel for the workload `name`."""
    uri = {"client": CLIENT_URI, "server": SERVER_URI, "waypoint": WAYPOINT_URI}[name]
    with_waypoint = role != "sidecar"
    held = {
        "address": getattr(net, name), "admin_port": 0, "stats_port": 0, "ready_port": 0, "access_log": "off",
        **options,
    }  # fmt: skip
    if role == "ztunnel":
        held["original_source"] = False
    else:
        l7 = l7_config(net, role, name, target_port=target_port, protocol=protocol)
        held |= {"workload": f"default/{name}", "l7": l7}
    if role == "sidecar":
        held["sidecars"] = [f"Kubernetes//Pod/default/{each}" for each in ("client", "server")]
    return {
        "name": f"{role}-{name}", "role": role, "node": "bench", "workload": f"default/{name}",
        "view": view(net, target_port=target_port, through_waypoint=with_waypoint),
        "identities": {uri: {"certificate": f"{name}.pem", "key": f"{name}.key", "roots": "roots.pem"}},
        "options": held,
    }  # fmt: skip


def write_config(folder: Path, home: Path, config: dict) -> Path:
    """As the deployer lays it out; certificates are those of `folder`."""
    home.mkdir()
    for file in (*folder.glob("*.pem"), *folder.glob("*.key")):
        home.joinpath(file.name).symlink_to(file)
    if config["role"] != "ztunnel":
        home.joinpath("view.json").write_text(json.dumps(config["view"]))
        config = {**config, "view": "view.json"}
    home.joinpath("config.json").write_text(json.dumps(config))
    return home / "config.json"
