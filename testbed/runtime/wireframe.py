"""How an orchestrator and a lab's keeper talk: length, then a marshalled dict; descriptors ride beside a frame.

`marshal` because both ends are the same program and the keeper must start in milliseconds (json costs it 10).
The socket lies in a folder of mode 0700, so whoever can speak to a keeper may already do all it can.
"""

from __future__ import annotations

import marshal

HEADER = 4
LARGEST = 64 << 20


def pack(message: dict) -> bytes:
    body = marshal.dumps(message, 4)
    return len(body).to_bytes(HEADER, "big") + body


class Reader:
    """Bytes in, whole frames out. Holds no socket."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[dict]:
        """Raises ValueError for a frame larger than any of ours."""
        self._buffer += data
        frames = []
        while len(self._buffer) >= HEADER:
            length = int.from_bytes(self._buffer[:HEADER], "big")
            if length > LARGEST:
                raise ValueError(f"a frame of {length} bytes is not one of ours")
            if len(self._buffer) < HEADER + length:
                break
            frames.append(marshal.loads(bytes(self._buffer[HEADER : HEADER + length])))
            del self._buffer[: HEADER + length]
        return frames
