"""How the tests are shared out among processes, and what every run ends with: how many of each tier really ran, so that
a tier left out is seen.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from testbed.runtime.ownership import default_root

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

TIERS = ("root", "docker", "envoy", "qemu")

settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")  # how long an example takes says how busy the machine is

_state: Path | None = None


def pytest_configure(config: pytest.Config) -> None:
    """Each of several processes has labs of its own, as two users of this machine would."""
    global _state
    if worker := getattr(config, "workerinput", {}).get("workerid"):
        root = os.environ.get("MESHBED_STATE") or default_root()
        _state = Path(f"{root}-{worker}-{os.getpid()}")
        os.environ["MESHBED_STATE"] = str(_state)


def pytest_unconfigure() -> None:
    """What a failed test left up stays, with what `lab.gc` needs for it."""
    if _state and not any(_state.glob("*/lab.json")):
        shutil.rmtree(_state, ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """By its marks: a report's keywords hold names of folders, too, so that a checkout in `docker/` would be a tier."""
    for item in items:
        item.user_properties += [("tier", tier) for tier in TIERS if item.get_closest_marker(tier)]
        on_engine = item.get_closest_marker("docker") is not None
        assert on_engine is group(item.nodeid).startswith("docker"), f"{item.nodeid}: its name must tell of Docker"


def group(nodeid: str) -> str:
    """What one process does alone: a file, whose cases share fixtures; what makes and removes the engine's images; of
    the namespaced cases those that share labs: a runtime's with sidecars, with waypoints, or with neither.
    """
    path, _, case = nodeid.partition("::")
    if path.startswith("tests/docker/"):
        return "docker"
    if not path.startswith("tests/namespaced/"):
        return path
    runtime = "docker" if re.search(r"[\[-]docker[\]-]", case) else "netns"
    plane = re.search(r"test_(sidecar|waypoint)", path)
    return f"{runtime} {plane[1] if plane else 'ztunnel'}"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Groups by a scheduler of our own: pytest-xdist 3.8 marks them in a private attribute that pytest 9.2 has no
    longer, so that `--dist loadgroup` tears groups apart without a word.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group(nodeid)

    return ByGroup(config, log)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Those that failed, for who tries them again (`testbed.cli.test`)."""
    told = os.environ.get("MESHBED_FAILED_TESTS")
    if told and report.failed and "PYTEST_XDIST_WORKER" not in os.environ:
        with open(told, "a") as file:
            file.write(report.nodeid + "\n")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    ran, skipped = Counter[str](), Counter[str]()
    for outcome, reports in terminalreporter.stats.items():
        for report in reports:
            if not isinstance(report, pytest.TestReport):
                continue
            tiers = [tier for tier in TIERS if ("tier", tier) in report.user_properties]
            if outcome == "skipped":
                skipped.update(tiers)
            elif report.when == "call":
                ran.update(tiers)
    known = [tier for tier in TIERS if ran[tier] or skipped[tier]]
    if known:
        told = (f"{tier} {ran[tier]} ran{f', {skipped[tier]} skipped' * bool(skipped[tier])}" for tier in known)
        terminalreporter.write_line(f"tiers: {'; '.join(told)}")
