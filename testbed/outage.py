"""What an event did to a stream, counted from its raw rows. Pure.

Times are CLOCK_MONOTONIC. A request has failed if it has an error or another status than 200; whether that is a fault
or what a policy wants, the question of the experiment says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from testbed.model.experiment import RequestRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Fate:
    """Of one stream. Without a request after the event all is zero and nothing has recovered."""

    requests: int
    """Since the event."""
    failed: int
    """Of them."""
    failed_before: int
    """In the window before the event: what this machine and plane fail without one."""
    longest_gap_s: float
    """Longest time without an answered request, from the last one before the event on."""
    recovery_s: float | None
    """From the event to the first success after the last failure; 0 where none failed, None where none came."""
    broken: int
    """Connections of a held stream whose end was another than their client's: reset, closed, silent for too long."""
    moved: int
    """Times that a connection was opened anew without having broken: its peer had said that it would close."""
    first_failure_s: float | None
    """From the event to when the first one that failed was sent."""
    last_success_s: float | None
    """From the event to when the last one that was answered was sent; None where none was."""


def is_good(row: RequestRow) -> bool:
    return not row.error and row.status == 200


def is_broken(row: RequestRow) -> bool:
    """The connection is gone: an answer of any status leaves it there."""
    return bool(row.error) and not row.error.startswith("status ")


def fate(
    rows: Sequence[RequestRow], *, event_s: float, end_s: float, held: bool, connections: int = 1, connects: int = 0
) -> Fate:
    """`rows` are those of the stream's window; `connects` counts what was opened, but for what had broken before it."""
    before = [row for row in rows if row.intended_s < event_s]
    after = [row for row in rows if row.intended_s >= event_s]
    # What was under way at the event may be its victim: by its end it belongs to what came after.
    late = [row for row in before if not is_good(row) and row.last_byte_s >= event_s]
    failed = sorted((*late, *(row for row in after if not is_good(row))), key=lambda row: row.last_byte_s)
    good = [row for row in rows if is_good(row)]
    broken = {row.connection for row in (*late, *after) if is_broken(row)} if held else set()
    ended_badly = sum(is_broken(row) for row in rows)
    return Fate(
        requests=len(after) + len(late),
        failed=len(failed),
        failed_before=sum(not is_good(row) for row in before) - len(late),
        longest_gap_s=longest_gap(sorted(row.last_byte_s for row in good), event_s=event_s, end_s=end_s),
        recovery_s=_recovery(failed, good, event_s),
        broken=len(broken),
        moved=max(0, connects - connections - ended_badly) if held else 0,
        first_failure_s=min((row.sent_s - event_s for row in failed), default=None),
        last_success_s=max((row.sent_s - event_s for row in good if row.sent_s >= event_s), default=None),
    )


def longest_gap(successes_s: Sequence[float], *, event_s: float, end_s: float) -> float:
    """Between two successes, of which one at least came after the event; the window's end counts as one."""
    earlier = [at for at in successes_s if at <= event_s]
    marks = [earlier[-1] if earlier else event_s, *(at for at in successes_s if event_s < at < end_s), end_s]
    return max(later - sooner for sooner, later in pairwise(marks))


def _recovery(failed: Sequence[RequestRow], good: Sequence[RequestRow], event_s: float) -> float | None:
    if not failed:
        return 0.0
    last_s = max(row.sent_s for row in failed)
    return min((row.last_byte_s - event_s for row in good if row.sent_s > last_s), default=None)
