"""What all connections of a cluster share: circuit, retry budget, outlier detection; and when idle ones end."""

from __future__ import annotations

from planes.l7.balance import Balancer, Host
from planes.l7.circuit import Circuit, OutlierDetector
from planes.l7.retry import RetryLimit
from testbed.model.traffic import ConnectionPool, TrafficPolicy

IDLE_LIMIT_S = 3600.0
"""Envoy's for connections without a request, up and down."""
CONNECT_LIMIT_S = 10.0


class Group:
    """One cluster's; `circuit` and `detector` are None where the policy sets none, which costs a request nothing."""

    __slots__ = ("circuit", "connect_limit_s", "detector", "idle_limit_s", "requests_per_connection", "retries")

    def __init__(self, policy: TrafficPolicy | None = None) -> None:
        pool = (policy.connection_pool if policy is not None else None) or ConnectionPool()
        limited = (pool.max_connections, pool.max_pending_requests, pool.max_requests) != (None, None, None)
        self.circuit = Circuit(pool) if limited else None
        self.retries = RetryLimit(policy.retry_budget if policy is not None else None, pool.max_retries)
        self.detector: OutlierDetector | None = None
        idle_s = pool.http_idle_timeout_s if pool.http_idle_timeout_s is not None else pool.idle_timeout_s
        self.idle_limit_s = IDLE_LIMIT_S if idle_s is None else idle_s
        self.connect_limit_s = pool.connect_timeout_s or CONNECT_LIMIT_S
        self.requests_per_connection = pool.max_requests_per_connection or 0
        """0: no limit."""

    def watch(self, policy: TrafficPolicy, balancer: Balancer, now_s: float) -> None:
        if policy.outlier_detection is not None and balancer.members:
            self.detector = OutlierDetector(balancer, policy.outlier_detection, now_s)

    def observe(self, host: Host | None, status: int | None, now_s: float) -> None:
        """`status` None: no response."""
        if self.detector is not None and host is not None:
            self.detector.observe(host, status, now_s)


UNLIMITED = Group()
