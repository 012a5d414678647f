"""The generator's raw rows as bytes: a header in JSON, then one fixed record per request. Pure.

Layout: `MBROWS1\\n`, u32 length of the header, header, records `<4d H q H H`: intended, sent, first byte, last byte
(seconds, CLOCK_MONOTONIC), status, bytes, connection, error (index into the header's `errors`; 0 is none). Every
request of the trial is here, those of the warm-up too.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace

from testbed.errors import PeerError
from testbed.model.experiment import RequestRow

MAGIC = b"MBROWS1\n"
_LENGTH = struct.Struct("<I")
_RECORD = struct.Struct("<4dHqHH")


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What the generator knows about itself."""

    window_start_s: float
    window_end_s: float
    cpu_s: float
    """User and system time of the generator's process from the start of the warm-up until the last answer."""
    wall_s: float
    """Length of the stretch `cpu_s` belongs to."""
    connects: int
    """Connections opened, those at the start included: above the plan's number, something closed them."""
    max_gap_s: float
    """Longest time the generator's loop overslept a 10 ms heartbeat: the machine took the processor away."""
    gaps_over_5ms: int
    unsent: int
    """Requests given up because the trial's end came before a connection was free."""
    users: int = 0
    """Connections that the process was given."""


def encode(header: Header, rows: Iterable[RequestRow]) -> bytes:
    errors: dict[str, int] = {"": 0}
    body = bytearray()
    for row in rows:
        index = errors.setdefault(row.error, len(errors))
        body += _RECORD.pack(
            row.intended_s, row.sent_s, row.first_byte_s, row.last_byte_s, row.status, row.bytes, row.connection, index
        )
    head = json.dumps({**asdict(header), "errors": list(errors), "rows": len(body) // _RECORD.size}).encode()
    return b"".join((MAGIC, _LENGTH.pack(len(head)), head, body))


def decode(data: bytes) -> tuple[Header, list[RequestRow]]:
    """Raises PeerError when the file is not whole."""
    if not data.startswith(MAGIC) or len(data) < len(MAGIC) + _LENGTH.size:
        raise PeerError("rows of the load generator: not a MBROWS1 file; see its failure.txt beside it")
    (length,) = _LENGTH.unpack_from(data, len(MAGIC))
    start = len(MAGIC) + _LENGTH.size
    try:
        fields = json.loads(data[start : start + length])
        errors, count = fields.pop("errors"), fields.pop("rows")
        header = Header(**fields)
    except (ValueError, KeyError, TypeError) as error:
        raise PeerError(f"rows of the load generator: the header does not parse ({error})") from error
    body = memoryview(data)[start + length :]
    if len(body) != count * _RECORD.size:
        raise PeerError(f"rows of the load generator: {count} rows announced, {len(body) / _RECORD.size:g} found")
    rows = [
        RequestRow(
            intended_s=intended,
            sent_s=sent,
            first_byte_s=first,
            last_byte_s=last,
            status=status,
            bytes=size,
            connection=connection,
            error=errors[error],
        )
        for intended, sent, first, last, status, size, connection, error in _RECORD.iter_unpack(body)
    ]
    return header, rows


def merged(parts: Sequence[tuple[Header, Sequence[RequestRow]]]) -> tuple[Header, list[RequestRow]]:
    """One generator's rows out of its workers', by intended time; connections are numbered anew, worker after worker.

    Raises PeerError where they did not measure the same window.
    """
    headers = [header for header, _ in parts]
    first = headers[0]
    for header in headers:
        if (header.window_start_s, header.window_end_s) != (first.window_start_s, first.window_end_s):
            raise PeerError("rows of the load generator: its workers measured different windows")
    rows: list[RequestRow] = []
    before = 0
    for header, mine in parts:
        rows += mine if not before else [replace(row, connection=row.connection + before) for row in mine]
        before += header.users
    rows.sort(key=lambda row: row.intended_s)
    whole = Header(
        window_start_s=first.window_start_s,
        window_end_s=first.window_end_s,
        cpu_s=sum(h.cpu_s for h in headers),
        wall_s=max(h.wall_s for h in headers),
        connects=sum(h.connects for h in headers),
        max_gap_s=max(h.max_gap_s for h in headers),
        gaps_over_5ms=sum(h.gaps_over_5ms for h in headers),
        unsent=sum(h.unsent for h in headers),
        users=before,
    )
    return whole, rows
