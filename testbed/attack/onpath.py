"""Who lies on the way: takes every new TCP connection that passes a node, relays it, alters it, keeps it to send again.

All of it in one network namespace of the lab, by a redirect that is taken away at the end. He knows no key.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

from testbed import nftables
from testbed import nftmessages as nft
from testbed.nftmessages import Batch
from testbed.runtime.enter import in_netns

TABLE = "meshbed_onpath"
SO_ORIGINAL_DST = 80
LIMIT_S = 3.0


@dataclass(slots=True)
class Wire:
    """What passed: of each connection where it went and what its client sent."""

    alter: tuple[bytes, bytes] | None = None
    """In what servers send: this is replaced by that; where it never shows in clear, a bit of each write is turned."""
    passed: list[tuple[tuple[str, int], bytearray]] = field(default_factory=list)
    altered: int = 0

    def answered(self, data: bytes, number: int) -> bytes:
        """`number` counts the writes of this server; the first one is left whole, so that what is altered has begun."""
        if self.alter is None:
            return data
        before, after = self.alter
        if before in data:
            self.altered += 1
            return data.replace(before, after)
        if data.startswith(b"HTTP/1") or number == 0:
            return data
        self.altered += 1
        return data[:-1] + bytes([data[-1] ^ 1])


def redirected(port: int) -> Batch:
    table = nft.Table(TABLE)
    table.chain("prerouting_nat", "nat", nft.PREROUTING, -100)
    table.rule("all TCP that passes", nft.tcp(), nft.redirect(port))
    return Batch(tables=table.messages)


@contextlib.contextmanager
def between(netns: str) -> Iterator[Wire]:
    """Stands on the way for as long as the `with`; connections that were there before stay as they are."""
    wire = Wire()
    listener = in_netns(netns, lambda: socket.create_server(("0.0.0.0", 0)))
    listener.settimeout(0.1)
    ending = threading.Event()
    held: list[socket.socket] = []

    def carry(source: socket.socket, target: socket.socket, kept: bytearray | None) -> None:
        number = 0
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if kept is not None:
                    kept += data
                    target.sendall(data)
                else:
                    target.sendall(wire.answered(data, number))
                    number += 1
        for sock in (source, target):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def take(down: socket.socket) -> None:
        raw = down.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16)
        where = socket.inet_ntoa(raw[4:8]), struct.unpack("!H", raw[2:4])[0]
        try:
            up = in_netns(netns, lambda: socket.create_connection(where, timeout=LIMIT_S))
        except OSError:
            down.close()
            return
        for sock in (down, up):
            sock.settimeout(None)
        held.extend((down, up))
        kept = bytearray()
        wire.passed.append((where, kept))
        threading.Thread(target=carry, args=(up, down, None), daemon=True).start()
        carry(down, up, kept)

    def accept() -> None:
        while not ending.is_set():
            with contextlib.suppress(TimeoutError):
                threading.Thread(target=take, args=(listener.accept()[0],), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        nftables.apply(netns, redirected(listener.getsockname()[1]))
        yield wire
    finally:
        ending.set()
        try:
            nftables.apply(netns, nftables.removal(TABLE))
        finally:
            thread.join()
            listener.close()
            for sock in held:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()


def again(netns: str, where: tuple[str, int], data: bytes) -> bytes:
    """What comes back when the same bytes are sent once more, over a connection of one's own."""
    back = b""
    with (
        contextlib.suppress(OSError),
        in_netns(netns, lambda: socket.create_connection(where, timeout=LIMIT_S)) as sock,
    ):
        sock.settimeout(LIMIT_S)
        sock.sendall(data)
        while part := sock.recv(65536):
            back += part
            if b"\r\n\r\n" in back:
                break
    return back
