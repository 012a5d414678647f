"""A run's folder under `results/`: made, appended to, resumed and read back, whole or not at all.

Every append is three steps: the bytes, fsync, then one line in `journal.jsonl` that says how long the file now is. What
lies beyond the last journal line was never finished: readers do not see it, and `Run.resume` cuts it off. So a killed
run, or a full disk, costs the trial in progress and nothing before it, and a half-written file is never taken for a
whole one.
The folder's layout is a contract (README, "A run's folder"); the journal is ours.
"""

from __future__ import annotations

import csv
import dataclasses
import errno
import fcntl
import io
import json
import os
import re
import shutil
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed.encoded import as_json, cell, csv_bytes, json_line, json_text, parquet_bytes
from testbed.errors import UsageError
from testbed.model.experiment import Experiment, Finding, Measurement, RequestRow, Result
from testbed.model.topology import Topology
from testbed.wholefile import sync_folder, translated, write_all, write_whole

__all__ = ["FORMAT", "REFERENCE", "Plan", "Run", "as_json", "has_secrets", "runs", "translated", "write_whole"]

FORMAT = 1
REFERENCE = "reference"
"""Folder of results that came with the code: one run of each experiment, no experiment of that name."""
COLUMNS = tuple(f.name for f in dataclasses.fields(Measurement))
LATER_COLUMNS = {"cell"}
"""That runs of before do not have; they have its default."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._()+ -]*")
_SECRETS_BLOCK = 0x0000000A  # pcapng's Decryption Secrets Block (draft-ietf-opsawg-pcapng, 4.7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that was decided before the first trial, so that a run explains itself; becomes `run.json`."""

    topology: Topology
    """As resolved: with the experiment's link overrides in it."""
    seed: int
    block_order: tuple[tuple[str, ...], ...]
    """Per round, the planes in the order they were measured."""
    runtime: str
    link_kind: str
    planes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """Plane name -> what ran under it: `{"implementation": "planes.ztunnel", "version": "0.1.0"}`."""
    proxies: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Plane name -> its proxies: `name`, `role`, `node`, `sandbox`, `serves`."""
    stop_rule: Mapping[str, Any] = field(default_factory=dict)
    """`stopping.StopRule`: when the run may end before its last round, decided before its first."""
    gate: Mapping[str, float] = field(default_factory=dict)
    """The limits beyond which a trial does not count, fixed before the run."""
    machine: Mapping[str, Any] = field(default_factory=dict)
    """`machine.describe()`."""
    commit: str = ""
    lock_sha256: str = ""
    command: str = ""
    """What to type to repeat the run."""


class Run:
    """One execution of an experiment and its folder. `create` and `resume` may append, `open` reads."""

    def __init__(self, path: Path, info: dict[str, Any], entries: list[dict[str, Any]], journal_fd: int | None) -> None:
        self.path = path
        self.info = info
        """`run.json` as it stands."""
        self._entries = entries
        self._journal_fd = journal_fd

    # -- making and opening -------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, root: Path, experiment: Experiment, plan: Plan, *, started: str, run_id: str | None = None) -> Run:
        """A new folder `root/<experiment>/<run id>`. `started` is UTC, ISO 8601; without `run_id` it names the run."""
        home = Path(root) / _safe(experiment.name)
        wanted = _safe(run_id or re.sub(r"[^0-9TZ]", "", started.replace("+00:00", "Z")) or "run")
        with translated(home, "make a run's folder"):
            home.mkdir(parents=True, exist_ok=True)
            _sweep_drafts(home)
            info = {
                "format": FORMAT,
                "run": wanted,
                "experiment": experiment.name,
                "started": started,
                "ended": None,
                "resumed": [],
                "plan": {"experiment": as_json(experiment), "topology": as_json(plan.topology)},
            } | {f.name: as_json(getattr(plan, f.name)) for f in dataclasses.fields(plan) if f.name != "topology"}
            # Built beside and renamed: a folder of that name always holds a readable run.json and journal.
            draft = home / f".new-{wanted}-{os.getpid()}"
            try:
                for folder, mode in (("", 0o755), ("requests", 0o755), ("captures", 0o700), ("logs", 0o755)):
                    (draft / folder).mkdir(mode=mode)
                write_whole(draft / "measurements.csv", header := csv_bytes([COLUMNS]))
                write_whole(draft / "findings.jsonl", b"")
                sizes = {"measurements.csv": len(header), "findings.jsonl": 0}
                write_whole(draft / "journal.jsonl", json_line({"kind": "start", "sizes": sizes}))
                name = _settle(draft, home, wanted, info, only=bool(run_id))
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
            sync_folder(home)
        return cls._append_to(home / name)

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """A run to read, finished or not. Changes nothing on disk."""
        path = Path(path)
        return cls(path, _read_info(path), _read_journal(path)[0], None)

    @classmethod
    def resume(cls, path: Path | str, *, now: str) -> Run:
        """A killed run to go on with: half-written ends are cut off, `whole_trials` need not be done again."""
        run = cls._append_to(Path(path))
        run._update(resumed=[*run.info["resumed"], now], ended=None)
        return run

    @classmethod
    def _append_to(cls, path: Path) -> Run:
        info = _read_info(path)
        with translated(path, "open the run for writing"):
            fd = os.open(path / "journal.jsonl", os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(fd)
                raise UsageError(f"run {path}: another process is writing to it; wait for it or stop it") from error
            try:
                entries, whole_bytes = _read_journal(path)
                os.ftruncate(fd, whole_bytes)
                for file, size in _committed(entries).items():
                    os.truncate(path / file, size)
                known = {e.get("requests") for e in entries}
                unfinished = [p for end in (".raw", ".part") for p in path.glob(f"captures/*{end}")]
                for stray in [*path.glob("requests/*"), *path.glob("*.tmp"), *unfinished]:
                    if str(stray.relative_to(path)) not in known:
                        stray.unlink()
            except BaseException:
                os.close(fd)
                raise
        return cls(path, info, entries, fd)

    # -- writing ------------------------------------------------------------------------------------------------------

    def append_trial(self, measurements: Sequence[Measurement], requests: Iterable[RequestRow] = ()) -> None:
        """All rows and requests of one trial, or none of them. Raises MachineError when the disk will not take them."""
        trials = {m.trial for m in measurements}
        if len(trials) != 1:
            raise UsageError(f"append_trial takes the rows of one trial, got {sorted(trials) or 'no rows'}")
        trial = trials.pop()
        if trial in self.whole_trials():
            raise UsageError(f"run {self.path.name}: trial {trial!r} is stored already")
        entry: dict[str, Any] = {"kind": "trial", "trial": trial}
        rows = list(requests)
        if rows:
            # Numbered: two trials never share a file, whatever characters their names lose
            slug = re.sub(r"[^A-Za-z0-9._-]+", "-", trial)[:80].strip("-.")
            entry["requests"] = f"requests/{len(self.whole_trials()) + 1:04d}-{slug}.parquet"
            self._guarded(lambda: write_whole(self.path / entry["requests"], parquet_bytes(trial, rows)))
        table = csv_bytes([cell(getattr(m, c)) for c in COLUMNS] for m in measurements)
        try:
            self._append("measurements.csv", table, entry)
        except BaseException:
            if rows:
                (self.path / entry["requests"]).unlink(missing_ok=True)
            raise

    def append_findings(self, findings: Sequence[Finding]) -> None:
        self._append("findings.jsonl", b"".join(json_line(as_json(f)) for f in findings), {"kind": "findings"})

    def capture_path(self, name: str) -> Path:
        """Where a capture goes; the file is made here, private, before any tool writes packets or keys into it."""
        path = self.path / "captures" / _safe(name)
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        os.chmod(path, 0o600)
        return path

    def log_path(self, name: str) -> Path:
        return self.path / "logs" / _safe(name)

    def write_file(self, name: str, text: str) -> Path:
        """`table.md`, `report.html`: replaced as a whole."""
        path = self.path / _safe(name)
        self._guarded(lambda: write_whole(path, text.encode()))
        return path

    def note(self, **values: object) -> None:
        """Adds to `run.json` what is only known later (such as versions that a proxy reported)."""
        self._update(**{k: as_json(v) for k, v in values.items()})

    def finish(self, *, ended: str) -> None:
        for path in (self.path / "captures").iterdir():
            path.chmod(0o600)
        self._update(ended=ended)

    def close(self) -> None:
        if self._journal_fd is not None:
            os.close(self._journal_fd)
            self._journal_fd = None

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _update(self, **values: object) -> None:
        self.info = self.info | values
        self._guarded(lambda: write_whole(self.path / "run.json", json_text(self.info)))

    def _append(self, file: str, data: bytes, entry: dict[str, Any]) -> None:
        if self._journal_fd is None:
            raise UsageError(f"run {self.path} is open for reading only")
        before = _committed(self._entries)[file]
        journal_before = os.fstat(self._journal_fd).st_size
        entry = entry | {"file": file, "bytes": before + len(data), "crc32": zlib.crc32(data)}

        def write() -> None:
            fd = os.open(self.path / file, os.O_WRONLY | os.O_CLOEXEC)
            try:
                try:
                    write_all(fd, data, before)
                    write_all(self._journal_fd, json_line(entry), journal_before)
                except BaseException:
                    os.ftruncate(self._journal_fd, journal_before)
                    os.ftruncate(fd, before)
                    raise
            finally:
                os.close(fd)

        self._guarded(write)
        self._entries.append(entry)

    def _guarded(self, action: Any) -> None:
        with translated(self.path, "write", stored=len(self.whole_trials())):
            action()

    # -- reading ------------------------------------------------------------------------------------------------------

    def whole_trials(self) -> tuple[str, ...]:
        return tuple(e["trial"] for e in self._entries if e["kind"] == "trial")

    def measurements(self) -> list[Measurement]:
        """Rows of whole trials, in the order written. Axis columns that this version does not know are passed over."""
        text = self._committed_bytes("measurements.csv").decode()
        rows = csv.DictReader(io.StringIO(text, newline=""))
        if missing := set(COLUMNS) - set(rows.fieldnames or ()) - LATER_COLUMNS:
            raise UsageError(f"{self.path}/measurements.csv lacks the columns {', '.join(sorted(missing))}")
        convert = {"round": int, "block": int, "value": float, "valid": "true".__eq__}
        try:
            there = [c for c in COLUMNS if c in (rows.fieldnames or ())]
            return [Measurement(**{c: convert.get(c, str)(row[c]) for c in there}) for row in rows]
        except (ValueError, TypeError) as error:
            raise self._edited("measurements.csv", f"line {rows.line_num} does not read ({error})") from error

    def findings(self) -> list[Finding]:
        found = []
        known = {f.name for f in dataclasses.fields(Finding)}
        for number, text in enumerate(self._committed_bytes("findings.jsonl").decode().split("\n")[:-1], 1):
            try:
                values = {k: v for k, v in json.loads(text).items() if k in known}
                values |= {"result": Result(values["result"]), "packets": tuple(values.get("packets", ()))}
                found.append(Finding(**values))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise self._edited("findings.jsonl", f"line {number} does not read ({error})") from error
        return found

    def request_files(self) -> dict[str, Path]:
        """Trial -> its parquet file."""
        return {e["trial"]: self.path / e["requests"] for e in self._entries if e.get("requests")}

    def captures_with_secrets(self) -> list[str]:
        """Names of captures that hold TLS secrets: whoever has these files can read the lab's traffic."""
        return sorted(p.name for p in (self.path / "captures").glob("*") if p.is_file() and has_secrets(p))

    def _committed_bytes(self, file: str) -> bytes:
        size = _committed(self._entries)[file]
        try:
            data = (self.path / file).read_bytes()
        except FileNotFoundError as error:
            raise self._edited(file, "it is gone") from error
        if len(data) < size:
            raise self._edited(file, f"it has {len(data)} bytes, its journal says {size}")
        start = self._entries[0]["sizes"].get(file, 0)
        for entry in self._entries[1:]:
            if entry.get("file") == file:
                written = entry.get("crc32")  # runs of before had none
                if written not in (None, zlib.crc32(data[start : entry["bytes"]])):
                    raise self._edited(file, f"bytes {start} to {entry['bytes']} are not those that were written")
                start = entry["bytes"]
        return data[:size]

    def _edited(self, file: str, seen: str) -> UsageError:
        """The journal is no seal: it shows what slipped, not who meant it."""
        return UsageError(f"{self.path / file}: {seen}; it was cut or edited after the run, restore it from a copy")


