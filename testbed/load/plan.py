"""What a generator is told, as JSON, the files it leaves, and the times it and its driver agree on."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from testbed.model.experiment import Load

START_UP_S = 30.0
"""Importing locust takes about a second of CPU; a busy machine needs many times that."""
CONNECT_TIMEOUT_S = 5.0
REQUEST_TIMEOUT_S = 10.0
DRAIN_S = 3.0
"""How long after the window a late request may still be sent or answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneratorPlan:
    load: Load
    host: str
    port: int
    seed: int
    trace_s: tuple[float, ...] = ()
    """Times of the trace file, read by the driver: the generator sees no files of ours."""
    worker: int | None = None
    """Of a load of several processes, which one this is, from 1 on; None: their master, or the only one."""

    def file(self, name: str) -> str:
        """What the process calls a file of its own: they share a folder."""
        return name if self.worker is None else f"worker{self.worker}-{name}"

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str) -> GeneratorPlan:
        values = json.loads(text)
        return cls(**{**values, "load": Load(**values["load"]), "trace_s": tuple(values["trace_s"])})


def request_id(connection: int, intended_s: float) -> str:
    """Of a request under `Load.request_ids`: its row has all that it says. No UUID, so that no proxy writes into it."""
    return f"mb-{connection}-{round(intended_s * 1e9)}"


def with_id(request: bytes, connection: int, intended_s: float) -> bytes:
    """A request of HTTP/1.1 with its id as the last of its fields."""
    line = f"\r\nx-request-id: {request_id(connection, intended_s)}\r\n\r\n".encode()
    return request.replace(b"\r\n\r\n", line, 1)


def leave(path: Path, data: bytes) -> None:
    """Under its name only once it is whole; nobody needs it after a crash of the machine, so it is not synced."""
    partial = path.with_name(f"{path.name}.part")
    partial.write_bytes(data)
    os.replace(partial, path)
