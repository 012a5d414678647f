"""What a generator is told, as JSON, and the times it and its driver agree on."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from testbed.model.experiment import Load

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
