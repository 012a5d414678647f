"""RED metrics with Istio's names and labels, as Prometheus text, and the access log's line (facts/hbone 6.3).

A request costs a dictionary access and a few additions: labels are worked out once per pair of peers (`Labels`), and
counted per outcome.
"""

from __future__ import annotations

from bisect import bisect_left
from datetime import UTC, datetime

from planes.mesh.metrics import PEER_LABELS, Peer, escape, peer_values
from planes.mesh.view import ServiceView

BUCKETS_MS = (
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0, 30_000.0, 60_000.0,
    300_000.0, 600_000.0, 1_800_000.0, 3_600_000.0,
)  # fmt: skip
"""Envoy's default histogram buckets, for durations and sizes alike."""
_NAMES = (
    "reporter", *(f"source_{name}" for name in PEER_LABELS),
    "destination_service", "destination_service_namespace", "destination_service_name",
    *(f"destination_{name}" for name in PEER_LABELS), "request_protocol", "connection_security_policy",
)  # fmt: skip
_UNKNOWN = "unknown"
_SIZES_LIMIT = 256
_SERIES_LIMIT = 10_000
"""Status codes and the like come from peers; what is more than this is counted under `unknown`."""


class Labels:
    """Of all requests between two peers to one service. Compared by identity."""

    __slots__ = ("text",)

    def __init__(
        self, *, reporter: str, source: Peer, destination: Peer, service: ServiceView | None, protocol: str, mtls: bool
    ) -> None:  # fmt: skip
        served = (service.hostname, service.namespace, service.name) if service else (_UNKNOWN,) * 3
        security = "mutual_tls" if mtls else "none"
        if reporter == "source":
            security = _UNKNOWN  # Istio's client side does not tell
        values = (reporter, *peer_values(source), *served, *peer_values(destination), protocol, security)
        self.text = ",".join(f'{n}="{escape(v)}"' for n, v in zip(_NAMES, values, strict=True))


class _Histogram:
    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_MS) + 1)
        self.total = 0.0

    def add(self, value: float, times: int) -> None:
        self.counts[bisect_left(BUCKETS_MS, value)] += times
        self.total += value * times

    def lines(self, name: str, labels: str) -> list[str]:
        lines, running = [], 0
        for bound, count in zip(BUCKETS_MS, self.counts, strict=False):
            running += count
            lines.append(f'{name}_bucket{{{labels},le="{bound:g}"}} {running}')
        running += self.counts[-1]
        return [
            *lines, f'{name}_bucket{{{labels},le="+Inf"}} {running}',
            f"{name}_sum{{{labels}}} {self.total:g}", f"{name}_count{{{labels}}} {running}",
        ]  # fmt: skip


class Series:
    """What was counted of one outcome."""

    __slots__ = ("duration", "request", "requests", "response", "sizes", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.requests = 0
        self.duration, self.request, self.response = _Histogram(), _Histogram(), _Histogram()
        self.sizes: dict[tuple[int, int], int] = {}
        """(bytes of request, of response) not yet in their histograms: most requests are like another."""

    def fold(self) -> None:
        for (request_bytes, response_bytes), times in self.sizes.items():
            self.request.add(request_bytes, times)
            self.response.add(response_bytes, times)
        self.sizes.clear()


class HttpMetrics:
    """All counts of one proxy."""

    def __init__(self) -> None:
        self._series: dict[tuple[Labels | None, int, str, bytes], Series] = {}

    def add(
        self, labels: Labels, status: int, flag: str, grpc_status: bytes, *, duration_ms: float, request_bytes: int,
        response_bytes: int,
    ) -> None:  # fmt: skip
        """One finished request. `status` 0 means that none was sent."""
        key = (labels, status, flag, grpc_status)
        held = self._series.get(key)
        if held is None:
            held = self._make(key)
        held.requests += 1
        duration = held.duration
        duration.counts[bisect_left(BUCKETS_MS, duration_ms)] += 1
        duration.total += duration_ms
        sizes, pair = held.sizes, (request_bytes, response_bytes)
        sizes[pair] = sizes.get(pair, 0) + 1
        if len(sizes) > _SIZES_LIMIT:
            held.fold()

    def _make(self, key: tuple[Labels | None, int, str, bytes]) -> Series:
        labels, status, flag, grpc_status = key
        if len(self._series) >= _SERIES_LIMIT:
            key = (None, status, flag, b"")
            if key in self._series:
                return self._series[key]
        text = labels.text if key[0] is not None and labels is not None else f'reporter="{_UNKNOWN}"'
        grpc = grpc_status.decode("latin-1") if grpc_status.isdigit() else ""
        series = Series(
            f'{text},response_code="{status}",grpc_response_status="{grpc}",response_flags="{escape(flag or "-")}"'
        )
        self._series[key] = series
        return series

    def render(self) -> str:
        """Prometheus text format 0.0.4."""
        if not self._series:
            return ""
        held = list(self._series.values())
        for s in held:
            s.fold()
        lines = ["# HELP istio_requests_total Requests.", "# TYPE istio_requests_total counter"]
        lines += [f"istio_requests_total{{{s.text}}} {s.requests}" for s in held]
        for name, attribute, text in (
            ("istio_request_duration_milliseconds", "duration", "Duration of requests."),
            ("istio_request_bytes", "request", "Bytes of request bodies."),
            ("istio_response_bytes", "response", "Bytes of response bodies."),
        ):
            lines += [f"# HELP {name} {text}", f"# TYPE {name} histogram"]
            for s in held:
                lines += getattr(s, attribute).lines(name, s.text)
        return "\n".join(lines) + "\n"


def log_line(
    *, time_s: float, method: bytes, path: bytes, protocol: str, status: int, flag: str, request_bytes: int,
    response_bytes: int, duration_ms: float, downstream: str, upstream: str, cluster: str, authority: bytes,
    request_id: bytes, peer: str, reason: str, route: str,
) -> str:  # fmt: skip
    """Istio's default text format, shortened to what is known here; every value of a peer's is quoted."""
    stamp = datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    quoted = [_quote(x) for x in (authority, request_id)]
    return (
        f"[{stamp}] {_quote(method + b' ' + path + b' HTTP/' + protocol.encode())} {status} {flag or '-'} "
        f"{_quote(reason.encode()) if reason else '-'} {request_bytes} {response_bytes} {duration_ms:.0f} "
        f"{quoted[0]} {quoted[1]} {_quote(upstream.encode())} {cluster or '-'} {downstream} {route or '-'} "
        f"{peer or '-'}"
    )


def tcp_line(
    *, time_s: float, received: int, sent: int, duration_ms: float, upstream: str, downstream: str, peer: str,
    service: str,
) -> str:  # fmt: skip
    """The same for a connection that is not HTTP: no request, no status."""
    stamp = datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return (
        f'[{stamp}] "- - -" 0 - - {received} {sent} {duration_ms:.0f} - - {_quote(upstream.encode())} '
        f"{service or '-'} {downstream} - {peer or '-'}"
    )


def _quote(value: bytes) -> str:
    text = value.decode("latin-1").replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c.isprintable() and c.isascii() else f"\\x{ord(c):02x}" for c in text) + '"'
