"""When a request is sent again, after what pause, and within which bounds."""

from __future__ import annotations

import pytest

from planes.l7.retry import DEFAULT, Failure, Retrial, RetryLimit, RetryPolicy, backoff_s, wants_retry
from testbed.model.traffic import Retries, RetryBudget

NOTHING = Failure()
CONNECT = Failure(connect_failed=True)
REFUSED = Failure(refused=True)


def status(number: int, grpc: int | None = None) -> Failure:
    return Failure(status=number, grpc_status=grpc)


@pytest.mark.parametrize(
    ("retry_on", "yes", "no"),
    [
        ("", [CONNECT, REFUSED, status(200, 14), status(200, 1)], [NOTHING, status(503), status(200, 13)]),
        ("5xx", [status(500), status(503), NOTHING, CONNECT, REFUSED], [status(404), status(200)]),
        ("gateway-error", [status(502), status(503), status(504), NOTHING], [status(500), status(501)]),
        ("reset", [NOTHING, CONNECT, REFUSED], [status(500)]),
        ("connect-failure", [CONNECT], [NOTHING, REFUSED, status(503)]),
        ("refused-stream", [REFUSED], [NOTHING, CONNECT]),
        ("retriable-4xx", [status(409)], [status(404), status(500)]),
        ("418,503", [status(418), status(503)], [status(500), CONNECT]),
        ("reset,429", [NOTHING, status(429)], [status(503)]),
        ("deadline-exceeded,internal", [status(200, 4), status(200, 13)], [status(200, 14)]),
        ("resource-exhausted", [status(200, 8)], [status(200, 0), status(200)]),
    ],
)
def test_conditions(retry_on: str, yes: list[Failure], no: list[Failure]) -> None:
    """Envoy's names; no response at all counts for `reset`, `5xx` and `gateway-error`."""
    policy = RetryPolicy.of(Retries(attempts=1, retry_on=retry_on))
    assert policy is not None

    assert [wants_retry(policy, f) for f in yes] == [True] * len(yes)
    assert [wants_retry(policy, f) for f in no] == [False] * len(no)


def test_what_was_refused_for_overload_is_never_tried_again() -> None:
    """Retries would make it worse."""
    policy = RetryPolicy(conditions=frozenset({"5xx"}))
    assert not wants_retry(policy, Failure(status=503, overloaded=True))
    assert not wants_retry(policy, Failure(overloaded=True))


def test_two_retries_by_default_and_then_what_came_stands() -> None:
    """Three tries in all."""
    limit = RetryLimit()
    retrial = Retrial(DEFAULT, limit)

    pauses = [retrial.again(CONNECT, draw=lambda: 0.5) for _ in range(3)]
    assert pauses == [pytest.approx(0.0125), pytest.approx(0.0375), None]
    assert retrial.tries == 3
    assert limit.active_retries == 0


@pytest.mark.parametrize("hindrance", [{"replayable": False}, {"response_begun": True}])
def test_a_body_that_is_gone_or_an_answer_begun_forbids_it(hindrance: dict[str, bool]) -> None:
    """A client must never see parts of two answers, nor a server half a body."""
    assert Retrial(DEFAULT, RetryLimit()).again(CONNECT, draw=lambda: 0.5, **hindrance) is None


def test_no_policy_no_retry() -> None:
    """`attempts: 0`."""
    assert Retrial(None, RetryLimit()).again(CONNECT, draw=lambda: 0.5) is None


def test_a_budget_is_a_share_of_requests_but_never_below_its_minimum() -> None:
    """20 % and 3 by default."""
    limit = RetryLimit(RetryBudget())
    running = [Retrial(DEFAULT, limit) for _ in range(10)]

    def begun() -> list[bool]:
        return [r.again(CONNECT, draw=lambda: 0.5) is not None for r in running]

    assert begun().count(True) == 3
    for retrial in running:
        retrial.over()
    assert limit.active_retries == 0
    limit.active_requests = 25
    running = [Retrial(DEFAULT, limit) for _ in range(10)]
    assert begun().count(True) == 5


def test_max_retries_is_a_plain_number() -> None:
    """connectionPool.http.maxRetries, where there is no budget."""
    limit = RetryLimit(max_retries=1)
    first, second = Retrial(DEFAULT, limit), Retrial(DEFAULT, limit)

    assert first.again(CONNECT, draw=lambda: 0.5) is not None
    assert second.again(CONNECT, draw=lambda: 0.5) is None
    first.over()
    assert second.again(CONNECT, draw=lambda: 0.5) is not None


def test_back_off_grows_and_is_capped() -> None:
    """(2^n - 1) bases, at most ten; the base may be told."""
    policy = RetryPolicy.of(Retries(attempts=9, backoff_s=0.1))
    assert policy is not None

    assert [round(backoff_s(DEFAULT, n, lambda: 1.0), 3) for n in (1, 2, 3, 4, 9)] == [0.025, 0.075, 0.175, 0.25, 0.25]
    assert [backoff_s(policy, n, lambda: 1.0) for n in (1, 9)] == [0.1, 1.0]
    assert backoff_s(DEFAULT, 1, lambda: 0.0) == 0.0


def test_trying_the_same_endpoint_again_may_be_asked_for() -> None:
    """retryIgnorePreviousHosts: false."""
    policy = RetryPolicy.of(Retries(attempts=1, ignore_previous_hosts=False))
    assert policy is not None and not policy.avoid_previous
    assert DEFAULT.avoid_previous
