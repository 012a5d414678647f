"""The `baggage` header: a workload described to its peer, for telemetry only. Unauthenticated; never decide by it.

Keys and their order are ztunnel's `src/baggage.rs`; absent fields are left out (facts/hbone 1.3).
"""

from __future__ import annotations

from dataclasses import dataclass

from planes.mesh.view import WorkloadView

_NAME_KEYS = {f"k8s.{kind}.name": "workload" for kind in ("deployment", "cronjob", "pod", "job")}
_KEYS = {
    "k8s.cluster.name": "cluster",
    "k8s.namespace.name": "namespace",
    **_NAME_KEYS,
    "service.name": "canonical_name",
    "service.version": "canonical_revision",
    "cloud.region": "region",
    "cloud.availability_zone": "zone",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Baggage:
    """What a peer says of itself; empty text where it says nothing."""

    cluster: str = ""
    namespace: str = ""
    workload: str = ""
    canonical_name: str = ""
    canonical_revision: str = ""
    region: str = ""
    zone: str = ""


def render(workload: WorkloadView) -> str:
    pairs = (
        ("k8s.cluster.name", workload.cluster_id),
        ("k8s.namespace.name", workload.namespace),
        (f"k8s.{workload.workload_type or 'pod'}.name", workload.workload_name),
        ("service.name", workload.canonical_name),
        ("service.version", workload.canonical_revision),
        ("cloud.region", workload.region),
        ("cloud.availability_zone", workload.zone),
    )
    return ",".join(f"{key}={value}" for key, value in pairs if value)


def parse(header: str) -> Baggage:
    """Takes anything: members that are not `key=value` or not known are skipped, the last of equals wins."""
    found: dict[str, str] = {}
    for member in header.split(","):
        key, equals, value = member.strip().partition("=")
        if equals and key in _KEYS:
            found[_KEYS[key]] = value.split("=")[0]
    return Baggage(**found)
