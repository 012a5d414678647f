"""Captures of labs that stay: `capture.start` leaves a process behind, `capture.stop` and `lab.down` end it.

Each has a folder `<lab>/captures/<n>/` in the lab's state, with `capture.json` (who it is and where its file goes) and,
once it has ended, `done.json` (its evidence or its error). What it is: `observe.capture`. It ends with the lab, too.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from testbed.errors import MachineError, PeerError, UsageError
from testbed.livelab import about_of, chosen, chosen_up, known_names, links_of, state_of
from testbed.model.topology import Link
from testbed.observe.capture import Point, start_detached, told_error
from testbed.runnames import results_root
from testbed.runtime import ownership
from testbed.runtime.ownership import Being, being
from testbed.runtime.wiring import port_name
from testbed.seams import end_name
from testbed.store import write_whole

STOP_TIMEOUT_S = 60.0
ABOUT, DONE = "capture.json", "done.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCapture:
    folder: Path
    """In the lab's state."""
    out: Path
    process: Being
    points: tuple[str, ...]


def places(
    names: Sequence[str], *, links: Sequence[Link], workloads: Mapping[str, str], nodes: Iterable[str]
) -> list[tuple[str, str | None]]:
    """(sandbox, device) of what was named, each once: a workload's veth as its node has it, both ends of a link, all
    devices of a node; no name: every workload and every link. `workloads` is name to node."""
    by_link = {name: k for k in links for name in (k.name, f"{k.b}--{k.a}")}
    nodes = set(nodes)
    found: list[tuple[str, str | None]] = []
    for name in names or [*workloads, *(k.name for k in links)]:
        if name in workloads:
            found.append((workloads[name], port_name(name)))
        elif name in by_link:
            link = by_link[name]
            found += [(node, end_name(link, node)) for node in (link.a, link.b)]
        elif name in nodes:
            found.append((name, None))
        else:
            known = [*workloads, *(k.name for k in links), *nodes]
            raise UsageError(f"nothing to capture at is called {name!r}; {known_names(name, known)}")
    everywhere = {sandbox for sandbox, device in found if device is None}
    kept = [(sandbox, device) for sandbox, device in found if device is None or sandbox not in everywhere]
    return list(dict.fromkeys(kept))  # a node's devices hold its links' ends and its workloads' veths already


def start(
    lab: Path,
    points: Sequence[Point],
    out: Path,
    *,
    keeper: Being,
    key_logs: Sequence[Path] = (),
    snaplen: int = 0,
    limit_bytes: int = 0,
) -> LiveCapture:
    """Returns when every point is listening, so that nothing sent later is missed."""
    folder = _new_folder(lab / "captures")
    names = tuple(f"{point.sandbox}:{point.device or '*'}" for point in points)
    try:
        pid = start_detached(
            points,
            out,
            keeper=(keeper.pid, keeper.started),
            done=folder / DONE,
            log=folder / "log",
            key_logs=key_logs,
            snaplen=snaplen,
            limit_bytes=limit_bytes,
        )
        process = being(pid)
        if process is None:
            raise PeerError(f"capture {out}: it ended at once; its log: {(folder / 'log').read_text().strip()}")
        row = {"pid": process.pid, "started": process.started, "out": str(out), "points": names}
        write_whole(folder / ABOUT, json.dumps(row).encode())
    except BaseException:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        raise
    return LiveCapture(folder=folder, out=out, process=process, points=names)


def of_lab(lab: Path) -> list[LiveCapture]:
    """Those begun and not yet stopped by a verb, whether or not they still run."""
    found = []
    for path in sorted(lab.glob(f"captures/*/{ABOUT}")):
        row = json.loads(path.read_text())
        process = Being(pid=row["pid"], started=row["started"])
        found.append(
            LiveCapture(folder=path.parent, out=Path(row["out"]), process=process, points=tuple(row["points"]))
        )
    return found


