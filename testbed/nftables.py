"""nf_tables rules, and the route that captures need, as netlink bytes, and their commit in a namespace.

No binary is called. Building is pure: a `Batch` per netlink family, each message with the name of the rule it makes,
so that the kernel's refusal is told by name. `apply` opens the sockets inside a network namespace. What the tables
mean is Istio's: the in-pod rules of ztunnel (`in_pod_capture`), the sidecar's (`sidecar_capture`), and a stand-in for
kube-proxy (`service_dnat`). The nf_tables transaction is atomic; every table is ours by its name and is replaced as a
whole, so applying twice leaves one copy. Sources: `linux/netfilter/nf_tables.h`, `linux/fib_rules.h`; the rules from
Istio's iptables golden files.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from testbed.errors import Bug, MachineError
from testbed.model.topology import Service, Topology

MARK = 0x539
"""On every socket of ztunnel."""
CONNECTION_MARK = 0x111
_MASK = 0xFFF
OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT = 15001, 15006, 15008
PASSTHROUGH_SOURCE = "127.0.0.6"
"""Source of a sidecar's inbound connections to its own application."""
_ROUTE_TABLE, _RULE_PRIORITY = 100, 32764
CAPTURE_TABLE, SERVICE_TABLE = "meshbed_capture", "meshbed_services"

_NETLINK_ROUTE, _NETLINK_NETFILTER = 0, 12
_REQUEST, _ACK, _EXCL, _CREATE, _APPEND = 1, 4, 0x200, 0x400, 0x800
_IPV4 = 2
_NFNL_BEGIN, _NFNL_END, _NF_TABLES = 0x10, 0x11, 10 << 8
_NEW_TABLE, _DELETE_TABLE, _NEW_CHAIN, _NEW_RULE = 0, 2, 3, 6
_NEW_ROUTE, _NEW_FIB_RULE = 24, 32
_CLONE_NEWNET = 0x40000000

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
        transaction = [b"".join((_frame(_NFNL_BEGIN), *(m.data for m in self.tables), _frame(_NFNL_END)))]
        return (transaction if self.tables else []) + [m.data for m in self.routes]


# -- what is captured, and where to


def in_pod_capture(outbound_port: int = OUTBOUND_PORT, inbound_port: int = INBOUND_PORT) -> Batch:
    """Ztunnel's in-pod rules for one workload's namespace, with the route that returns replies to spoofed source
    addresses.

    A packet of ztunnel's (mark 0x539) marks its connection 0x111; the application's replies get that mark back and
    are routed to this host by table 100, wherever their destination address lives.
    """
    t = _Table(CAPTURE_TABLE)
    t.chain("prerouting_mangle", "filter", _PREROUTING, -150)
    t.rule("remember ztunnel's connections", _marked(MARK), _set_connection_mark(CONNECTION_MARK))
    t.chain("output_mangle", "route", _OUTPUT, -150)
    t.rule("restore the mark for replies", _connection_marked(CONNECTION_MARK), _restore_mark())
    t.chain("prerouting_nat", "nat", _PREROUTING, -100)
    t.rule(
        "inbound to ztunnel",
        *(_tcp(), _destination("127.0.0.1", equal=False), _port(HBONE_PORT, equal=False)),
        *(_marked(MARK, equal=False), _redirect(inbound_port)),
    )
    t.chain("output_nat", "nat", _OUTPUT, -100)
    t.rule("replies stay", _marked(CONNECTION_MARK), _accept())
    t.rule("the workload's own address stays", _out_by_loopback(), _destination("127.0.0.1", equal=False), _accept())
    t.rule(
        "outbound to ztunnel",
        *(_tcp(), _destination("127.0.0.1", equal=False), _marked(MARK, equal=False), _redirect(outbound_port)),
    )
    return Batch(tables=t.messages, routes=(_local_route(), _mark_rule()))


def sidecar_capture(
    uid: int,
    *,
    excluded_inbound_ports: Sequence[int] = (15090, 15021, 15020),
    outbound_port: int = OUTBOUND_PORT,
    inbound_port: int = INBOUND_PORT,
) -> Batch:
    """Istio's sidecar rules for one workload's namespace; the proxy is known by its user id, not by a mark."""
    t = _Table(CAPTURE_TABLE)
    t.chain("prerouting_nat", "nat", _PREROUTING, -100)
    for port in (HBONE_PORT, *excluded_inbound_ports):
        t.rule(f"port {port} is left alone", _tcp(), _port(port), _accept())
    t.rule("inbound to the sidecar", _tcp(), _redirect(inbound_port))
    t.chain("output_nat", "nat", _OUTPUT, -100)
    lo = _out_by_loopback()
    t.rule("inbound passthrough", lo, _source(PASSTHROUGH_SOURCE), _accept())
    t.rule(
        "a call to itself through the sidecar",
        *(lo, _tcp(), _destination("127.0.0.1", equal=False), _port(HBONE_PORT, equal=False), _owner(uid)),
        _redirect(inbound_port),
    )
    t.rule("the application on loopback", lo, _owner(uid, equal=False), _accept())
    t.rule("the sidecar itself", _owner(uid), _accept())
    t.rule("loopback stays", _destination("127.0.0.1"), _accept())
    t.rule("outbound to the sidecar", _tcp(), _redirect(outbound_port))
    return Batch(tables=t.messages)


