"""How a Python module of ours is started in a lab: the same interpreter, the same checkout, no byte code written."""

from __future__ import annotations

import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent


def argv(module: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", module, *arguments]


def environment(home: Path) -> dict[str, str]:
    """All it gets: nothing of the caller's shell leaks into what is measured."""
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(CHECKOUT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "LANG": "C.UTF-8",
        "HOME": str(home),
    }
