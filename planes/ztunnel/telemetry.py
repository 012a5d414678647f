"""What is told of connections: the access log (facts/hbone 2.11) and the TCP metrics (2.12)."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO


@dataclass(slots=True)
class Record:
    """One connection as its proxy saw it; filled as the facts become known."""

    direction: str
    source: tuple[str, int]
    started_s: float
    destination: tuple[str, int] = ("", 0)
    dialled: tuple[str, int] = ("", 0)
    hbone_address: str = ""
    source_identity: str = ""
    destination_identity: str = ""
    source_labels: Mapping[str, str] = field(default_factory=dict)
    destination_labels: Mapping[str, str] = field(default_factory=dict)
    mtls: bool = False
    trace: str = ""
    bytes_sent: int = 0
    bytes_received: int = 0


class Telemetry:
    def __init__(self, loop: asyncio.AbstractEventLoop, access_log: str) -> None:
        self._loop = loop
        self.counters: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
        self._file: IO[str] | None = None
        if access_log == "stderr":
            self._file = sys.stderr
        elif access_log != "off":
            self._file = open(access_log, "a", buffering=1)  # noqa: SIM115 - open for the life of the proxy

    def opened(self, record: Record) -> None:
        self._count("tcp_connections_opened_total", record, "-", 1)

    def closed(self, record: Record, error: str | None) -> None:
        self._count("tcp_connections_closed_total", record, "-", 1)
        # received = client to server for both reporters (facts/hbone 2.12), so the log's view is flipped for outbound.
        up, down = record.bytes_sent, record.bytes_received
        if record.direction == "inbound":
            up, down = down, up
        self._count("tcp_received_bytes_total", record, "-", up)
        self._count("tcp_sent_bytes_total", record, "-", down)
        self._line("error" if error else "info", "connection complete", record, error)

    def failed(self, record: Record, reason: str, flags: str = "-") -> None:
        self._count("tcp_connections_failed_total", record, flags, 1)
        self._line("warn", "connection failed", record, reason)

    def render(self) -> str:
        """Prometheus text."""
        lines = []
        for (name, labels), value in sorted(self.counters.items()):
            shown = ",".join(f'{key}="{text}"' for key, text in labels)
            lines.append(f"istio_{name}{{{shown}}} {value}")
        return "\n".join(lines) + "\n"

    def _count(self, name: str, record: Record, flags: str, by: int) -> None:
        labels = {
            "reporter": "source" if record.direction == "outbound" else "destination",
            "source_principal": record.source_identity or "unknown",
            "destination_principal": record.destination_identity or "unknown",
            **{f"source_{key}": value for key, value in record.source_labels.items()},
            **{f"destination_{key}": value for key, value in record.destination_labels.items()},
            "request_protocol": "tcp",
            "response_flags": flags,
            "connection_security_policy": "mutual_tls" if record.mtls else "unknown",
        }
        self.counters[name, tuple(labels.items())] += by

    def _line(self, level: str, message: str, record: Record, error: str | None) -> None:
        if self._file is None:
            return
        shown = record.destination if record.direction == "inbound" else record.dialled
        pairs = {
            "src.addr": _address(record.source),
            "src.workload": record.source_labels.get("workload", ""),
            "src.namespace": record.source_labels.get("workload_namespace", ""),
            "src.identity": record.source_identity if record.mtls else "",
            "dst.addr": _address(shown if shown[0] else record.destination),
            "dst.hbone_addr": record.hbone_address,
            "dst.service": record.destination_labels.get("service", ""),
            "dst.workload": record.destination_labels.get("workload", ""),
            "dst.namespace": record.destination_labels.get("workload_namespace", ""),
            "dst.identity": record.destination_identity if record.mtls else "",
            "direction": record.direction,
        }
        text = " ".join(f"{key}={_quoted(key, value)}" for key, value in pairs.items() if value)
        if message == "connection complete":
            duration_ms = round((self._loop.time() - record.started_s) * 1000)
            text += f' bytes_sent={record.bytes_sent} bytes_recv={record.bytes_received} duration="{duration_ms}ms"'
        if error:
            text += f' error="{error}"'
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06d}Z"
        self._file.write(f"{stamp}\t{level}\taccess\t{message}\t{text}\n")


def _address(value: tuple[str, int]) -> str:
    return f"{value[0]}:{value[1]}" if value[0] else ""


def _quoted(key: str, value: str) -> str:
    return value if key.endswith(("addr",)) else f'"{value}"'
