"""What an app saw, as JSON lines in a file: buffered, on disk within 200 ms and at the end, so a judge can count."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TextIO

FLUSH_AFTER_S = 0.2
FLUSH_AT_LINES = 1000


class SeenLog:
    """Appends; `path` None means that nothing is kept."""

    def __init__(self, path: Path | None) -> None:
        self._file: TextIO | None = path.open("a", encoding="utf-8") if path else None
        self._pending: list[str] = []
        self._flush_due: asyncio.TimerHandle | None = None

    def write(self, **fields: object) -> None:
        if self._file is None:
            return
        self._pending.append(json.dumps(fields, separators=(",", ":")))
        if len(self._pending) >= FLUSH_AT_LINES:
            self.flush()
        elif self._flush_due is None:
            self._flush_due = asyncio.get_running_loop().call_later(FLUSH_AFTER_S, self.flush)

    def flush(self) -> None:
        if self._flush_due is not None:
            self._flush_due.cancel()
            self._flush_due = None
        if self._file is not None and self._pending:
            lines, self._pending = self._pending, []
            self._file.write("\n".join(lines) + "\n")
            self._file.flush()

    def close(self) -> None:
        self.flush()
        if self._file is not None:
            self._file.close()
            self._file = None
