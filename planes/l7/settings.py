"""config.json of a sidecar or waypoint as values; parsing raises UsageError with file, key and mend."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from planes.mesh import configfile
from planes.mesh.tls import KeyFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    outbound: int = 15001
    inbound: int = 15006
    hbone: int = 15008

    @property
    def own(self) -> frozenset[int]:
        """Loop protection: nothing is ever forwarded to these."""
        return frozenset((self.outbound, self.inbound, self.hbone))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    name: str
    role: str
    folder: Path
    view: Path
    """A file that is watched."""
    l7: dict
    """As `planes.l7.place` writes it."""
    identities: dict[str, KeyFiles]
    workload: tuple[str, str]
    """(namespace, name) of the workload, or of the waypoint itself."""
    keylog: Path | None = None
    sidecars: frozenset[str] = frozenset()
    """Uids of workloads that have a sidecar, and so take Istio's mutual TLS (`tlsMode: istio`)."""
    listens_hbone: bool = False
    """A sidecar that takes HBONE, too (facts/hbone 4.4)."""
    access_log: str = "off"
    """`off` as in Istio, `stderr`, or a file."""
    detection_limit_s: float | None = None
    """How long a silent client is waited for on a port of unknown protocol; None, as in Istio: for ever."""
    drain_deadline_s: float = 5.0
    address: str = "0.0.0.0"
    source: str | None = "127.0.0.6"
    """What connections to the own application come from (facts/hbone 4.1)."""
    ports: Ports = field(default_factory=Ports)
    original_destination: tuple[str, int] | None = None
    """Loopback benches without redirection: where every captured connection was going."""
    http2_upstream: bool = False
    """HTTP/1 requests, too, go to other sidecars as HTTP/2 (`h2UpgradePolicy: UPGRADE`)."""
    admin_address: str = "127.0.0.1"
    admin_port: int = 15000
    stats_port: int = 15020
    ready_port: int = 15021
    envoy_stats_port: int = 0
    """15090 of a sidecar. A port of 0 switches that listener off."""
    open_address: str = "127.0.0.1"
    """Where metrics and readiness listen; Istio's sidecars answer the whole network there (facts/hbone 1.1)."""
    mark: int | None = None
    """On all its connections, where capture rules cannot know it by a user id of its own."""
    policy_drain_s: float = 45.0
    """What a new policy refuses of TCP connections that are open ends after this long (`drainDuration`)."""
    crash_header: str = ""
    """A request with this field ends the process: a plug-in with a fault, for experiments. Empty: there is none."""


def load(file: Path) -> Settings:
    raw, folder = configfile.read(file), file.parent
    options = dict(raw.get("options", {}))
    try:
        values: dict = {
            "name": raw["name"],
            "role": raw["role"],
            "folder": folder,
            "view": folder / raw["view"],
            "workload": configfile.workload(options.pop("workload")),
            "l7": options.pop("l7"),
            "sidecars": frozenset(options.pop("sidecars", ())),
            "identities": configfile.identities(raw["identities"], folder),
        }
    except (KeyError, TypeError, AttributeError) as cause:
        raise configfile.misshapen(file, cause) from cause
    if raw.get("keylog"):
        values["keylog"] = folder / raw["keylog"]
    if "ports" in options:
        options["ports"] = Ports(**options["ports"])
    if options.get("original_destination"):
        options["original_destination"] = configfile.address(options["original_destination"])
    configfile.refuse_unknown(file, options, Settings.__dataclass_fields__)
    return Settings(**values, **options)
