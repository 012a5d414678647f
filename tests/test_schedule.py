"""Send times, drawn before the trial."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.errors import UsageError
from testbed.load.schedule import check, in_window, intended_times, read_trace
from testbed.model.experiment import Load

plans = st.builds(
    Load,
    rate_rps=st.floats(0.5, 2000),
    arrival=st.sampled_from(["uniform", "poisson"]),
    warmup_s=st.floats(0, 2),
    window_s=st.floats(0.01, 3),
)


@given(plans, st.integers())
def test_times_ascend_within_warmup_and_window(plan: Load, seed: int) -> None:
    """Whatever the plan, times are in order and none lies outside the trial."""
    times = intended_times(plan, random.Random(seed).random)

    assert list(times) == sorted(times)
    assert all(0 <= at_s < plan.warmup_s + plan.window_s for at_s in times)


@given(plans, st.integers())
def test_a_seed_decides_everything(plan: Load, seed: int) -> None:
    """Two draws from one seed give the same times."""
    assert intended_times(plan, random.Random(seed).random) == intended_times(plan, random.Random(seed).random)


@given(plans, st.integers())
def test_uniform_times_keep_the_rate_exactly(plan: Load, seed: int) -> None:
    """The number of uniform times is the rate times the length, rounded one way or the other, at even gaps."""
    plan = Load(rate_rps=plan.rate_rps, arrival="uniform", warmup_s=plan.warmup_s, window_s=plan.window_s)
    times = intended_times(plan, random.Random(seed).random)

    assert abs(len(times) - plan.rate_rps * (plan.warmup_s + plan.window_s)) <= 1
    for before, after in itertools.pairwise(times):
        assert after - before == pytest.approx(1 / plan.rate_rps, abs=1e-9)


def test_uniform_phases_differ_between_seeds() -> None:
    """Generators started together must not send together: that artefact is as large as a proxy's cost."""
    plan = Load(rate_rps=100, arrival="uniform")

    assert len({intended_times(plan, random.Random(seed).random)[0] for seed in range(20)}) == 20


@pytest.mark.parametrize("seed", range(5))
def test_poisson_gaps_have_the_mean_and_spread_of_an_exponential(seed: int) -> None:
    """20,000 gaps: mean and standard deviation are both 1/rate within 5 standard errors."""
    times = intended_times(Load(rate_rps=1000, warmup_s=0, window_s=20), random.Random(seed).random)
    gaps = [after - before for before, after in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    spread = (sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) ** 0.5

    assert mean == pytest.approx(0.001, rel=5 / len(gaps) ** 0.5)
    assert spread == pytest.approx(0.001, rel=5 * 2 / len(gaps) ** 0.5)


@given(plans, st.integers(), st.integers(0, 7))
def test_synchronised_arrivals_come_in_whole_bursts_at_the_asked_rate(plan: Load, seed: int, burst: int) -> None:
    """As many at one instant as asked for, or one for each connection; between bursts the time they all take."""
    plan = replace(plan, arrival="synchronised", burst=burst, connections=5)
    times = intended_times(plan, random.Random(seed).random)
    together = [len(list(same)) for _, same in itertools.groupby(times)]
    starts = sorted(set(times))

    assert set(together) <= {burst or 5}
    assert abs(len(times) - plan.rate_rps * (plan.warmup_s + plan.window_s)) <= (burst or 5)
    for before, after in itertools.pairwise(starts):
        assert after - before == pytest.approx((burst or 5) / plan.rate_rps, abs=1e-9)


def test_a_trace_is_played_as_it_is_over_and_over() -> None:
    """Its gaps as they stand; between its last time and its first again lies its mean gap."""
    plan = Load(arrival="trace", trace="x", rate_rps=0, warmup_s=0, window_s=7)

    times = intended_times(plan, random.random, (10.0, 10.5, 12.0))
    assert list(times) == pytest.approx([0, 0.5, 2.0, 3.0, 3.5, 5.0, 6.0, 6.5])


@given(st.lists(st.floats(0.001, 5), min_size=2, max_size=30), st.floats(5, 500))
def test_a_trace_is_stretched_to_the_asked_rate(gaps: list[float], rate_rps: float) -> None:
    """Over whole laps exactly that many requests, in the proportions of the trace."""
    trace = list(itertools.accumulate(gaps))
    plan = Load(arrival="trace", trace="x", rate_rps=rate_rps, warmup_s=0, window_s=3 * len(trace) / rate_rps)
    times = intended_times(plan, random.random, trace)
    asked = [(after - before) for before, after in itertools.pairwise(trace)]
    got = [(after - before) for before, after in itertools.pairwise(times[: len(trace)])]
    scale = got[0] / asked[0]

    assert abs(len(times) - 3 * len(trace)) <= 1
    assert got == pytest.approx([gap * scale for gap in asked], rel=1e-6, abs=1e-9)


def test_a_trace_file_reads_with_comments_and_names_the_line_that_does_not() -> None:
    """Whoever wrote it learns where to look."""
    assert read_trace("# seconds\n0\n\n0.25  # second\n0.25\n1e1\n", where="t") == (0.0, 0.25, 0.25, 10.0)
    for text, said in (
        ("0\n2\n1\n", "t:3: '1'"),
        ("0\nsoon\n", "t:2: 'soon'"),
        ("-1\n3", "t:1: '-1'"),
        ("0\nnan\n", "t:2: 'nan'"),
        ("5\n", "two times or more"),
        ("5\n5\n", "a while apart"),
    ):
        with pytest.raises(UsageError, match=said):
            read_trace(text, where="t")


def test_the_window_begins_where_the_warmup_ends() -> None:
    """The first instant after the warm-up counts, the last instant of the window does not."""
    plan = Load(warmup_s=1, window_s=4)

    assert [in_window(at_s, plan) for at_s in (0.999, 1.0, 4.999, 5.0)] == [False, True, True, False]


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Load(rate_rps=0), "rate_rps 0"),
        (Load(rate_rps=1e9), "at most"),
        (Load(rate_rps=float("nan")), "rate_rps nan"),
        (Load(arrival="bursty"), "known: poisson, synchronised, trace, uniform"),
        (Load(arrival="trace"), "a trace takes both"),
        (Load(trace="x"), "a trace takes both"),
        (Load(protocol="spdy"), "known: grpc, http1, http2, tcp"),
        (Load(protocol="tcp"), "request_bytes of 1 or more"),
        (Load(burst=-1), "must not be negative"),
        (Load(requests_per_connection=-1), "must not be negative"),
        (Load(arrival="trace", trace="x", rate_rps=-1), "above 0"),
        (Load(connections=0), "connections 0"),
        (Load(window_s=0), "window_s 0"),
        (Load(warmup_s=-1), "warmup_s -1"),
        (Load(kind="ajar"), "known: closed, open"),
        (Load(request_bytes=-1), "must not be negative"),
    ],
)
def test_a_plan_that_cannot_be_says_which_field(plan: Load, said: str) -> None:
    """The author of a plan learns the field and the range."""
    with pytest.raises(UsageError, match=said):
        check(plan)
