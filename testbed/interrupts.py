"""Ctrl-C, SIGTERM and a closed terminal as one `KeyboardInterrupt`, and the promise that nothing stays behind it.

Only the first signal raises: a second one, out of impatience, must not cut the clean-up short (SIGKILL always remains:
the kernel then ends what is ours). A raise may be lost where Python swallows it, as in a finalizer; `check` between
steps raises it again. A raise may also hit the few instructions between making a lab and owning it; `sweep_own` at the
very end takes down whatever lab this process still has.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_CODE = 130
_came: list[int] = []


def install() -> None:
    """From now on the first signal raises KeyboardInterrupt in the main thread. What is ignored (nohup) stays so."""
    _came.clear()
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _on_signal)


@contextmanager
def heard() -> Iterator[None]:
    """As `install`, for the length of the `with`."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    came = list(_came)
    install()
    _came.extend(came)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def deafen() -> None:
    """All is clean: the last word is ours. Python's own end gives handlers back to the kernel's default, and another
    Ctrl-C would end this process by the signal and not with its code."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def release() -> None:
    """Back to the kernel's defaults, for a process that is about to become another program."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # ignored by Python itself
        signal.signal(number, signal.SIG_DFL)


def _on_signal(number: int, _frame: object) -> None:
    _came.append(number)
    if len(_came) == 1:
        raise KeyboardInterrupt
    os.write(2, b"already taking everything down\n")


def check() -> None:
    """Between steps: raises KeyboardInterrupt if a signal came whose own raise was lost."""
    if _came:
        raise KeyboardInterrupt


def sweep_own() -> list[str]:
    """Takes down labs that this process owns and did not detach; returns their names. For the way out only."""
    from testbed.runtime import ownership

    root = ownership.state_root()
    me = ownership.being(os.getpid())
    own = [state for state in ownership.labs(root) if state.owner == me and not state.detached]
    for state in own:
        ownership.bury(state, root)
    return [state.name for state in own]
