"""Retries: which failures, how often, after what pause, within which budget. Pure; time and chance are arguments."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from planes.l7.message import Fields
from testbed.model.traffic import Retries


class Failure(StrEnum):
    """Why an attempt ended without a response."""

    CONNECT = "connect"
    """No connection could be made."""
    REFUSED = "refused"
    """The peer surely did nothing with the request."""
    RESET = "reset"
    TIMEOUT = "timeout"
    """Its own limit of time."""


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

    def after_failure(self, failure: Failure) -> bool:
        held = self.conditions
        if failure is Failure.CONNECT:
            return "connect-failure" in held or "gateway-error" in held or "5xx" in held
        if failure is Failure.REFUSED:
            return "refused-stream" in held or "reset" in held or "5xx" in held
        return "reset" in held or "gateway-error" in held or "5xx" in held

    def after_response(self, status: int, fields: Fields) -> bool:
        if status < 400:
            return False
        held = self.conditions
        return status in self.statuses or (status >= 500 and "5xx" in held)

    def pause_s(self, attempt: int, draw: float) -> float:
        return min(self.base_s * (2**attempt - 1), self.max_s) * draw


DEFAULT = RetryPolicy()
