"""A run as a user names it: a path, `experiment/run`, a run's id, or the beginning of one that no other run has; or
`reference/experiment`."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from testbed.errors import UsageError
from testbed.program import CHECKOUT
from testbed.store import REFERENCE, runs

SHOWN = 5


def results_root() -> Path:
    return Path(os.environ.get("MESHBED_RESULTS", "results"))


def reference_root() -> Path:
    """Where the runs are that came with the code (`kept`)."""
    return CHECKOUT / "results" / REFERENCE


def find(text: str, root: Path | None = None) -> Path:
    """Its folder. A path wins over an id, a whole id over a beginning; `reference/<experiment>` came with the code.

    Raises UsageError naming those it may be.
    """
    root = results_root() if root is None else root
    if not text:
        raise UsageError(f"which run? give its path, or its id in {root}")
    path = Path(text)
    if (path / "run.json").is_file():
        return path
    first, _, rest = text.rstrip("/").partition("/")
    if first == REFERENCE and rest:
        return _reference(rest)
    known = {f"{folder.parent.name}/{folder.name}": folder for folder in reversed(runs(root))}  # newest first
    experiment, slash, id_ = text.rstrip("/").rpartition("/")
    mine = {name: folder for name, folder in known.items() if not slash or folder.parent.name == experiment}
    whole = [name for name, folder in mine.items() if folder.name == id_]
    found = whole or [name for name, folder in mine.items() if id_ and folder.name.startswith(id_)]
    if len(found) == 1:
        return known[found[0]]
    if found:
        raise UsageError(f"{text!r} may be {_some(found)}; give more of it, or experiment/run")
    if path.exists():
        raise UsageError(f"{text} has no run.json, so it is no run; runs are {root}/<experiment>/<run id>")
    if not known:
        raise UsageError(f"no run is {text!r}, and {root} holds none; ./inv quickstart makes one")
    close = difflib.get_close_matches(text, [*known, *(folder.name for folder in known.values())], n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UsageError(f"no run is {text!r}, neither a path nor one in {root}; {hint}newest: {_some([*known])}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _reference(name: str) -> Path:
    there = {path.parent.name: path.parent for path in sorted(reference_root().glob("*/run.json"))}
    if name not in there:
        raise UsageError(f"no reference run of {name!r}; there are: {', '.join(there) or 'none'}")
    return there[name]
