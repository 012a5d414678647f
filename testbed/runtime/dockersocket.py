"""The few calls of an engine that must be quick: find by label, look at, remove; with the standard library alone.

The docker package takes a third of a second to import, while a keeper's last act, `lab.gc` and `lab.down` need two
calls. Anything that is not labelled as ours is never touched.
"""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from urllib.parse import quote

AT_ONCE = 4
"""Removals side by side; more is no faster on two cores."""
HEARD_WITHIN_S = 5.0
"""Of an engine that is asked whether it is there: that takes it no lock, and a few milliseconds."""
SWEEP_WITHIN_S = 30.0
"""An engine answers at once that a removal is under way already, such as one that a killed keeper asked for; it takes
up to half a second a container."""


class Engine(http.client.HTTPConnection):
    """One connection to the engine behind a Unix socket."""

    def __init__(self, path: str, timeout_s: float = 60.0) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def ask(self, method: str, where: str) -> tuple[int, bytes]:
        self.request(method, where)
        answer = self.getresponse()
        return answer.status, answer.read()


def find(path: str, labels: Mapping[str, str | None]) -> list[dict]:
    """All containers, running or not, that bear all of these labels, with whatever value where that is None.

    Raises OSError when no engine answers, soon where it is silent: who asks may hold a lock that others wait for.
    """
    hear(path)
    wanted = [key if value is None else f"{key}={value}" for key, value in labels.items()]
    filters = quote(json.dumps({"label": wanted}))
    status, body = _get(path, f"/containers/json?all=1&filters={filters}")
    if status != 200:
        raise OSError(f"engine {path}: HTTP {status} {body[:200].decode(errors='replace')}")
    return json.loads(body)


def hear(path: str) -> None:
    """Raises OSError unless an engine answers: TimeoutError where something listens and is silent."""
    within_s = HEARD_WITHIN_S
    engine = Engine(path, within_s)
    try:
        engine.ask("GET", "/_ping")
    except TimeoutError as error:
        raise TimeoutError(f"engine {path}: it does not answer (nothing within {within_s:g} s)") from error
    except http.client.HTTPException as error:
        raise OSError(f"engine {path}: {error}") from error
    finally:
        engine.close()


def look(path: str, container: str) -> dict | None:
    """What GET /containers/<id>/json says; None when there is none. Raises OSError when no engine answers."""
    status, body = _get(path, f"/containers/{container}/json")
    return json.loads(body) if status == 200 else None


def logs(path: str, container: str) -> bytes:
    """What it printed, in the engine's framing; empty when it is gone. Raises OSError when no engine answers."""
    status, body = _get(path, f"/containers/{container}/logs?stdout=1&stderr=1")
    return body if status == 200 else b""


def _get(path: str, where: str) -> tuple[int, bytes]:
    engine = Engine(path)
    try:
        return engine.ask("GET", where)
    except http.client.HTTPException as error:
        raise OSError(f"engine {path}: {error}") from error
    finally:
        engine.close()


def remove(path: str, ids: Sequence[str]) -> list[str]:
    """Ends and removes; returns those that would not go. One that is gone already counts as removed."""
    left = list(ids)
    failed: list[str] = []

    def work() -> None:
        engine = Engine(path)
        while left:
            try:
                container = left.pop()
            except IndexError:
                break
            try:
                status, _ = engine.ask("DELETE", f"/containers/{container}?force=1&v=1")
            except (OSError, http.client.HTTPException):
                status = 0
                engine.close()
            if status not in (204, 404, 409):  # 409: somebody else is removing it
                failed.append(container)
        engine.close()

    threads = [threading.Thread(target=work, name="container removal") for _ in range(min(AT_ONCE, len(left)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failed


def sweep(path: str, labels: Mapping[str, str], *, within_s: float = SWEEP_WITHIN_S) -> list[str]:
    """Removes every container with these labels, also those that begin meanwhile, and waits for those that somebody
    else is removing. Raises OSError when some stay."""
    swept: dict[str, None] = {}
    deadline = time.monotonic() + within_s
    while ids := [str(one["Id"]) for one in find(path, labels)]:
        if swept:
            if time.monotonic() > deadline:
                raise OSError(f"engine {path}: after {within_s:g} s {len(ids)} containers are there yet")
            time.sleep(0.02)
        swept.update(dict.fromkeys(ids))
        if failed := remove(path, ids):
            raise OSError(f"engine {path}: {len(failed)} containers could not be removed")
    return list(swept)