def end(captures: Sequence[LiveCapture]) -> list[dict]:
    """Ends them and waits until their files are whole. Of each its evidence as JSON: `file`, `packets`, `drops`,
    `secrets`; or `file`, `error`, `exit_code`. Never raises: the others must end, too.
    """
    pidfds = []
    for capture in captures:  # all are told first, so that they finish side by side
        try:
            pidfd = os.pidfd_open(capture.process.pid)
        except ProcessLookupError:
            pidfds.append(None)
            continue
        pidfds.append(pidfd)
        if capture.process.alive:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
    rows = []
    for capture, pidfd in zip(captures, pidfds, strict=True):
        if pidfd is not None:
            if capture.process.alive:
                select.select([pidfd], [], [], STOP_TIMEOUT_S)
            os.close(pidfd)
        rows.append(_evidence(capture))
        for path in capture.folder.glob("*"):
            path.unlink(missing_ok=True)
        if capture.folder.is_dir():
            capture.folder.rmdir()
    return rows


def _evidence(capture: LiveCapture) -> dict:
    row: dict = {"file": str(capture.out)}
    try:
        answer = json.loads((capture.folder / DONE).read_text())
    except (OSError, ValueError):
        error = PeerError(f"capture {capture.out}: its process was killed or hangs, so there is no file")
        return row | {"error": str(error), "exit_code": error.exit_code}
    if "error" in answer:
        error = told_error(answer, capture.out)
        return row | {"error": str(error), "exit_code": error.exit_code}
    return row | answer


def told(row: Mapping[str, object]) -> str:
    """A line of `end` for people."""
    if "error" in row:
        return str(row["error"])
    secrets = f", {row['secrets']} TLS secrets inside" if row["secrets"] else ""
    return f"{row['file']}: {row['packets']} packets, {row['drops']} lost{secrets}"


def _new_folder(home: Path) -> Path:
    number = 1
    while True:
        folder = home / f"{number:03d}"
        try:
            folder.mkdir(mode=0o700, parents=True)
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise MachineError(f"{folder}: {error.strerror}; check rights and space") from error


def begin(
    name: str,
    where: Sequence[str],
    *,
    out: str = "",
    snaplen: int = 0,
    limit_mib: int = 512,
    dry_run: bool = False,
    json_text: bool = False,
) -> int:
    """Packets of a live lab into one pcapng, until `capture.stop` or the lab's end."""
    name = chosen_up(name)
    state, folder = state_of(name), ownership.state_root() / name
    about = about_of(folder)
    netns = {node["name"]: node["netns"] for node in about["nodes"]}
    found = places(
        where,
        links=links_of(about),
        workloads={w["name"]: w["node"] for w in about["workloads"]},
        nodes=netns,
    )
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%f")[:-3]
    file = Path(out or results_root() / "captures" / name).absolute() / f"{stamp}Z.pcapng"
    listening = [f"{sandbox}:{device or '*'}" for sandbox, device in found]
    if dry_run:
        print(f"would capture at {', '.join(listening)} into {file}")
        return 0
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MachineError(f"{file.parent}: {error.strerror}; check rights and space, or give --out") from error
    assert state.keeper is not None
    start(
        folder,
        [Point(sandbox=sandbox, netns=netns[sandbox], device=device) for sandbox, device in found],
        file,
        keeper=state.keeper,
        key_logs=[folder / "proxies" / proxy["name"] / "keys.log" for proxy in about["proxies"]],
        snaplen=snaplen,
        limit_bytes=limit_mib << 20,
    )
    print(json.dumps({"lab": name, "file": str(file), "points": listening}, indent=1) if json_text else file)
    points = "1 point" if len(found) == 1 else f"{len(found)} points"
    print(f"capturing at {points}; ./inv capture.stop {name}", file=sys.stderr)
    return 0


def finish(name: str, *, dry_run: bool = False, json_text: bool = False) -> int:
    name = chosen(name)
    state_of(name)
    running = of_lab(ownership.state_root() / name)
    if not running:
        raise UsageError(f"no capture of lab {name} is running; ./inv capture.start {name} begins one")
    if dry_run:
        for capture in running:
            print(f"would stop the capture into {capture.out}")
        return 0
    rows = end(running)
    if json_text:
        print(json.dumps(rows, indent=1))
    else:
        for row in rows:
            print(told(row))
    codes = [row["exit_code"] for row in rows if "exit_code" in row]
    return max(codes) if codes else 3 if any(row["drops"] for row in rows) else 0
