"""Calibration: the constant's arithmetic and its cache."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from testbed.links import calibrate
from testbed.links.calibrate import MOST_NS, bias_of, cached_bias_ns, measure_bias_ns


@pytest.mark.parametrize(
    ("rtts_ns", "bias_ns"),
    [([2_040_000, 2_050_000, 9_000_000], 25_000), ([1_900_000], 0), ([5_000_000], MOST_NS), ([], 0)],
)
def test_the_constant_is_half_the_median_error_within_reason(rtts_ns: list[int], bias_ns: int) -> None:
    """An outlier does not move it, a fast link does not make it negative, a busy moment does not make it wild."""
    assert bias_of(rtts_ns, 2_000_000) == bias_ns


def test_a_constant_of_another_boot_is_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache is read within a boot only; a damaged one counts as none."""
    measured = iter([11, 22, 33])
    monkeypatch.setattr(calibrate, "measure_bias_ns", lambda: next(measured))
    monkeypatch.setattr(calibrate, "boot_key", lambda: "boot 1")
    assert [cached_bias_ns(tmp_path), cached_bias_ns(tmp_path)] == [11, 11]

    monkeypatch.setattr(calibrate, "boot_key", lambda: "boot 2")
    assert cached_bias_ns(tmp_path) == 22
    assert json.loads((tmp_path / ".wire-bias.json").read_text())["bias_ns"] == 22

    (tmp_path / ".wire-bias.json").write_text("{half")
    assert cached_bias_ns(tmp_path) == 33


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="links need root (network namespaces, AF_PACKET)")
def test_a_real_wire_has_a_constant_within_reason() -> None:
    """The measured constant exists and is not the clamp's lower end: a wire is never faster than its delay."""
    assert 0 < measure_bias_ns() <= MOST_NS
