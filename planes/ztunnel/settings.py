"""config.json of a ztunnel as values; parsing raises UsageError with file, key and mend."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from planes.mesh import configfile
from planes.mesh.net import MARK
from planes.mesh.tls import KeyFiles
from testbed.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    outbound: int = 15001
    plaintext: int = 15006
    hbone: int = 15008

    @property
    def illegal(self) -> frozenset[int]:
        """Loop protection: nothing is ever forwarded to these (facts/hbone 1.1)."""
        return frozenset((self.outbound, self.plaintext, self.hbone))


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    name: str
    folder: Path
    view: Path | dict
    """A file that is watched, or the view itself."""
    identities: dict[str, KeyFiles]
    file: Path | None = None
    """What this was read from, and is read anew from when a workload comes whose identity was not in it."""
    node: str = ""
    uds: Path | None = None
    """The node agent's socket: shared, in-pod mode. None: dedicated mode."""
    workload: tuple[str, str] | None = None
    """Dedicated mode: (namespace, name)."""
    own_workload: tuple[str, str] | None = None
    """What the view calls this ztunnel itself, (namespace, name): its metrics are then served through HBONE, too."""
    keylog: Path | None = None
    crl: Path | None = None
    """Certificates that were taken back, in PEM or DER; it may come later, and is watched."""
    access_log: str = "stderr"
    """`stderr`, `off`, or a file."""
    access_log_debug: bool = False
    """Also `connection opened`, which ztunnel writes at its level debug."""
    drain_deadline_s: float = 5.0
    address: str = "0.0.0.0"
    """Where the three listeners bind (dedicated mode; in-pod is always the wildcard)."""
    ports: Ports = field(default_factory=Ports)
    mark: int | None = MARK
    original_source: bool = True
    original_destination: tuple[str, int] | None = None
    """Loopback benches without redirection: where every outbound connection was going."""
    hosts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Addresses by host name, asked before `name_server`: what /etc/hosts is to a pod."""
    name_server: tuple[str, int] | None = None
    """Whom to ask for the addresses of workloads that are known by host name only."""
    admin_address: str = "127.0.0.1"
    admin_port: int = 15000
    stats_port: int = 15020
    ready_port: int = 15021
    """A port of 0 switches that listener off."""

    def identities_now(self) -> dict[str, KeyFiles]:
        """By SPIFFE URI, as the file says now. Raises UsageError."""
        if self.file is None:
            return self.identities
        try:
            return configfile.identities(configfile.read(self.file).get("identities", {}), self.folder)
        except (KeyError, TypeError, AttributeError) as cause:
            raise configfile.misshapen(self.file, cause) from cause


def load(file: Path) -> Settings:
    raw, folder = configfile.read(file), file.parent
    options = dict(raw.get("options", {}))
    try:
        view = raw["view"]
        values: dict = {
            "name": raw["name"],
            "folder": folder,
            "node": raw.get("node", ""),
            "view": view if isinstance(view, dict) else folder / view,
            "identities": configfile.identities(raw.get("identities", {}), folder),
            "file": file,
        }
    except (KeyError, TypeError) as cause:
        raise configfile.misshapen(file, cause) from cause
    for key in ("uds", "keylog", "crl"):
        value = raw.get(key, options.pop(key, None))
        if value:
            values[key] = folder / value
    workload = raw.get("workload", options.pop("workload", None))
    if workload is not None:
        values["workload"] = configfile.workload(workload)
        values["mark"] = None  # dedicated mode marks only when told to (facts/hbone 2.15)
    if "own_workload" in options:
        options["own_workload"] = configfile.workload(options["own_workload"])
    if "ports" in options:
        options["ports"] = Ports(**options["ports"])
    if "original_destination" in options:
        options["original_destination"] = configfile.address(options["original_destination"])
    if "hosts" in options:
        options["hosts"] = {name: tuple(addresses) for name, addresses in options["hosts"].items()}
    if "name_server" in options:
        options["name_server"] = configfile.address(options["name_server"])
    configfile.refuse_unknown(file, options, Settings.__dataclass_fields__)
    values.update(options)
    if values.get("uds") is None and values.get("workload") is None:
        raise UsageError(f'{file}: neither "uds" (in-pod) nor "workload" (dedicated: "namespace/name") is given')
    return Settings(**values)
