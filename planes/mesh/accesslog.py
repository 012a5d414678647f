"""Access log lines in ztunnel's words: which keys, in which order, which are left out (facts/hbone 2.11)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum


class Event(StrEnum):
    OPENED = "connection opened"
    COMPLETE = "connection complete"
    FAILED = "connection failed"
    """Refused before anything of the peer was known: only addresses, direction and error are written."""


class Direction(StrEnum):
    INBOUND = "inbound"
    OUTBOUND = "outbound"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One event of one connection. None means not known, and is left out of the line."""

    time_s: float
    """Since the epoch, UTC."""
    event: Event
    direction: Direction
    source: str
    """`ip:port` of who opened the connection."""
    destination: str
    """`ip:port` dialled: with HBONE the one at port 15008, on both sides."""
    hbone_target: str | None = None
    """The `:authority`."""
    source_workload: str | None = None
    source_namespace: str | None = None
    source_identity: str | None = None
    """Identities only where mTLS proved them."""
    source_cluster: str | None = None
    destination_service: str | None = None
    destination_workload: str | None = None
    destination_namespace: str | None = None
    destination_identity: str | None = None
    destination_cluster: str | None = None
    bytes_sent: int = 0
    """As the reporting proxy sees it, unlike the metrics."""
    bytes_received: int = 0
    duration_ms: float = 0.0
    error: str | None = None


_TEXT_KEYS = (
    ("src.workload", "source_workload"),
    ("src.namespace", "source_namespace"),
    ("src.identity", "source_identity"),
    ("src.cluster", "source_cluster"),
)
_DESTINATION_KEYS = (
    ("dst.service", "destination_service"),
    ("dst.workload", "destination_workload"),
    ("dst.namespace", "destination_namespace"),
    ("dst.identity", "destination_identity"),
    ("dst.cluster", "destination_cluster"),
)


def line(record: Record) -> str:
    """One line without its end: time, level, `access`, message, then the keys."""
    parts = [f"src.addr={record.source}"]
    if record.event is Event.FAILED:
        parts.append(f"dst.addr={record.destination}")
    else:
        parts += _texts(record, _TEXT_KEYS)
        parts.append(f"dst.addr={record.destination}")
        if record.hbone_target:
            parts.append(f"dst.hbone_addr={record.hbone_target}")
        parts += _texts(record, _DESTINATION_KEYS)
    parts.append(f"direction={_quote(record.direction)}")
    if record.event is Event.COMPLETE:
        parts.append(f"bytes_sent={record.bytes_sent} bytes_recv={record.bytes_received}")
        parts.append(f'duration="{record.duration_ms:.0f}ms"')
    if record.error:
        parts.append(f"error={_quote(record.error)}")
    return f"{_stamp(record.time_s)}\t{_level(record)}\taccess\t{record.event}\t{' '.join(parts)}"


def dry_run(time_s: float, policies: tuple[str, ...], source: str, destination: str, identity: str) -> str:
    """A line for policies on trial that matched a connection (facts/hbone 2.7): target `rbac`, not `access`."""
    proved = f" src.identity={_quote(identity)}" if identity else ""
    names = _quote(", ".join(policies))
    told = f"policy={names} src.addr={source}{proved} dst.addr={destination}"
    return f"{_stamp(time_s)}\tinfo\trbac\tdry-run match\t{told}"


def _stamp(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _level(record: Record) -> str:
    if record.event is Event.OPENED:
        return "debug"
    if record.event is Event.FAILED:
        return "warn"
    return "error" if record.error else "info"


def _texts(record: Record, keys: tuple[tuple[str, str], ...]) -> list[str]:
    return [f"{key}={_quote(value)}" for key, name in keys if (value := getattr(record, name))]


def _quote(text: str) -> str:
    """Quoted so that no value, whoever chose it, can end the line or pretend to be another key."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() else f"\\u{{{ord(c):x}}}" for c in escaped) + '"'
