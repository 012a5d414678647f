"""nf_tables and rtnetlink messages as bytes: tables, chains, rules and what rules are made of. Pure.

A `Batch` is what goes into one namespace, each message with the name of the rule it makes. What the tables mean is in
`nftables`, how they reach the kernel in `nftcommit`. Sources: `linux/netfilter/nf_tables.h`, `linux/fib_rules.h`.
"""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass, field

MARK_MASK = 0xFFF
ROUTE_TABLE, RULE_PRIORITY = 100, 32764

_REQUEST, _ACK, _EXCL, _CREATE, _APPEND = 1, 4, 0x200, 0x400, 0x800
_IPV4 = 2
NFNL_BEGIN, NFNL_END, _NF_TABLES = 0x10, 0x11, 10 << 8
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 2, 3, 6
_NEW_ROUTE, _NEW_FIB_RULE = 24, 32

Expression = bytes


@dataclass(frozen=True, slots=True)
class Message:
    """One netlink message and what it makes."""

    what: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Everything to be put into one namespace: an atomic nf_tables transaction, then rtnetlink messages one by one."""

    tables: tuple[Message, ...] = ()
    routes: tuple[Message, ...] = field(default=())

    def __add__(self, other: Batch) -> Batch:
        return Batch(tables=self.tables + other.tables, routes=self.routes + other.routes)

    def for_new_namespace(self) -> Batch:
        """Without the deletions: the kernel waits about 10 ms for each, and a new namespace has nothing of ours."""
        delete = struct.pack("=H", _NF_TABLES | _DELETE_TABLE)
        return Batch(tables=tuple(m for m in self.tables if m.data[4:6] != delete), routes=self.routes)

    @property
    def datagrams(self) -> list[bytes]:
        """The bytes as they go to the kernel: the transaction as one, then each route message."""
        transaction = [b"".join((frame(NFNL_BEGIN), *(m.data for m in self.tables), frame(NFNL_END)))]
        return (transaction if self.tables else []) + [m.data for m in self.routes]


# -- netlink framing


def frame(kind: int, flags: int = 0, body: bytes = b"") -> bytes:
    """An nfnetlink message; BEGIN and END name the subsystem in `res_id`. Sequence numbers are set when it is sent."""
    family, resource = (0, 10) if kind in (NFNL_BEGIN, NFNL_END) else (_IPV4, 0)
    payload = struct.pack(">BBH", family, 0, resource) + body
    return struct.pack("=IHHII", 16 + len(payload), kind, _REQUEST | flags, 0, 0) + payload


def attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def nested(kind: int, *parts: bytes) -> bytes:
    return attribute(kind | 0x8000, b"".join(parts))


def text(kind: int, value: str) -> bytes:
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack(">I", value))


# -- nf_tables

PREROUTING, OUTPUT = 0, 3
_META_MARK, _META_OUT_NAME, _META_OWNER, _META_PROTOCOL = 3, 7, 10, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2
_TCP = 6


class Table:
    """Messages that replace one table: made if absent, deleted, made anew, in one transaction."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._chain = ""
        self._messages: list[Message] = []
        for kind, flags in ((_NEW_TABLE, _CREATE), (_DELETE_TABLE, 0), (_NEW_TABLE, _CREATE)):
            self._add(f"table {name}", kind, flags, text(1, name))

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(self._messages)

    def chain(self, name: str, kind: str, hook: int, priority: int) -> None:
        """Rules that follow go into it."""
        self._chain = name
        at = nested(4, number(1, hook), attribute(2, struct.pack(">i", priority)))
        body = text(1, self.name) + text(3, name) + at + text(7, kind)
        self._add(f"chain {name} of {self.name}", _NEW_CHAIN, _CREATE, body)

    def rule(self, what: str, *expressions: Expression) -> None:
        body = text(1, self.name) + text(2, self._chain) + nested(4, *expressions)
        self._add(f"rule {what!r} in {self._chain} of {self.name}", _NEW_RULE, _CREATE | _APPEND, body)

    def _add(self, what: str, kind: int, flags: int, body: bytes) -> None:
        self._messages.append(Message(what, frame(_NF_TABLES | kind, flags | _ACK, body)))


def expression(name: str, *data: bytes) -> Expression:
    return nested(1, text(1, name), nested(2, *data))


def meta(key: int) -> Expression:
    return expression("meta", number(2, key), number(1, 1))


def equals(value: bytes, *, equal: bool = True) -> Expression:
    return expression("cmp", number(1, 1), number(2, 0 if equal else 1), nested(3, attribute(1, value)))


