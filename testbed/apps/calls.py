"""Calls that a web app makes to further services before it answers: keep-alive connections, one call after another."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from urllib.parse import urlsplit

PASSED_ON = ("x-canary", "x-request-id", "traceparent", "tracestate")
MAX_IDLE = 64
MAX_BODY_BYTES = 64 * 1024 * 1024
CALL_TIMEOUT_S = 10.0
_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class CallError(Exception):
    """A call did not come back whole; the text says to whom and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Callee:
    host: str
    port: int
    path: str

    @classmethod
    def parse(cls, url: str) -> Callee:
        """Raises ValueError unless `url` is `http://host[:port][/path]`."""
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError(f"--call {url!r} is not of the form http://<address>:<port>/<path>")
        path = parts.path or "/"
        return cls(host=parts.hostname, port=parts.port or 80, path=f"{path}?{parts.query}" if parts.query else path)


class Caller:
    """Idle connections to one callee, newest first."""

    def __init__(self, callee: Callee) -> None:
        self._callee = callee
        self._idle: list[_Stream] = []

    async def call(self, headers: dict[str, str]) -> int:
        """The status of the answer, its body read and dropped. Raises CallError."""
        passed = "".join(f"{name}: {headers[name]}\r\n" for name in PASSED_ON if name in headers)
        callee = self._callee
        request = f"GET {callee.path} HTTP/1.1\r\nhost: {callee.host}:{callee.port}\r\n{passed}\r\n".encode("latin-1")
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                # A kept connection may have been closed meanwhile: then the next is tried, and at last a new one.
                while self._idle:
                    stream = self._idle.pop()
                    try:
                        return await self._exchange(stream, request)
                    except (OSError, asyncio.IncompleteReadError):
                        continue
                stream = await asyncio.open_connection(callee.host, callee.port)
                return await self._exchange(stream, request)
        except TimeoutError as error:
            raise CallError(f"{callee.host}:{callee.port}: no answer within {CALL_TIMEOUT_S:g} s") from error
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
            raise CallError(f"{callee.host}:{callee.port}: {type(error).__name__}: {error}") from error

    async def _exchange(self, stream: _Stream, request: bytes) -> int:
        reader, writer = stream
        kept = False
        try:
            writer.write(request)
            status = 100
            while status < 200:  # interim answers come before the one that counts (RFC 9110 §15.2)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.split("\r\n")
                status = int(first.split(" ", 2)[1])
            fields = {n.strip().lower(): v.strip() for n, _, v in (line.partition(":") for line in lines if line)}
            framed = await _drop_body(reader, fields, status)
            kept = framed and "close" not in fields.get("connection", "").lower() and len(self._idle) < MAX_IDLE
            return status
        finally:
            if kept:
                self._idle.append(stream)
            else:
                writer.close()

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
        self._idle.clear()


async def _drop_body(reader: asyncio.StreamReader, fields: dict[str, str], status: int) -> bool:
    """False when the body ended with the connection."""
    if status in (204, 304):
        return True
    if fields.get("transfer-encoding", "").lower() == "chunked":
        total = 0
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            total += size
            if total > MAX_BODY_BYTES:
                raise ValueError("the answer's body is too long")
            await reader.readexactly(size + 2)
        while await reader.readuntil(b"\r\n") != b"\r\n":
            pass
        return True
    if "content-length" in fields:
        left = int(fields["content-length"])
        if not 0 <= left <= MAX_BODY_BYTES:
            raise ValueError("the answer's body is too long")
        while left:
            part = await reader.read(min(left, 65536))
            if not part:
                raise asyncio.IncompleteReadError(b"", left)
            left -= len(part)
        return True
    while await reader.read(65536):
        pass
    return False
