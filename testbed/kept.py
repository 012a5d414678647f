"""Runs that are kept beside the code: tables, page, figures and findings, without requests, captures and logs.

`results/reference/<experiment>/` is a run's folder like any other, only smaller: what reads runs reads it. Of its
certificates' checks those that passed are counted and not listed. Nothing in it says on whose machine it was made, or
where: a run that names such a place is refused.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from testbed import report
from testbed.encoded import cell, csv_bytes, json_line, json_text
from testbed.errors import UsageError
from testbed.fidelity import PREFIX, Level
from testbed.model.experiment import Measurement
from testbed.program import CHECKOUT
from testbed.runnames import reference_root, results_root
from testbed.store import COLUMNS, Run, as_json, translated, write_whole

PASSED = f"{PREFIX}passed"
WITHOUT = ("requests", "captures", "logs")
_LEAST = 4
"""Shorter names of machines and users are found in any text."""


def keep(path: Path, *, root: Path | None = None, dry_run: bool = False) -> Path:
    """Makes the folder, in place of the one that was kept before, and returns it. Raises UsageError for a run that is
    not finished, lacks requests, or names a place of this machine."""
    run = Run.open(path)
    if run.info.get("kept"):
        raise UsageError(f"{path} is a kept run already; give the run that it was made of")
    if run.info["ended"] is None:
        raise UsageError(f"{path} is not finished; resume it, then keep it")
    if gone := report.missing_requests(run):
        raise UsageError(f"{path}: {report.told_missing(gone)}, then keep the run")
    home = (reference_root() if root is None else root) / run.info["experiment"]
    run.info = run.info | {"kept": {"without": list(WITHOUT)}}
    files = made(run)
    if told := named_in(files, places(path)):
        raise UsageError(f"{path}: {'; '.join(told[:5])}: that is of this machine; mend what wrote it, run again")
    if not dry_run:
        with translated(home, "keep a run"):
            _write(home, files)
    return home


def made(run: Run) -> dict[str, bytes]:
    """The files of the folder, by name."""
    rows = ([cell(getattr(m, c)) for c in COLUMNS] for m in shortened(run.measurements()))
    measurements = csv_bytes([COLUMNS, *rows])
    findings = b"".join(json_line(as_json(f)) for f in run.findings())
    table, page = report.rendered(run)
    sizes = {"measurements.csv": len(csv_bytes([COLUMNS])), "findings.jsonl": 0}
    journal: list[dict[str, Any]] = [{"kind": "start", "sizes": sizes}]
    for file, data in (("measurements.csv", measurements), ("findings.jsonl", findings)):
        appended = data[sizes[file] :]
        journal.append({"kind": "kept", "file": file, "bytes": len(data), "crc32": zlib.crc32(appended)})
    return {
        "run.json": json_text(run.info),
        "measurements.csv": measurements,
        "findings.jsonl": findings,
        "journal.jsonl": b"".join(map(json_line, journal)),
        "table.md": table.encode(),
        "report.html": page.encode(),
    }


def shortened(measurements: Sequence[Measurement]) -> list[Measurement]:
    """Of each trial's certificate the checks that passed as one row that counts them; all else as it is."""
    found: list[Measurement] = []
    passed: dict[str, list[Measurement]] = {}
    for m in measurements:
        if m.metric.startswith(PREFIX) and m.value == Level.PASS:
            passed.setdefault(m.trial, []).append(m)
        else:
            found.append(m)
    for rows in passed.values():
        values = {c: getattr(rows[0], c) for c in COLUMNS}
        values |= {"component": "host", "metric": PASSED, "reason": f"{len(rows)} checks passed"}
        found.append(Measurement(**values))
    return found


def places(run: Path) -> dict[str, str]:
    """What would say whose machine this is: what it is called here → the text itself."""
    found = {
        "the checkout's path": str(CHECKOUT),
        "the run's path": str(run.absolute()),
        "the results' path": str(results_root().absolute()),
        "a home folder": os.path.expanduser("~"),
        "a folder for temporary files": tempfile.gettempdir(),
        "the machine's name": socket.gethostname(),
        "a user's name": os.environ.get("SUDO_USER") or os.environ.get("USER", ""),
        "the folder of labs' state": os.environ.get("MESHBED_STATE", ""),
    }
    return {what: text for what, text in found.items() if len(text) >= _LEAST and text not in ("root", "localhost")}


def named_in(files: Mapping[str, bytes], names: Mapping[str, str]) -> list[str]:
    """`report.html names the checkout's path (/home/…)`; whole words only, so that `/rootless` is not `/root`."""
    told = []
    for file, data in files.items():
        text = data.decode()
        for what, name in names.items():
            if (seen := re.search(rf"(?<![\w.-]){re.escape(name)}(?![\w-]).{{0,60}}", text)) is not None:
                told.append(f"{file} names {what} ({seen[0]})")
    return told


def _write(home: Path, files: Mapping[str, bytes]) -> None:
    """As a whole: beside it first, then in the place of what was there."""
    home.parent.mkdir(parents=True, exist_ok=True)
    draft = home.with_name(f".new-{home.name}-{os.getpid()}")
    old = home.with_name(f".old-{home.name}-{os.getpid()}")
    try:
        draft.mkdir()
        for name, data in files.items():
            write_whole(draft / name, data)
        if home.exists():
            home.rename(old)
        draft.rename(home)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def kept_runs(root: Path | None = None) -> list[Path]:
    """Folders of kept runs, those that began first first."""
    found = []
    for path in (reference_root() if root is None else root).glob("*/run.json"):
        if not path.parent.name.startswith("."):
            found.append((json.loads(path.read_bytes()).get("started") or "", path.parent))
    return [folder for _, folder in sorted(found)]
