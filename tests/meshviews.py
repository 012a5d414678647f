"""Views for tests, written as LOCAL configuration: a workload or service in one line, with what matters spelled out."""

from __future__ import annotations

from planes.mesh.view import MeshView


def workload(name: str, *ips: str, **more: object) -> dict:
    return {
        "uid": f"cluster1//v1/Pod/default/{name}",
        "name": name,
        "namespace": "default",
        "serviceAccount": f"sa-{name}",
        "trustDomain": "cluster.local",
        "workloadIps": list(ips),
        "services": {},
        **more,
    }


def service(name: str, *vips: str, **more: object) -> dict:
    return {
        "name": name,
        "namespace": "default",
        "hostname": f"{name}.default.svc.cluster.local",
        "vips": [f"/{vip}" for vip in vips],
        "ports": {"80": 8080},
        **more,
    }


def behind(service_name: str, ports: dict[str, int] | None = None) -> dict:
    """The `services` of a workload that is an endpoint of one."""
    return {"services": {f"default/{service_name}.default.svc.cluster.local": ports or {}}}


def gateway(destination: str, port: int = 15008) -> dict:
    return {"destination": destination, "hboneMtlsPort": port}


def view(workloads: list[dict], services: list[dict] | None = None, policies: list[dict] | None = None) -> MeshView:
    return MeshView.parse({"workloads": workloads, "services": services or [], "policies": policies or []})
