"""What this proxy tells of its connections: a `Record`, filled as facts become known, written and counted by `mesh`.

The data path counts nothing of its own: a TCP side keeps two integers anyway, and a scrape copies them into the meters.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass
from typing import IO, Protocol

from planes.mesh import accesslog
from planes.mesh.accesslog import Direction, Event
from planes.mesh.baggage import Baggage
from planes.mesh.metrics import Meter, Metrics, Peer, Reporter
from planes.mesh.route import Flag
from planes.mesh.view import ServiceView, WorkloadView


class Counted(Protocol):
    """A TCP side as telemetry sees it."""

    bytes_read: int
    bytes_written: int


@dataclass(slots=True, eq=False, kw_only=True)
class Record:
    """One connection as its proxy saw it."""

    direction: Direction
    source: tuple[str, int]
    started_s: float
    destination: tuple[str, int] = ("", 0)
    dialled: tuple[str, int] = ("", 0)
    authority: str = ""
    trace: str = ""
    mtls: bool = False
    decided: bool = False
    """The peer and the hop are known; what fails earlier is logged by its addresses only."""
    source_workload: WorkloadView | None = None
    source_baggage: Baggage | None = None
    source_identity: str = ""
    destination_workload: WorkloadView | None = None
    destination_identity: str = ""
    service: ServiceView | None = None
    reads_requests: bool = True
    """The counted TCP side is the one requests are read from; at an HBONE server it is the other."""
    endpoint: Counted | None = None
    meter: Meter | None = None

    def count(self) -> None:
        """Brings the meter up to date. Its `received` is from client to server whoever reports (facts/hbone 2.12)."""
        if self.meter is not None and self.endpoint is not None:
            read, written = self.endpoint.bytes_read, self.endpoint.bytes_written
            requests, answers = (read, written) if self.reads_requests else (written, read)
            self.meter.received_bytes, self.meter.sent_bytes = requests, answers


class Telemetry:
    def __init__(self, loop: asyncio.AbstractEventLoop, access_log: str, *, debug: bool = False) -> None:
        """`debug`: connections are told of when they open, too."""
        self._debug = debug
        self.metrics = Metrics()
        self._loop = loop
        self._live: set[Record] = set()
        self._file: IO[str] | None = None
        if access_log == "stderr":
            self._file = sys.stderr
        elif access_log != "off":
            self._file = open(access_log, "a", buffering=1)  # noqa: SIM115 - open for the life of the proxy

    def opened(self, record: Record, endpoint: Counted) -> None:
        record.endpoint = endpoint
        record.meter = self.metrics.open(*_labelled(record), mtls=record.mtls)
        self._live.add(record)
        if self._debug:
            self._write(record, Event.OPENED, None)

    def dry_run(self, record: Record, policies: tuple[str, ...]) -> None:
        """Policies on trial that would have matched: told, without effect."""
        if self._file is not None and policies:
            source, destination = address(record.source), record.authority or address(record.destination)
            identity = record.source_identity if record.mtls else ""
            self._file.write(accesslog.dry_run(time.time(), policies, source, destination, identity) + "\n")

    def closed(self, record: Record, error: str | None) -> None:
        """Only after `opened`; a second call does nothing."""
        if record not in self._live:
            return
        self._live.discard(record)
        record.count()
        assert record.meter is not None
        record.meter.close()
        self._write(record, Event.COMPLETE, error)

    def failed(self, record: Record, reason: str, flag: Flag = Flag.NONE) -> None:
        """Never opened."""
        self.metrics.fail(*_labelled(record), mtls=record.mtls, flag=flag)
        self._write(record, Event.COMPLETE if record.decided else Event.FAILED, reason)

    def render(self) -> str:
        """Prometheus text."""
        for record in self._live:
            record.count()
        return self.metrics.render()

    def _write(self, record: Record, event: Event, error: str | None) -> None:
        if self._file is None:
            return
        inbound = record.direction is Direction.INBOUND
        shown = record.destination if inbound or not record.dialled[0] else record.dialled
        source, baggage, destination = record.source_workload, record.source_baggage, record.destination_workload
        meter = record.meter
        requests, answers = (meter.received_bytes, meter.sent_bytes) if meter is not None else (0, 0)
        told = source if source is not None else baggage
        text = accesslog.line(
            accesslog.Record(
                time_s=time.time(),
                event=event,
                direction=record.direction,
                source=address(record.source),
                destination=address(shown),
                hbone_target=record.authority,
                source_workload=source.workload_name or source.name if source else baggage and baggage.workload,
                source_namespace=told and told.namespace,
                source_identity=record.source_identity if record.mtls else None,
                destination_service=record.service and record.service.hostname,
                destination_workload=destination and (destination.workload_name or destination.name),
                destination_namespace=destination and destination.namespace,
                destination_identity=record.destination_identity if record.mtls else None,
                source_cluster=source.cluster_id if source else baggage and baggage.cluster,
                destination_cluster=destination and destination.cluster_id,
                bytes_sent=answers if inbound else requests,
                bytes_received=requests if inbound else answers,
                duration_ms=(self._loop.time() - record.started_s) * 1000,
                error=error,
            )
        )
        self._file.write(text + "\n")


def _labelled(record: Record) -> tuple[Reporter, Peer, Peer, ServiceView | None]:
    reporter = Reporter.SOURCE if record.direction is Direction.OUTBOUND else Reporter.DESTINATION
    source = Peer(
        workload=record.source_workload,
        baggage=record.source_baggage,
        principal=record.source_identity if record.mtls else None,
    )
    destination = Peer(
        workload=record.destination_workload, principal=record.destination_identity if record.mtls else None
    )
    return reporter, source, destination, record.service


def address(value: tuple[str, int]) -> str:
    return f"[{value[0]}]:{value[1]}" if ":" in value[0] else f"{value[0]}:{value[1]}"
