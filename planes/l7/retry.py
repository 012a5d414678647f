"""Retries: which failures, how often, after what pause, within which budget. Pure; time and chance are arguments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from testbed.model.traffic import Retries, RetryBudget

DEFAULT_ATTEMPTS = 2
DEFAULT_CONDITIONS = frozenset({"connect-failure", "refused-stream", "unavailable", "cancelled"})
"""Istio's mesh default (facts/hbone 4.5)."""
BACKOFF_BASE_S = 0.025


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    attempts: int = DEFAULT_ATTEMPTS
    """After the first try."""
    conditions: frozenset[str] = DEFAULT_CONDITIONS
    statuses: frozenset[int] = frozenset()
    per_try_timeout_s: float | None = None
    base_s: float = BACKOFF_BASE_S
    max_s: float = 10 * BACKOFF_BASE_S
    avoid_previous: bool = True
    """Another endpoint than those tried, where there is one (five selections, as Istio sets it)."""

    @classmethod
    def of(cls, retries: Retries | None) -> RetryPolicy | None:
        """None: no retries at all."""
        if retries is None:
            return DEFAULT
        attempts = DEFAULT_ATTEMPTS if retries.attempts is None else retries.attempts
        if attempts <= 0:
            return None
        words = [w.strip() for w in retries.retry_on.split(",") if w.strip()]
        statuses = frozenset(int(w) for w in words if w.isdigit())
        conditions = frozenset(w for w in words if not w.isdigit()) or (frozenset() if statuses else DEFAULT_CONDITIONS)
        base_s = BACKOFF_BASE_S if retries.backoff_s is None else retries.backoff_s
        return cls(
            attempts=attempts, conditions=conditions, statuses=statuses, per_try_timeout_s=retries.per_try_timeout_s,
            base_s=base_s, max_s=10 * base_s, avoid_previous=retries.ignore_previous_hosts is not False,
        )  # fmt: skip


DEFAULT = RetryPolicy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What came of one try: a response's head, or none. `grpc_status` is the head's own, of an answer without body."""

    status: int | None = None
    """None: no response at all."""
    grpc_status: int | None = None
    connect_failed: bool = False
    refused: bool = False
    """The peer surely did nothing with it (`was_reset(unprocessed=True)`)."""
    overloaded: bool = False
    """Refused by our own circuit breaker, or the peer said `x-envoy-overloaded`: never tried again."""


_GRPC = {"cancelled": 1, "deadline-exceeded": 4, "resource-exhausted": 8, "internal": 13, "unavailable": 14}
_GATEWAY_ERRORS = (502, 503, 504)


def wants_retry(policy: RetryPolicy, failure: Failure) -> bool:
    """Envoy's RetryState: a try without response counts for `reset`, `5xx` and `gateway-error`, whatever broke."""
    on = policy.conditions
    if failure.overloaded:
        return False
    if failure.status is None:
        return (
            not on.isdisjoint(("reset", "5xx", "gateway-error"))
            or (failure.refused and "refused-stream" in on)
            or (failure.connect_failed and "connect-failure" in on)
        )
    status = failure.status
    if status >= 500 and "5xx" in on:
        return True
    if status in _GATEWAY_ERRORS and "gateway-error" in on:
        return True
    if status == 409 and "retriable-4xx" in on:
        return True
    if status in policy.statuses:
        return True
    return failure.grpc_status is not None and any(
        code == failure.grpc_status and name in on for name, code in _GRPC.items()
    )


class RetryLimit:
    """How many retries of one cluster may be under way: a budget's share of its requests, or a fixed number."""

    __slots__ = ("_fixed", "_minimum", "_share", "active_requests", "active_retries")

    def __init__(self, budget: RetryBudget | None = None, max_retries: int | None = None) -> None:
        self._share = budget.share if budget is not None else None
        self._minimum = budget.min_concurrency if budget is not None else 0
        self._fixed = max_retries
        self.active_requests = 0
        """Counted by the exchange, retries included."""
        self.active_retries = 0

    @property
    def has_room(self) -> bool:
        if self._share is not None:
            return self.active_retries < max(self._minimum, int(self._share * self.active_requests))
        return self._fixed is None or self.active_retries < self._fixed


class Retrial:
    """The retries of one request. `replayable`: its whole body is still at hand, or it has none."""

    __slots__ = ("_limit", "_policy", "_retrying", "tries")

    def __init__(self, policy: RetryPolicy | None, limit: RetryLimit) -> None:
        self._policy = policy
        self._limit = limit
        self._retrying = False
        self.tries = 1
        """So far, the first one included: what x-envoy-attempt-count says."""

    def again(
        self, failure: Failure, *, draw: Callable[[], float], replayable: bool = True, response_begun: bool = False
    ) -> float | None:
        """The pause in seconds before another try; None: what came stands. Call `over()` when the request is done."""
        self._leave()
        policy = self._policy
        if policy is None or response_begun or not replayable or self.tries > policy.attempts:
            return None
        if not wants_retry(policy, failure) or not self._limit.has_room:
            return None
        self._retrying = True
        self._limit.active_retries += 1
        pause_s = backoff_s(policy, self.tries, draw)
        self.tries += 1
        return pause_s

    def over(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._retrying:
            self._retrying = False
            self._limit.active_retries -= 1


def backoff_s(policy: RetryPolicy, retry: int, draw: Callable[[], float]) -> float:
    """Before the n-th retry, from 1: anywhere below (2^n - 1) bases, at most 10 bases (Envoy's full jitter)."""
    return draw() * min((2**retry - 1) * policy.base_s, policy.max_s)
