"""A name server's half of DNS, for tests: answers as bytes, made from a table. Not made of the client's own code."""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Mapping, Sequence

Row = tuple[str, int, str]
"""Owner, lifetime in seconds, address or (for an alias) name."""


def name(text: str) -> bytes:
    return b"".join(bytes((len(label),)) + label.encode() for label in text.split(".")) + b"\0"


def record(row: Row) -> bytes:
    owner, ttl_s, value = row
    try:
        address = ipaddress.ip_address(value)
    except ValueError:
        kind, data = 5, name(value)
    else:
        kind, data = (28 if address.version == 6 else 1), address.packed
    return name(owner) + struct.pack(">HHIH", kind, 1, ttl_s, len(data)) + data


def reply(question: bytes, rows: Sequence[Row], *, code: int = 0) -> bytes:
    """To a question's own bytes, all of these records."""
    number = struct.unpack_from(">H", question)[0]
    return struct.pack(">6H", number, 0x8180 | code, 1, len(rows), 0, 0) + question[12:] + b"".join(map(record, rows))


def asked(question: bytes) -> tuple[str, int]:
    """(name, kind)."""
    labels, at = [], 12
    while size := question[at]:
        labels.append(question[at + 1 : at + 1 + size].decode())
        at += 1 + size
    return ".".join(labels), struct.unpack_from(">H", question, at + 1)[0]


def serve(sock: socket.socket, table: Mapping[str, Sequence[Row]], seen: list[tuple[str, int]]) -> None:
    """Until the socket is closed. Who is not in the table does not exist; each question is put down in `seen`."""
    while True:
        try:
            question, client = sock.recvfrom(4096)
        except TimeoutError:
            continue
        except OSError:
            return
        if not question:
            return
        wanted, kind = asked(question)
        seen.append((wanted, kind))
        of_kind = {1: 4, 28: 6}.get(kind)
        rows = [row for row in table.get(wanted, ()) if _version(row[2]) in (None, of_kind)]
        sock.sendto(reply(question, rows, code=0 if wanted in table else 3), client)


def _version(value: str) -> int | None:
    try:
        return ipaddress.ip_address(value).version
    except ValueError:
        return None
