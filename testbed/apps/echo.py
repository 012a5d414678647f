"""TCP echo: sends back what it gets; may speak first, as databases and mail servers do; counts connections.

    python -m testbed.apps.echo --port 9000 --name echo --log seen.jsonl [--banner 'hello from echo']

A line is logged when a connection opens and one when it ends; the last line of the file holds the totals.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

import uvloop

from testbed.apps.seenlog import SeenLog
from testbed.apps.serving import listen_until_told, until_empty


class EchoApp:
    def __init__(self, *, name: str, log: SeenLog, banner: bytes = b"") -> None:
        self.name = name
        self.log = log
        self.banner = banner
        self.connections: set[EchoConnection] = set()
        self.total_connections = 0
        self.total_bytes = 0

    def log_totals(self) -> None:
        self.log.write(
            time=time.time(),
            event="totals",
            workload=self.name,
            connections=self.total_connections,
            open_connections=len(self.connections),
            bytes=self.total_bytes,
        )


class EchoConnection(asyncio.Protocol):
    """Reads no faster than the peer takes its own bytes back, so it holds one write buffer at most."""

    def __init__(self, app: EchoApp) -> None:
        self._app = app
        self._bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self._app.connections.add(self)
        self._app.total_connections += 1
        self._log("open")
        if self._app.banner:
            transport.write(self._app.banner)

    def data_received(self, data: bytes) -> None:
        self._bytes += len(data)
        self.transport.write(data)

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()

    def eof_received(self) -> bool:
        return False  # the transport closes once everything written has left

    def connection_lost(self, exc: Exception | None) -> None:
        self._app.connections.discard(self)
        self._app.total_bytes += self._bytes
        self._log("closed" if exc is None else type(exc).__name__)

    def _log(self, event: str) -> None:
        peer = self.transport.get_extra_info("peername") or ("unknown", 0)
        fields = {"peer": str(peer[0]), "peer_port": peer[1], "bytes": self._bytes}
        self._app.log.write(time=time.time(), event=event, workload=self._app.name, **fields)


async def serve(app: EchoApp, *, address: str, ports: list[int]) -> None:
    """Until SIGTERM or SIGINT; what is still to be echoed then has DRAIN_S to leave."""
    await listen_until_told(lambda: EchoConnection(app), address=address, ports=ports)
    for connection in list(app.connections):
        connection.transport.close()
    await until_empty(app.connections)
    app.log_totals()
    app.log.close()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m testbed.apps.echo", description="TCP echo that counts")
    parser.add_argument("--port", type=int, action="append", required=True, help="listen here (repeatable); 0: any")
    parser.add_argument("--address", default="0.0.0.0", help="listen on this address (default: all)")
    parser.add_argument("--name", default="echo", help="said in the log")
    parser.add_argument("--log", type=Path, help="JSON lines of what was seen")
    parser.add_argument("--banner", default="", help="sent, with a newline, as soon as a connection opens")
    args = parser.parse_args(argv)

    async def run() -> None:
        banner = f"{args.banner}\n".encode() if args.banner else b""
        app = EchoApp(name=args.name, log=SeenLog(args.log), banner=banner)
        await serve(app, address=args.address, ports=args.port)

    uvloop.run(run())


if __name__ == "__main__":
    main()
