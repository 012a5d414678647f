"""Questions to a name server and what its answers mean: RFC 1035 messages, addresses only. Bytes in, values out.

A client of one server and of UDP: an answer that was cut short (TC) counts as far as it came.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass

from planes.mesh.names import Answer

A, CNAME, AAAA = 1, 5, 28
_IN = 1
_HEADER = struct.Struct(">6H")
_RECORD = struct.Struct(">HHIH")
_RESPONSE, _RECURSION_DESIRED = 0x8000, 0x0100
_NO_ERROR, _NO_SUCH_NAME = 0, 3
_LONGEST_NAME, _LONGEST_LABEL = 253, 63
_MOST_ALIASES = 16
_MOST_POINTERS = 127
"""In a name, which has no more labels than that: chains of pointers alone kept a resolver busy for seconds."""
_CODES = {1: "FORMERR", 2: "SERVFAIL", _NO_SUCH_NAME: "NXDOMAIN", 4: "NOTIMP", 5: "REFUSED"}
_SIZE = {A: 4, AAAA: 16}


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    owner: str
    kind: int
    ttl_s: int
    value: str
    """An address, or of CNAME a name."""


def query(number: int, name: str, kind: int) -> bytes:
    """Raises ValueError for what cannot be asked for."""
    labels = name.rstrip(".").split(".")
    if len(name) > _LONGEST_NAME or not all(0 < len(label) <= _LONGEST_LABEL and label.isascii() for label in labels):
        raise ValueError(f"{name!r} is no host name that DNS can hold")
    question = b"".join(bytes((len(label),)) + label.encode() for label in labels) + b"\0"
    return _HEADER.pack(number, _RECURSION_DESIRED, 1, 0, 0, 0) + question + struct.pack(">HH", kind, _IN)


def answer(message: bytes, number: int, name: str, kind: int) -> Answer | None:
    """None: not an answer to this question, whoever sent it. Raises ValueError for one that cannot be read."""
    if len(message) < _HEADER.size:
        return None
    told, flags, questions, count, _, _ = _HEADER.unpack_from(message)
    if told != number or not flags & _RESPONSE or questions != 1:
        return None
    try:
        owner, at = _name(message, _HEADER.size)
        asked = struct.unpack_from(">HH", message, at)
        if owner != _normal(name) or asked != (kind, _IN):
            return None
        records = _records(message, at + 4, count)
    except (IndexError, struct.error) as cause:
        raise ValueError("the message ends within a record") from cause
    code = flags & 0xF
    if code != _NO_ERROR:
        return Answer(reason=f"the name server says {_CODES.get(code, f'code {code}')}")
    return _followed(records, _normal(name), kind)


def _followed(records: list[Record], name: str, kind: int) -> Answer:
    """Aliases lead from the name to its addresses; the whole is good for as long as its shortest part."""
    ttls: list[int] = []
    for _ in range(_MOST_ALIASES):
        found = [r for r in records if r.owner == name and r.kind == kind]
        if found:
            return Answer(addresses=tuple(r.value for r in found), ttl_s=min(ttls + [r.ttl_s for r in found]))
        alias = next((r for r in records if r.owner == name and r.kind == CNAME), None)
        if alias is None:
            break
        ttls.append(alias.ttl_s)
        name = alias.value
    return Answer(reason="the name has no address")


def _records(message: bytes, at: int, count: int) -> list[Record]:
    records = []
    for _ in range(count):
        owner, at = _name(message, at)
        kind, group, ttl_s, size = _RECORD.unpack_from(message, at)
        at += _RECORD.size
        if at + size > len(message):
            break  # cut short
        if group == _IN and kind == CNAME:
            records.append(Record(owner=owner, kind=kind, ttl_s=ttl_s, value=_name(message, at)[0]))
        elif group == _IN and _SIZE.get(kind) == size:
            value = str(ipaddress.ip_address(message[at : at + size]))
            # RFC 2181 8: a lifetime with the highest bit set is none.
            records.append(Record(owner=owner, kind=kind, ttl_s=0 if ttl_s >> 31 else ttl_s, value=value))
        at += size
    return records


def _name(message: bytes, at: int) -> tuple[str, int]:
    """(name in lower case, where what follows it begins). A pointer leads backwards only, so that this ends."""
    labels, end, limit, pointers = [], 0, at, 0
    while True:
        size = message[at]
        if size == 0:
            return ".".join(labels), end or at + 1
        if size >= 0xC0:
            target = (size & 0x3F) << 8 | message[at + 1]
            pointers += 1
            if target >= limit or pointers > _MOST_POINTERS:
                raise ValueError("a compressed name leads forwards, or on and on")
            end, at, limit = end or at + 2, target, target
            continue
        if size > _LONGEST_LABEL or at + 1 + size > len(message):
            raise ValueError("a label is longer than its message")
        labels.append(message[at + 1 : at + 1 + size].decode("latin-1").lower())
        if sum(map(len, labels)) + len(labels) > _LONGEST_NAME + 1:
            raise ValueError("a name is longer than names may be")
        at += 1 + size


def _normal(name: str) -> str:
    return name.rstrip(".").lower()