def masked(mask: int = MARK_MASK, flip: int = 0) -> Expression:
    parts = [nested(kind, attribute(1, struct.pack("=I", value))) for kind, value in ((4, mask), (5, flip))]
    return expression("bitwise", number(1, 1), number(2, 1), number(3, 4), *parts)


def payload(base: int, offset: int, length: int) -> Expression:
    return expression("payload", number(1, 1), number(2, base), number(3, offset), number(4, length))


def immediate(register: int, value: bytes) -> Expression:
    return expression("immediate", number(1, register), nested(2, attribute(1, value)))


def accept() -> Expression:
    return expression("immediate", number(1, 0), nested(2, nested(2, number(1, 1))))


def tcp() -> Expression:
    return meta(_META_PROTOCOL) + equals(bytes([_TCP]))


def source(address: str) -> Expression:
    return payload(_NETWORK_HEADER, 12, 4) + equals(ipaddress.IPv4Address(address).packed)


def destination(address: str, *, equal: bool = True) -> Expression:
    return payload(_NETWORK_HEADER, 16, 4) + equals(ipaddress.IPv4Address(address).packed, equal=equal)


def port(value: int, *, equal: bool = True) -> Expression:
    return payload(_TRANSPORT_HEADER, 2, 2) + equals(struct.pack(">H", value), equal=equal)


def marked(mark: int, *, equal: bool = True) -> Expression:
    return meta(_META_MARK) + masked() + equals(struct.pack("=I", mark), equal=equal)


def owner(uid: int, *, equal: bool = True) -> Expression:
    return meta(_META_OWNER) + equals(struct.pack("=I", uid), equal=equal)


def out_by_loopback() -> Expression:
    return meta(_META_OUT_NAME) + equals(b"lo".ljust(16, b"\0"))


_CT_MARK = 3


def connection_marked(mark: int) -> Expression:
    return load_connection_mark() + masked() + equals(struct.pack("=I", mark))


def load_connection_mark() -> Expression:
    return expression("ct", number(2, _CT_MARK), number(1, 1))


def set_connection_mark(mark: int) -> Expression:
    """`--set-xmark mark/0xfff`: the bits of the mask are replaced, others stay."""
    replace = load_connection_mark() + masked(0xFFFFFFFF & ~MARK_MASK, mark)
    return replace + expression("ct", number(2, _CT_MARK), number(4, 1))


def restore_mark() -> Expression:
    return load_connection_mark() + expression("meta", number(2, _META_MARK), number(3, 1))


def redirect(port: int) -> Expression:
    return immediate(1, struct.pack(">H", port)) + expression("redir", number(1, 1))


def random_below(modulus: int) -> Expression:
    return expression("numgen", number(1, 1), number(2, modulus), number(3, 1), number(4, 0))


def dnat(address: str, port: int) -> Expression:
    registers = immediate(1, ipaddress.IPv4Address(address).packed) + immediate(2, struct.pack(">H", port))
    return registers + expression("nat", number(1, 1), number(2, _IPV4), number(3, 1), number(5, 2))

# -- rtnetlink


def route_frame(kind: int, header: bytes, *attributes: bytes) -> bytes:
    body = header + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | _ACK | _CREATE | _EXCL, 0, 0) + body


def local_route() -> Message:
    """`ip route add local 0.0.0.0/0 dev lo table 100`; loopback's index is 1 in every namespace."""
    header = struct.pack("=BBBBBBBBI", _IPV4, 0, 0, 0, ROUTE_TABLE, 3, 254, 2, 0)
    attributes = attribute(15, struct.pack("=I", ROUTE_TABLE)) + attribute(4, struct.pack("=i", 1))
    return Message(f"local route in table {ROUTE_TABLE}", route_frame(_NEW_ROUTE, header, attributes))


def mark_rule(connection_mark: int) -> Message:
    """`ip rule add fwmark 0x111/0xfff pref 32764 lookup 100`."""
    header = struct.pack("=BBBBBBBBI", _IPV4, 0, 0, 0, ROUTE_TABLE, 0, 0, 1, 0)
    values = ((6, RULE_PRIORITY), (10, connection_mark), (16, MARK_MASK), (15, ROUTE_TABLE))
    attributes = b"".join(attribute(kind, struct.pack("=I", value)) for kind, value in values)
    return Message(
        f"rule fwmark {connection_mark:#x} to table {ROUTE_TABLE}", route_frame(_NEW_FIB_RULE, header, attributes)
    )


def withdrawn(made: Message) -> Message:
    """Takes away what a route or rule message made."""
    (kind,) = struct.unpack_from("=H", made.data, 4)
    head = made.data[:4] + struct.pack("=HH", kind + 1, _REQUEST | _ACK)
    return Message(f"no more {made.what}", head + made.data[8:])
