"""The proxy's own three HTTP ports, in its own namespace: readiness, Prometheus metrics, admin (facts/hbone 1.1).

Never on the data path; a request is one read and one answer, then the connection closes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

Answer = tuple[int, str]
_REASONS = {200: "OK", 404: "Not Found", 500: "Internal Server Error"}


class OneShot(asyncio.Protocol):
    def __init__(self, routes: dict[str, Callable[[], Answer]]) -> None:
        self._routes = routes
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._head += data
        if b"\r\n\r\n" not in self._head:
            if len(self._head) > 8192:
                self._transport.abort()
            return
        parts = self._head.split(b" ", 2)
        path = parts[1].decode("latin-1").partition("?")[0] if len(parts) == 3 else ""
        status, body = self._routes.get(path, lambda: (404, "not found\n"))()
        payload = body.encode()
        head = f"HTTP/1.1 {status} {_REASONS[status]}\r\ncontent-type: text/plain\r\ncontent-length: {len(payload)}\r\n"
        self._transport.write(f"{head}connection: close\r\n\r\n".encode() + payload)
        self._transport.close()