def _settle(draft: Path, home: Path, wanted: str, info: dict[str, Any], *, only: bool) -> str:
    """Gives the draft its name: `wanted`, or the first of `wanted-2`, … that is free. Runs may begin side by side, so
    the rename itself decides: it fails on a folder that is there."""
    number = 1
    while True:
        name = wanted if number == 1 else f"{wanted}-{number}"
        write_whole(draft / "run.json", json_text(info | {"run": name}))
        try:
            os.rename(draft, home / name)
            return name
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            if only:
                raise UsageError(f"run {wanted!r} exists in {home}; resume it, or choose another name") from error
            number += 1


def _sweep_drafts(home: Path) -> None:
    """Drafts whose maker was killed while making them."""
    for draft in home.glob(".new-*"):
        pid = draft.name.rpartition("-")[2]
        if pid.isdigit() and not Path("/proc", pid).exists():
            shutil.rmtree(draft, ignore_errors=True)


def runs(root: Path, experiment: str | None = None) -> list[Path]:
    """Folders of runs, oldest first, without those that came with the code (`kept`)."""
    found = [p.parent for p in Path(root).glob(f"{experiment or '*'}/*/run.json") if not p.parent.name.startswith(".")]
    found = [folder for folder in found if folder.parent.name != REFERENCE]
    return sorted(found, key=lambda p: (p / "journal.jsonl").stat().st_mtime if (p / "journal.jsonl").exists() else 0)


