"""The TCP metrics with Istio's names and labels, as Prometheus text (facts/hbone 2.12).

A connection gets a `Meter`: two plain integers to add to, read when somebody scrapes, so that counting costs the data
path one addition. Direction is Istio's: `received_bytes` went from client to server, whichever proxy reports.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from planes.mesh.baggage import Baggage
from planes.mesh.route import Flag
from planes.mesh.view import ServiceView, WorkloadView

UNKNOWN = "unknown"
PEER_LABELS = (
    "workload", "canonical_service", "canonical_revision", "workload_namespace", "principal", "app", "version",
    "cluster", "region", "zone",
)  # fmt: skip
_LABELS = (
    "reporter",
    *(f"source_{name}" for name in PEER_LABELS),
    "destination_service", "destination_service_namespace", "destination_service_name",
    *(f"destination_{name}" for name in PEER_LABELS),
    "request_protocol", "connection_security_policy",
)  # fmt: skip
_FAMILIES = (
    ("istio_tcp_connections_opened_total", "opened", "Connections opened."),
    ("istio_tcp_connections_closed_total", "closed", "Connections closed."),
    ("istio_tcp_connections_failed_total", "failed", "Connections refused or not made."),
    ("istio_tcp_sent_bytes_total", "sent_bytes", "Bytes of answers: server to client."),
    ("istio_tcp_received_bytes_total", "received_bytes", "Bytes of requests: client to server."),
)
_PLAN_LIMIT = 4096
"""Worked-out label sets kept; peers choose baggage, so the number must not be theirs to choose."""


class Reporter(StrEnum):
    SOURCE = "source"
    DESTINATION = "destination"
    WAYPOINT = "waypoint"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One end of a connection: the workload if it is known, else what it said of itself, and who it proved to be."""

    workload: WorkloadView | None = None
    baggage: Baggage | None = None
    principal: str | None = None


class Series:
    """The counts of one set of labels."""

    __slots__ = ("_received", "_sent", "closed", "failed", "live", "opened")

    def __init__(self) -> None:
        self.opened = self.closed = self.failed = self._sent = self._received = 0
        self.live: set[Meter] = set()

    @property
    def sent_bytes(self) -> int:
        return self._sent + sum(meter.sent_bytes for meter in self.live)

    @property
    def received_bytes(self) -> int:
        return self._received + sum(meter.received_bytes for meter in self.live)

    def settle(self, meter: Meter) -> None:
        self.live.remove(meter)
        self._sent += meter.sent_bytes
        self._received += meter.received_bytes


class Meter:
    """One connection's counts. Add to the two integers; `close` once, with the flag that says how it ended."""

    __slots__ = ("_labels", "_metrics", "_series", "received_bytes", "sent_bytes")

    def __init__(self, metrics: Metrics, labels: tuple[str, ...], series: Series) -> None:
        self.received_bytes = 0
        """Client to server."""
        self.sent_bytes = 0
        """Server to client."""
        self._metrics, self._labels, self._series = metrics, labels, series

    def close(self, flag: Flag = Flag.NONE) -> None:
        """A second call does nothing. The flag labels the closing, not the opening, which could not know it."""
        if self in self._series.live:
            self._series.settle(self)
            self._metrics.series(self._labels, flag).closed += 1


class Metrics:
    """All counts of one proxy."""

    def __init__(self) -> None:
        self._series: dict[tuple[tuple[str, ...], Flag], Series] = {}
        self._plans: dict[object, tuple[str, ...]] = {}

    def open(
        self, reporter: Reporter, source: Peer, destination: Peer, service: ServiceView | None, *, mtls: bool
    ) -> Meter:
        """Counts a connection as opened."""
        labels = self._labels(reporter, source, destination, service, mtls)
        series = self.series(labels, Flag.NONE)
        series.opened += 1
        meter = Meter(self, labels, series)
        series.live.add(meter)
        return meter

    def fail(
        self,
        reporter: Reporter,
        source: Peer,
        destination: Peer,
        service: ServiceView | None,
        *,
        mtls: bool,
        flag: Flag = Flag.NONE,
    ) -> None:
        """Counts a connection that never opened, under the flag that says why."""
        self.series(self._labels(reporter, source, destination, service, mtls), flag).failed += 1

    def series(self, labels: tuple[str, ...], flag: Flag) -> Series:
        return self._series.setdefault((labels, flag), Series())

    def render(self) -> str:
        """Prometheus text format 0.0.4."""
        lines = []
        named = [(_label_text((*labels, flag)), series) for (labels, flag), series in self._series.items()]
        for name, attribute, text in _FAMILIES:
            lines += [f"# HELP {name} {text}", f"# TYPE {name} counter"]
            lines += [f"{name}{{{labels}}} {value}" for labels, s in named if (value := getattr(s, attribute))]
        return "\n".join(lines) + "\n"

    def _labels(
        self, reporter: Reporter, source: Peer, destination: Peer, service: ServiceView | None, mtls: bool
    ) -> tuple[str, ...]:
        key = (reporter, _key(source), _key(destination), service and service.key, mtls)
        held = self._plans.get(key)
        if held is None:
            if len(self._plans) >= _PLAN_LIMIT:
                self._plans.clear()
            served = (service.hostname, service.namespace, service.name) if service else (UNKNOWN,) * 3
            security = "mutual_tls" if mtls else UNKNOWN
            held = (reporter, *peer_values(source), *served, *peer_values(destination), "tcp", security)
            self._plans[key] = held
        return held


def _key(peer: Peer) -> object:
    # Not the uid alone: a newer view may describe the same workload differently. Hashing the whole of it would cost
    # more than the labels, so the few fields that change stand for it.
    w = peer.workload
    shown = w and (w.uid, w.workload_name, w.canonical_name, w.canonical_revision, w.zone)
    return shown, peer.baggage, peer.principal


def peer_values(peer: Peer) -> tuple[str, ...]:
    w, b = peer.workload, peer.baggage
    if w is not None:
        values = (w.workload_name, w.canonical_name, w.canonical_revision, w.namespace, peer.principal,
                  w.canonical_name, w.canonical_revision, w.cluster_id, w.region, w.zone)  # fmt: skip
    elif b is not None:
        values = (b.workload, b.canonical_name, b.canonical_revision, b.namespace, peer.principal,
                  b.canonical_name, b.canonical_revision, b.cluster, b.region, b.zone)  # fmt: skip
    else:
        values = (None, None, None, None, peer.principal, None, None, None, None, None)
    return tuple(value or UNKNOWN for value in values)


def _label_text(values: tuple[str, ...]) -> str:
    return ",".join(f'{name}="{escape(v)}"' for name, v in zip((*_LABELS, "response_flags"), values, strict=True))


def escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
