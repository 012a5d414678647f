"""CPU over exactly the window."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass

import pytest

from testbed.window import Sampler, interpolate

SAMPLES = [(0.0, 0), (1.0, 100), (2.0, 100), (3.0, 400)]


@pytest.mark.parametrize(
    ("at_s", "value"), [(-1.0, 0), (0.0, 0), (0.5, 50), (1.0, 100), (1.7, 100), (2.5, 250), (3.0, 400), (9.0, 400)]
)
def test_values_between_samples_are_linear(at_s: float, value: float) -> None:
    """And at the ends those of the first and the last."""
    assert interpolate(SAMPLES, at_s) == pytest.approx(value)


@dataclass
class Itself:
    name: str = "me"
    pid: int = 0
    cgroup: str | None = None


def test_what_is_burnt_before_the_window_is_not_in_it() -> None:
    """The warm-up's CPU must not reach the table."""
    sampler = Sampler(components={"me": Itself(pid=os.getpid())})
    sampler.start()
    until = time.process_time() + 0.3
    while time.process_time() < until:
        pass
    start_s = time.monotonic() + 0.15
    time.sleep(0.5)
    sampler.stop()

    burnt = sampler.usage(start_s, time.monotonic())["me"].cpu_s
    total = sampler.usage(0.0, time.monotonic())["me"].cpu_s

    assert total >= 0.25
    assert burnt < total / 2


def test_a_component_that_ended_does_not_end_the_trial() -> None:
    """The trial's own check names it; here it has no memory."""
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    sampler = Sampler(components={"gone": Itself(name="gone", pid=child)})
    sampler.start()
    os.kill(child, 9)
    os.waitpid(child, 0)
    sampler.stop()

    assert sampler.usage(0.0, time.monotonic())["gone"].pss_mib is None
