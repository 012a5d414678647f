"""The wire's constant error, measured on a scratch link, so that it can be taken off every delay."""

from __future__ import annotations

from pathlib import Path


def cached_bias_ns(folder: Path) -> int:
    return 0
