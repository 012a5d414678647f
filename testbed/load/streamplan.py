"""What a driver of streams is told, and what it says of itself: plans as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

READY_FILE, GO_FILE, END_FILE, PLAN_FILE, DONE_FILE = "ready", "go.json", "end.json", "streams.json", "done.json"
REQUEST_TIMEOUT_S = 1.0
"""After which a client gives up a request: opening its connection is part of it."""
CONNECTIONS_A_STREAM = 1000
"""Numbers of connections in a trial's rows: the stream's index times this, plus the connection's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """One stream as its client sees it."""

    index: int
    """Among all streams of the trial."""
    host: str
    port: int
    protocol: str
    held: bool
    connections: int
    interval_s: float
    response_bytes: int
    begins_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamsPlan:
    lanes: tuple[Lane, ...]
    most_s: float
    """It ends when it is told; and after so long in any case."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> StreamsPlan:
        values = json.loads(text)
        return cls(lanes=tuple(Lane(**lane) for lane in values["lanes"]), most_s=values["most_s"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What the driver saw of itself."""

    max_gap_s: float
    """Longest time its loop overslept: the machine took the processor away."""
    connects: dict[str, int]
    """Connections opened, by the stream's index."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Told:
        return cls(**json.loads(text))