@dataclass(frozen=True, slots=True, kw_only=True)
class VirtualPort:
    """A service's address and port with the endpoints that stand behind it."""

    address: str
    port: int
    endpoints: tuple[tuple[str, int], ...]


def virtual_ports(topology: Topology, services: Iterable[Service] | None = None) -> list[VirtualPort]:
    """Those of the given services, or of all."""
    addresses = {w.name: w.address for w in topology.workloads}
    return [
        VirtualPort(
            address=service.address,
            port=port.port,
            endpoints=tuple((addresses[name], port.target_port) for name in service.endpoints),
        )
        for service in (topology.services if services is None else services)
        for port in service.ports
    ]


def service_dnat(services: Iterable[VirtualPort]) -> Batch:
    """Kube-proxy's part in a node's namespace: each new TCP connection to a service goes to a random endpoint, all
    alike.

    A port without endpoints gets no rule: its address then has no route, and the connection fails.
    """
    t = _Table(SERVICE_TABLE)
    ports = [service for service in services if service.endpoints]
    for chain, hook in (("prerouting_nat", _PREROUTING), ("output_nat", _OUTPUT)):
        t.chain(chain, "nat", hook, -100)
        for service in ports:
            match = (_tcp(), _destination(service.address), _port(service.port))
            # As kube-proxy's: the i-th of those left takes 1/left, the last one all; so each has the same chance.
            for index, (address, port) in enumerate(service.endpoints):
                left = len(service.endpoints) - index
                chance = (_random_below(left), _equals(struct.pack("=I", 0))) if left > 1 else ()
                name = f"{service.address}:{service.port} to {address}:{port} ({chain})"
                t.rule(name, *match, *chance, _dnat(address, port))
    return Batch(tables=t.messages)


def removal(table: str) -> Batch:
    """Takes one of our tables away; no error when it is not there."""
    return Batch(tables=_Table(table).messages[:2])


# -- netlink framing


def _frame(kind: int, flags: int = 0, body: bytes = b"") -> bytes:
    """An nfnetlink message; BEGIN and END name the subsystem in `res_id`. Sequence numbers are set when it is sent."""
    family, resource = (0, 10) if kind in (_NFNL_BEGIN, _NFNL_END) else (_IPV4, 0)
    payload = struct.pack(">BBH", family, 0, resource) + body
    return struct.pack("=IHHII", 16 + len(payload), kind, _REQUEST | flags, 0, 0) + payload


