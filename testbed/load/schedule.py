"""When requests are meant to be sent: drawn before the trial, so that nothing measured can bend it.

Pure: chance comes in as `draw`, uniform in [0, 1) (such as `random.Random(seed).random`); times are seconds from the
start of the warm-up. Open loop as in wrk2 and Nighthawk; Poisson arrivals have exponential gaps, -ln(1-u)/rate
(inversion; Devroye, Non-Uniform Random Variate Generation, 1986, ch. II.2). Synchronised arrivals are what load
generators do whose users all start in phase; Istio's own figures fell by a third once they no longer did (release 1.7).
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections.abc import Callable, Sequence

from testbed.errors import UsageError
from testbed.model.experiment import Load

ARRIVALS = ("poisson", "synchronised", "trace", "uniform")
PROTOCOLS = ("grpc", "http1", "http2", "tcp")
MAX_REQUESTS = 5_000_000
MAX_PROCESSES = 64


def check(plan: Load) -> None:
    """Raises UsageError naming the field that cannot be."""
    if plan.kind not in ("open", "closed"):
        raise UsageError(f"load: kind {plan.kind!r} is not known; known: closed, open")
    if plan.arrival not in ARRIVALS:
        raise UsageError(f"load: arrival {plan.arrival!r} is not known; known: {', '.join(ARRIVALS)}")
    if plan.protocol not in PROTOCOLS:
        raise UsageError(f"load: protocol {plan.protocol!r} is not known; known: {', '.join(PROTOCOLS)}")
    if (plan.arrival == "trace") != bool(plan.trace):
        raise UsageError(f"load: arrival {plan.arrival!r}, trace {plan.trace!r}; a trace takes both, others neither")
    if plan.requests_per_connection < 0 or plan.burst < 0:
        raise UsageError("load: requests_per_connection and burst must not be negative")
    if plan.protocol == "tcp" and plan.request_bytes < 1:
        raise UsageError("load: over tcp an echo takes request_bytes of 1 or more")
    if plan.request_ids and (plan.kind, plan.protocol) != ("open", "http1"):
        raise UsageError(f"load: request ids take an open loop over http1, not {plan.kind} over {plan.protocol}")
    if plan.connections < 1:
        raise UsageError(f"load: connections {plan.connections} must be 1 or more")
    if not 1 <= plan.processes <= min(plan.connections, MAX_PROCESSES):
        raise UsageError(
            f"load: processes {plan.processes} must be 1 or more, at most {MAX_PROCESSES}, and each needs one of the "
            f"{plan.connections} connections"
        )
    if plan.warmup_s < 0 or plan.window_s <= 0 or not math.isfinite(plan.warmup_s + plan.window_s):
        raise UsageError(f"load: warmup_s {plan.warmup_s:g} must be 0 or more, window_s {plan.window_s:g} above 0")
    if plan.request_bytes < 0 or plan.response_bytes < 0:
        raise UsageError("load: request_bytes and response_bytes must not be negative")
    if plan.kind == "open" and not (plan.trace and plan.rate_rps == 0):
        expected = plan.rate_rps * (plan.warmup_s + plan.window_s)
        if not 0 < expected <= MAX_REQUESTS:
            raise UsageError(
                f"load: rate_rps {plan.rate_rps:g} over {plan.warmup_s + plan.window_s:g} s gives {expected:g} "
                f"requests; it must be above 0 and at most {MAX_REQUESTS}"
            )


def read_trace(text: str, *, where: str) -> tuple[float, ...]:
    """Times of a trace file: one a line, ascending, `#` begins a comment. Raises UsageError naming the line."""
    times: list[float] = []
    for number, line in enumerate(text.splitlines(), 1):
        word = line.partition("#")[0].strip()
        if not word:
            continue
        try:
            at_s = float(word)
        except ValueError:
            at_s = math.nan
        if not math.isfinite(at_s) or at_s < (times[-1] if times else 0.0):
            raise UsageError(f"{where}:{number}: {word[:40]!r} is no time of 0 s or more, not before the one above it")
        times.append(at_s)
        if len(times) > MAX_REQUESTS:
            raise UsageError(f"{where}: more than {MAX_REQUESTS} times")
    if len(times) < 2 or times[-1] <= times[0]:
        raise UsageError(f"{where}: a trace takes two times or more, a while apart")
    return tuple(times)


def intended_times(plan: Load, draw: Callable[[], float], trace_s: Sequence[float] = ()) -> array[float]:
    """Ascending times in [0, warmup_s + window_s).

    Uniform and synchronised arrivals have a random phase, so that generators started together do not send together.
    """
    check(plan)
    end_s = plan.warmup_s + plan.window_s
    if plan.arrival == "trace":
        return _played(trace_s, plan.rate_rps, end_s)
    gap_s = 1.0 / plan.rate_rps
    times = array("d")
    if plan.arrival in ("uniform", "synchronised"):
        burst = (plan.burst or plan.connections) if plan.arrival == "synchronised" else 1
        phase_s = draw() * gap_s * burst
        # Multiplied, not summed: a sum of a million gaps drifts.
        number = 0
        while (at_s := phase_s + number * gap_s * burst) < end_s:
            times.extend([at_s] * burst)
            number += 1
        return times
    at_s = 0.0
    while (at_s := at_s - math.log(1.0 - draw()) * gap_s) < end_s:
        times.append(at_s)
    return times


def _played(trace_s: Sequence[float], rate_rps: float, end_s: float) -> array[float]:
    """The trace over and over. What came after its last time nobody knows: the gap to its first is the mean one."""
    if len(trace_s) < 2:
        raise UsageError("load: a trace takes two times or more")
    length_s = (trace_s[-1] - trace_s[0]) * len(trace_s) / (len(trace_s) - 1)
    stretch = 1.0 if rate_rps == 0 else len(trace_s) / rate_rps / length_s
    if end_s / (length_s * stretch) * len(trace_s) > MAX_REQUESTS:
        raise UsageError(f"load: the trace gives more than {MAX_REQUESTS} requests in {end_s:g} s")
    times = array("d")
    for number in itertools.count():
        laps, index = divmod(number, len(trace_s))
        if (at_s := (laps * length_s + trace_s[index] - trace_s[0]) * stretch) >= end_s:
            break
        times.append(at_s)
    return times


def share(times: Sequence[float], processes: int, worker: int | None) -> Sequence[float]:
    """Which of the times a worker (from 1 on) sends: every `processes`-th, so that all together send each once; None:
    all. Bursts are dealt out as evenly as single requests."""
    return times if worker is None else times[worker - 1 :: processes]


def in_window(at_s: float, plan: Load) -> bool:
    """Whether a time from `intended_times` belongs to the stretch that counts."""
    return plan.warmup_s <= at_s < plan.warmup_s + plan.window_s
