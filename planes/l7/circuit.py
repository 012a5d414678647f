"""Circuit breaking and outlier detection of one cluster, as state machines with time as an argument. Pure.

Defaults and meaning: facts/hbone 6.2, Envoy's `outlier_detection_impl.cc`. At least one host may always be ejected,
whatever `maxEjectionPercent` comes to.
"""

from __future__ import annotations

from collections.abc import Sequence

from planes.l7.balance import Balancer, Host
from testbed.model.traffic import ConnectionPool, OutlierDetection

MAX_EJECTION_S = 300.0


class Circuit:
    """Counts what is open towards one cluster. Refusals are 503 with flag UO and `x-envoy-overloaded: true`."""

    __slots__ = ("_max_connections", "_max_pending", "_max_requests", "connections", "overflows", "pending", "requests")

    def __init__(self, pool: ConnectionPool | None = None) -> None:
        unlimited = 2**32 - 1
        limits = pool or ConnectionPool()
        self._max_requests = unlimited if limits.max_requests is None else limits.max_requests
        self._max_pending = unlimited if limits.max_pending_requests is None else limits.max_pending_requests
        self._max_connections = unlimited if limits.max_connections is None else limits.max_connections
        self.requests = 0
        self.pending = 0
        """Requests that wait for a connection."""
        self.connections = 0
        self.overflows = 0

    def admit(self) -> bool:
        """Whether one request more may go; count it in if so, and call `done` when it is over."""
        if self.requests >= self._max_requests:
            self.overflows += 1
            return False
        self.requests += 1
        return True

    def done(self) -> None:
        self.requests -= 1

    def wait(self) -> bool:
        """Whether one more may wait for a connection; end it by `waited`."""
        if self.pending >= self._max_pending:
            self.overflows += 1
            return False
        self.pending += 1
        return True

    def waited(self) -> None:
        self.pending -= 1

    @property
    def may_relay(self) -> bool:
        """Whether another connection that is not HTTP may be opened; a limit of none is kept there."""
        if self.connections < self._max_connections:
            return True
        self.overflows += 1
        return False

    @property
    def may_connect(self) -> bool:
        """Whether another connection may be opened; Envoy always allows a cluster its first."""
        return self.connections < max(1, self._max_connections)


class _Record:
    __slots__ = ("failures", "gateway_errors", "local_failures", "returns_at", "times")

    def __init__(self) -> None:
        self.failures = self.gateway_errors = self.local_failures = 0
        self.times = 0
        """Ejections, less one for each quiet interval: each makes the next longer."""
        self.returns_at = 0.0


class OutlierDetector:
    """Ejects hosts that fail again and again, and lets them back in."""

    def __init__(self, balancer: Balancer, settings: OutlierDetection, now_s: float) -> None:
        self._balancer = balancer
        self._settings = settings
        self._records = {host: _Record() for host in balancer.members}
        self._next_sweep_s = now_s + settings.interval_s

    def observe(self, host: Host, status: int | None, now_s: float) -> bool:
        """`status` None: no response (connect failure, reset, timeout). True where this ejects the host."""
        self.sweep(now_s)
        record = self._records[host]
        settings = self._settings
        if status is None:
            if settings.split_local_origin:
                record.local_failures += 1
                return self._tripped(
                    host, record, record.local_failures, settings.consecutive_local_origin_failures, now_s
                )
            status = 503  # as Envoy counts it where local failures are not told apart
        else:
            record.local_failures = 0
        if status < 500:
            record.failures = record.gateway_errors = 0
            return False
        record.failures += 1
        record.gateway_errors = record.gateway_errors + 1 if status in (502, 503, 504) else 0
        return self._tripped(
            host, record, record.gateway_errors, settings.consecutive_gateway_errors, now_s
        ) or self._tripped(host, record, record.failures, settings.consecutive_5xx, now_s)

    def _tripped(self, host: Host, record: _Record, count: int, limit: int, now_s: float) -> bool:
        if not limit or count < limit or host.ejected:
            return False
        record.failures = record.gateway_errors = record.local_failures = 0
        if not self._may_eject(self._balancer.members):
            return False
        record.times += 1
        base_s = self._settings.base_ejection_s
        record.returns_at = now_s + min(base_s * record.times, max(MAX_EJECTION_S, base_s))
        host.ejected = True
        self._balancer.ejection_changed()
        return True

    def _may_eject(self, members: Sequence[Host]) -> bool:
        ejected = sum(host.ejected for host in members)
        return ejected == 0 or (ejected + 1) / len(members) <= self._settings.max_ejection_share

    def sweep(self, now_s: float) -> None:
        """Once an interval: those whose time is up come back, those that were quiet are forgiven one ejection."""
        if now_s < self._next_sweep_s:
            return
        self._next_sweep_s = now_s + self._settings.interval_s
        changed = False
        for host, record in self._records.items():
            if host.ejected and now_s >= record.returns_at:
                host.ejected, changed = False, True
            elif not host.ejected and record.times:
                record.times -= 1
        if changed:
            self._balancer.ejection_changed()