def _attribute(kind: int, data: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


def _nested(kind: int, *parts: bytes) -> bytes:
    return _attribute(kind | 0x8000, b"".join(parts))


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return _attribute(kind, struct.pack(">I", value))


# -- nf_tables

_PREROUTING, _OUTPUT = 0, 3
_META_MARK, _META_OUT_NAME, _META_OWNER, _META_PROTOCOL = 3, 7, 10, 16
_NETWORK_HEADER, _TRANSPORT_HEADER = 1, 2


class _Table:
    """Messages that replace one table: made if absent, deleted, made anew, in one transaction."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._chain = ""
        self._messages: list[Message] = []
        for kind, flags in ((_NEW_TABLE, _CREATE), (_DELETE_TABLE, 0), (_NEW_TABLE, _CREATE)):
            self._add(f"table {name}", kind, flags, _text(1, name))

    @property
    def messages(self) -> tuple[Message, ...]:
        return tuple(self._messages)

    def chain(self, name: str, kind: str, hook: int, priority: int) -> None:
        """Rules that follow go into it."""
        self._chain = name
        at = _nested(4, _number(1, hook), _attribute(2, struct.pack(">i", priority)))
        body = _text(1, self.name) + _text(3, name) + at + _text(7, kind)
        self._add(f"chain {name} of {self.name}", _NEW_CHAIN, _CREATE, body)

    def rule(self, what: str, *expressions: Expression) -> None:
        body = _text(1, self.name) + _text(2, self._chain) + _nested(4, *expressions)
        self._add(f"rule {what!r} in {self._chain} of {self.name}", _NEW_RULE, _CREATE | _APPEND, body)

    def _add(self, what: str, kind: int, flags: int, body: bytes) -> None:
        self._messages.append(Message(what, _frame(_NF_TABLES | kind, flags | _ACK, body)))


def _expression(name: str, *data: bytes) -> Expression:
    return _nested(1, _text(1, name), _nested(2, *data))


def _meta(key: int) -> Expression:
    return _expression("meta", _number(2, key), _number(1, 1))


def _equals(value: bytes, *, equal: bool = True) -> Expression:
    return _expression("cmp", _number(1, 1), _number(2, 0 if equal else 1), _nested(3, _attribute(1, value)))


def _masked(mask: int = _MASK, flip: int = 0) -> Expression:
    parts = [_nested(kind, _attribute(1, struct.pack("=I", value))) for kind, value in ((4, mask), (5, flip))]
    return _expression("bitwise", _number(1, 1), _number(2, 1), _number(3, 4), *parts)


def _payload(base: int, offset: int, length: int) -> Expression:
    return _expression("payload", _number(1, 1), _number(2, base), _number(3, offset), _number(4, length))


def _immediate(register: int, value: bytes) -> Expression:
    return _expression("immediate", _number(1, register), _nested(2, _attribute(1, value)))


def _accept() -> Expression:
    return _expression("immediate", _number(1, 0), _nested(2, _nested(2, _number(1, 1))))


def _tcp() -> Expression:
    return _meta(_META_PROTOCOL) + _equals(bytes([socket.IPPROTO_TCP]))


def _source(address: str) -> Expression:
    return _payload(_NETWORK_HEADER, 12, 4) + _equals(socket.inet_aton(address))


def _destination(address: str, *, equal: bool = True) -> Expression:
    return _payload(_NETWORK_HEADER, 16, 4) + _equals(socket.inet_aton(address), equal=equal)


def _port(port: int, *, equal: bool = True) -> Expression:
    return _payload(_TRANSPORT_HEADER, 2, 2) + _equals(struct.pack(">H", port), equal=equal)


def _marked(mark: int, *, equal: bool = True) -> Expression:
    return _meta(_META_MARK) + _masked() + _equals(struct.pack("=I", mark), equal=equal)


def _owner(uid: int, *, equal: bool = True) -> Expression:
    return _meta(_META_OWNER) + _equals(struct.pack("=I", uid), equal=equal)


def _out_by_loopback() -> Expression:
    return _meta(_META_OUT_NAME) + _equals(b"lo".ljust(16, b"\0"))


_CT_MARK = 3


def _connection_marked(mark: int) -> Expression:
    return _load_connection_mark() + _masked() + _equals(struct.pack("=I", mark))


def _load_connection_mark() -> Expression:
    return _expression("ct", _number(2, _CT_MARK), _number(1, 1))


def _set_connection_mark(mark: int) -> Expression:
    """`--set-xmark mark/0xfff`: the bits of the mask are replaced, others stay."""
    replace = _load_connection_mark() + _masked(0xFFFFFFFF & ~_MASK, mark)
    return replace + _expression("ct", _number(2, _CT_MARK), _number(4, 1))


def _restore_mark() -> Expression:
    return _load_connection_mark() + _expression("meta", _number(2, _META_MARK), _number(3, 1))


def _redirect(port: int) -> Expression:
    return _immediate(1, struct.pack(">H", port)) + _expression("redir", _number(1, 1))


def _random_below(modulus: int) -> Expression:
    return _expression("numgen", _number(1, 1), _number(2, modulus), _number(3, 1), _number(4, 0))


def _dnat(address: str, port: int) -> Expression:
    registers = _immediate(1, socket.inet_aton(address)) + _immediate(2, struct.pack(">H", port))
    return registers + _expression("nat", _number(1, 1), _number(2, _IPV4), _number(3, 1), _number(5, 2))


# -- rtnetlink


def _route_frame(kind: int, header: bytes, *attributes: bytes) -> bytes:
    body = header + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | _ACK | _CREATE | _EXCL, 0, 0) + body


def _local_route() -> Message:
    """`ip route add local 0.0.0.0/0 dev lo table 100`; loopback's index is 1 in every namespace."""
    header = struct.pack("=BBBBBBBBI", _IPV4, 0, 0, 0, _ROUTE_TABLE, 3, 254, 2, 0)
    attributes = _attribute(15, struct.pack("=I", _ROUTE_TABLE)) + _attribute(4, struct.pack("=i", 1))
    return Message(f"local route in table {_ROUTE_TABLE}", _route_frame(_NEW_ROUTE, header, attributes))


def _mark_rule() -> Message:
    """`ip rule add fwmark 0x111/0xfff pref 32764 lookup 100`."""
    header = struct.pack("=BBBBBBBBI", _IPV4, 0, 0, 0, _ROUTE_TABLE, 0, 0, 1, 0)
    values = ((6, _RULE_PRIORITY), (10, CONNECTION_MARK), (16, _MASK), (15, _ROUTE_TABLE))
    attributes = b"".join(_attribute(kind, struct.pack("=I", value)) for kind, value in values)
    return Message(
        f"rule fwmark {CONNECTION_MARK:#x} to table {_ROUTE_TABLE}", _route_frame(_NEW_FIB_RULE, header, attributes)
    )


# -- the shell: sockets in a namespace


def apply(netns_path: str, batch: Batch) -> None:
    """Puts the batch into the namespace at `netns_path`. Raises MachineError with the name of what the kernel
    refused.
    """
    failures: list[BaseException] = []

    def enter() -> None:
        try:
            descriptor = os.open(netns_path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _setns(descriptor)
            finally:
                os.close(descriptor)
            commit(batch)
        except BaseException as error:
            failures.append(error)

    # A thread's namespace is its own and ends with it; the caller stays where it is.
    thread = threading.Thread(target=enter, name="nftables")
    thread.start()
    thread.join()
    if failures:
        if isinstance(failures[0], OSError):
            text = (
                f"namespace {netns_path} cannot be entered ({failures[0]}); it must exist, and this needs CAP_SYS_ADMIN"
            )
            raise MachineError(text) from failures[0]
        raise failures[0]


def commit(batch: Batch) -> None:
    """Puts the batch into the namespace that this thread is in."""
    for family, name, messages in (
        (_NETLINK_NETFILTER, "nf_tables", batch.tables),
        (_NETLINK_ROUTE, "rtnetlink", batch.routes),
    ):
        if not messages:
            continue
        try:
            connection = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, family)
        except OSError as error:
            raise MachineError(f"{name}: no socket ({error}); load the kernel module nf_tables") from error
        with connection:
            connection.bind((0, 0))
            connection.settimeout(5.0)
            if family == _NETLINK_NETFILTER:
                _send_transaction(connection, messages)
            else:
                for message in messages:
                    connection.send(_numbered(message.data, 1))
                    _acknowledged(connection, {1: message}, already_there_is_fine=True)


def _send_transaction(connection: socket.socket, messages: Sequence[Message]) -> None:
    numbered = [_numbered(m.data, i) for i, m in enumerate(messages, 1)]
    end = len(messages) + 1
    data = b"".join((_numbered(_frame(_NFNL_BEGIN), 0), *numbered, _numbered(_frame(_NFNL_END), end)))
    # The kernel answers each message with an ack of 36 bytes or an error that quotes it; all must fit its queue.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, max(212_992, 2 * len(data)))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, max(212_992, 1024 * len(messages)))
    try:
        connection.send(data)
    except OSError as error:
        raise MachineError(f"nf_tables: {len(messages)} messages not taken ({error}); install fewer at once") from error
    _acknowledged(connection, dict(enumerate(messages, 1)))


def _numbered(data: bytes, number: int) -> bytes:
    return data[:8] + struct.pack("=I", number) + data[12:]


def _acknowledged(
    connection: socket.socket, pending: dict[int, Message], *, already_there_is_fine: bool = False
) -> None:
    waiting = dict(pending)
    refused: list[tuple[Message | None, int]] = []
    while waiting:
        try:
            data = connection.recv(1 << 18)
        except TimeoutError as error:
            if refused:
                break
            raise MachineError(
                f"netlink: no answer for {next(iter(waiting.values())).what} in 5 s; try again"
            ) from error
        except OSError as error:
            if refused:
                break
            raise MachineError(f"netlink: the answer was lost ({error}); install fewer rules at once") from error
        offset = 0
        while offset + 20 <= len(data):
            length, kind, _, number = struct.unpack_from("=IHHI", data, offset)
            if length < 16:
                raise Bug(f"netlink: message of {length} bytes")
            if kind == 2:
                code = -struct.unpack_from("=i", data, offset + 16)[0]
                message = waiting.pop(number, None)
                if code and not (already_there_is_fine and code == errno.EEXIST):
                    refused.append((message, code))
                    if message is None:  # about the transaction as a whole: nothing more will come
                        waiting.clear()
            offset += (length + 3) & ~3
    if refused:
        message, code = refused[0]
        what = message.what if message is not None else "the transaction"
        raise MachineError(
            f"netlink: {what} refused: {os.strerror(code)} ({errno.errorcode.get(code, code)}); {_mend(code)}"
        )


def _mend(code: int) -> str:
    if code in (errno.EPERM, errno.EACCES):
        return "run as root, or in a user namespace of your own"
    if code in (errno.ENOENT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
        return "the kernel lacks a part: load nf_tables, nft_chain_nat, nft_redir, nft_nat, nft_ct, nft_numgen"
    return "see the kernel's log"


def _setns(descriptor: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
