"""Files of a user: a value, or one TopologyError in which every problem has its place."""

from __future__ import annotations

from collections.abc import Callable

from testbed import policyfile, topofile
from testbed.errors import TopologyError


def _read(parse: Callable[[str, str], object], data: bytes) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return  # `load` says so
    try:
        parse(text, "t.yml")
    except TopologyError as error:
        assert error.problems, "refused without a problem"
        for problem in error.problems:
            assert problem.startswith("t.yml:"), f"a problem without its place: {problem!r:.200}"


def topology(data: bytes) -> None:
    _read(topofile.parse, data)


def policies(data: bytes) -> None:
    _read(policyfile.parse, data)
