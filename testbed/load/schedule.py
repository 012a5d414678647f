"""When requests are meant to be sent: drawn before the trial, so that nothing measured can bend it.

Pure: chance comes in as `draw`, uniform in [0, 1) (such as `random.Random(seed).random`); times are seconds from the
start of the warm-up. Open loop as in wrk2 and Nighthawk; Poisson arrivals have exponential gaps, -ln(1-u)/rate
(inversion; Devroye, Non-Uniform Random Variate Generation, 1986, ch. II.2).
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable

from testbed.errors import UsageError
from testbed.model.experiment import Load

ARRIVALS = ("poisson", "uniform")
MAX_REQUESTS = 5_000_000


def check(plan: Load) -> None:
    """Raises UsageError naming the field that cannot be."""
    if plan.kind not in ("open", "closed"):
        raise UsageError(f"load: kind {plan.kind!r} is not known; known: closed, open")
    if plan.arrival not in ARRIVALS:
        raise UsageError(f"load: arrival {plan.arrival!r} is not known; known: {', '.join(ARRIVALS)}")
    if plan.connections < 1:
        raise UsageError(f"load: connections {plan.connections} must be 1 or more")
    if plan.warmup_s < 0 or plan.window_s <= 0 or not math.isfinite(plan.warmup_s + plan.window_s):
        raise UsageError(f"load: warmup_s {plan.warmup_s:g} must be 0 or more, window_s {plan.window_s:g} above 0")
    if plan.request_bytes < 0 or plan.response_bytes < 0:
        raise UsageError("load: request_bytes and response_bytes must not be negative")
    if plan.kind == "open":
        expected = plan.rate_rps * (plan.warmup_s + plan.window_s)
        if not 0 < expected <= MAX_REQUESTS:
            raise UsageError(
                f"load: rate_rps {plan.rate_rps:g} over {plan.warmup_s + plan.window_s:g} s gives {expected:g} "
                f"requests; it must be above 0 and at most {MAX_REQUESTS}"
            )


def intended_times(plan: Load, draw: Callable[[], float]) -> array[float]:
    """Ascending times in [0, warmup_s + window_s).

    Uniform arrivals are one every 1/rate with a random phase, so that generators started together do not send together.
    """
    check(plan)
    end_s = plan.warmup_s + plan.window_s
    gap_s = 1.0 / plan.rate_rps
    times = array("d")
    if plan.arrival == "uniform":
        phase_s = draw() * gap_s
        # Multiplied, not summed: a sum of a million gaps drifts.
        number = 0
        while (at_s := phase_s + number * gap_s) < end_s:
            times.append(at_s)
            number += 1
        return times
    at_s = 0.0
    while (at_s := at_s - math.log(1.0 - draw()) * gap_s) < end_s:
        times.append(at_s)
    return times


def in_window(at_s: float, plan: Load) -> bool:
    """Whether a time from `intended_times` belongs to the stretch that counts."""
    return plan.warmup_s <= at_s < plan.warmup_s + plan.window_s
