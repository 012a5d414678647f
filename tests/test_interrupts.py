"""Signals as one KeyboardInterrupt: the first raises, the others do not, and none is lost."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from testbed import interrupts


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    """pytest's own handlers come back, and nothing is remembered. A background job's SIGINT is ignored: not here."""
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    interrupts._came.clear()
    yield
    interrupts._came.clear()
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_the_first_signal_raises_and_a_second_does_not_cut_the_clean_up_short(
    number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is answered, so that nobody thinks it was not heard."""
    cleaned = False
    with interrupts.heard():
        try:
            os.kill(os.getpid(), number)
            raise AssertionError("no signal came")
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGINT)
            cleaned = True

    assert cleaned
    assert capfd.readouterr().err == "already taking everything down\n"


def test_a_raise_that_was_swallowed_comes_again_between_steps() -> None:
    """As a finalizer or a callback does."""
    with interrupts.heard():
        interrupts.check()
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            pass

        with pytest.raises(KeyboardInterrupt):
            interrupts.check()


def test_what_the_caller_ignores_stays_ignored() -> None:
    """nohup, and background jobs of a shell."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    with interrupts.heard():
        os.kill(os.getpid(), signal.SIGHUP)

    assert interrupts._came == []


def test_handlers_are_given_back() -> None:
    """To whoever had them before."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)

    with interrupts.heard():
        assert signal.getsignal(signal.SIGTERM) is interrupts._on_signal

    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