def has_secrets(path: Path) -> bool:
    """Whether a capture carries a Decryption Secrets Block, or a file is itself a key log; a cut file counts too."""
    with path.open("rb") as file:
        head = file.read(12)
        if re.match(rb"(CLIENT|SERVER|EXPORTER)_[A-Z]", head):
            return True
        if head[:4] != b"\x0a\x0d\x0d\x0a" or len(head) < 12:
            return False
        order = "<" if head[8:12] == b"\x4d\x3c\x2b\x1a" else ">"
        offset = 0
        while len(block := os.pread(file.fileno(), 8, offset)) == 8:
            kind, length = struct.unpack(f"{order}II", block)
            if kind == _SECRETS_BLOCK:
                return True
            if length < 12:
                return False
            offset += length
    return False


def _read_info(path: Path) -> dict[str, Any]:
    try:
        info = json.loads((path / "run.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UsageError(f"{path} has no run.json, so it is no run; runs are results/<experiment>/<run id>") from error
    except ValueError as error:
        raise UsageError(f"{path}/run.json is not JSON ({error}); restore it from a copy") from error
    version = info.get("format") if isinstance(info, dict) else None
    if version != FORMAT:
        newer = isinstance(version, int) and version > FORMAT
        mend = "use the version that wrote it, or a newer one" if newer else "was it written by this testbed?"
        raise UsageError(f"{path}/run.json has format {version!r}, this version reads format {FORMAT}; {mend}")
    if lacking := {"run", "experiment", "started", "resumed", "plan"} - info.keys():
        raise UsageError(f"{path}/run.json lacks {', '.join(sorted(lacking))}; restore it from a copy")
    return info


def _read_journal(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Whole lines, and how many bytes they take; a torn last line does not count."""
    try:
        data = (path / "journal.jsonl").read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{path} has no journal.jsonl to say what is whole; restore it from a copy") from error
    entries, end = [], 0
    for line in data.splitlines(keepends=True):
        try:
            if not line.endswith(b"\n"):
                break
            entries.append(json.loads(line))
        except ValueError:
            break
        end += len(line)
    if not entries:
        raise UsageError(f"{path}/journal.jsonl holds no whole line; restore it from a copy")
    return entries, end


def _committed(entries: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    sizes = dict(entries[0]["sizes"])
    for entry in entries[1:]:
        sizes[entry["file"]] = entry["bytes"]
    return sizes


def _safe(name: str) -> str:
    if not _NAME.fullmatch(name) or name.endswith(".tmp"):
        raise UsageError(f"{name!r} cannot name a file of a run; use letters, digits and . _ - + ( )")
    return name
