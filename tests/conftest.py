"""What every run of the tests ends with: how many of each tier really ran, so that a tier left out is seen."""

from __future__ import annotations

from collections import Counter

import pytest

TIERS = ("root", "docker", "envoy", "qemu")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """By its marks: a report's keywords hold names of folders, too, so that a checkout in `docker/` would be a tier."""
    for item in items:
        item.user_properties += [("tier", tier) for tier in TIERS if item.get_closest_marker(tier)]


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
