"""Rules judged by what the kernel does with connections, in namespaces made for each test."""

from __future__ import annotations

import collections
import ctypes
import dataclasses
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from testbed import nftables, nftcommit, nftmessages, topofile
from testbed.errors import MachineError
from testbed.nftables import Batch, VirtualPort, in_pod_capture, service_dnat, sidecar_capture
from testbed.nftmessages import attribute

SO_ORIGINAL_DST, IP_TRANSPARENT = 80, 19
HERE, THERE = "10.0.1.2", "10.0.2.2"
UID = 1337
T = TypeVar("T")


# -- pure


def _messages(data: bytes) -> list[tuple[int, int]]:
    """(type, flags) of the netlink messages in a datagram, walked by their own lengths."""
    found = []
    while data:
        length, kind, flags = struct.unpack_from("=IHH", data)
        found.append((kind, flags))
        data = data[(length + 3) & ~3 :]
    return found


@pytest.mark.parametrize("batch", [in_pod_capture(), sidecar_capture(UID), sidecar_capture(None)])
def test_a_batch_is_one_transaction_that_replaces_its_table(batch: Batch) -> None:
    """BEGIN and END frame it; the table is made, deleted and made again, so applying twice leaves one copy."""
    kinds = [kind for kind, _ in _messages(batch.datagrams[0])]

    assert (kinds[0], kinds[-1]) == (0x10, 0x11)
    assert kinds[1:4] == [0xA00, 0xA02, 0xA00]


def test_each_message_says_what_it_makes() -> None:
    """The kernel's refusal names a message, so every one has a name of its own in its chain."""
    names = [m.what for m in in_pod_capture().tables if m.what.startswith("rule")]

    assert len(names) == len(set(names)) == 6


def test_virtual_ports_of_a_topology_name_the_target_port() -> None:
    """A service's endpoints are its workloads' addresses at the target port."""
    topology = topofile.load("shop")
    frontend = next(v for v in nftables.virtual_ports(topology) if v.port == 80)

    addresses = tuple((topology.workload(f"frontend-{i}").address, 8080) for i in range(2))
    assert frontend == VirtualPort(address=topology.service("frontend").address, port=80, endpoints=addresses)


# -- in namespaces


@dataclasses.dataclass
class Namespace:
    descriptor: int

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.descriptor}"

    def run(self, act: Callable[[], T]) -> T:
        """`act` in a thread inside the namespace; its exception comes out here."""
        outcome: list[tuple[bool, object]] = []

        def work() -> None:
            try:
                nftcommit.setns(self.descriptor)
                outcome.append((True, act()))
            except BaseException as error:
                outcome.append((False, error))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join(20)
        assert outcome, "still busy after 20 s"
        good, value = outcome[0]
        if not good:
            raise value  # type: ignore[misc]
        return value  # type: ignore[return-value]

    def listen(self, address: str, port: int) -> socket.socket:
        def act() -> socket.socket:
            listener = socket.create_server((address, port), backlog=128)
            listener.settimeout(5)
            return listener

        return self.run(act)

    def connect(
        self, address: str, port: int, *, mark: int = 0, source: str | None = None, uid: int | None = None
    ) -> socket.socket:
        def act() -> socket.socket:
            if uid is not None:
                ctypes.CDLL(None).setfsuid(uid)  # of this thread only; a socket's owner is its file's fsuid
            opened = socket.socket()
            opened.settimeout(5)
            if mark:
                opened.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
            if source:
                opened.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
                opened.bind((source, 0))
            try:
                opened.connect((address, port))
            except OSError:
                opened.close()
                raise
            return opened

        return self.run(act)


def _route(kind: int, body: bytes, flags: int = 0x605) -> None:
    """One rtnetlink message in the namespace of this thread."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as connection:
        connection.send(struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body)
        code = struct.unpack_from("=i", connection.recv(65536), 16)[0]
        if code:
            raise OSError(-code, os.strerror(-code))


def _up(index: int) -> None:
    _route(16, struct.pack("=BxHiII", 0, 0, index, 1, 1), flags=5)


def _address(index: int, address: str, length: int) -> None:
    number = socket.inet_aton(address)
    _route(20, struct.pack("=BBBBI", 2, length, 0, 0, index) + attribute(2, number) + attribute(1, number))


def _veth(peer: Namespace) -> None:
    """`eth` here, `eth` there."""
    link = struct.pack("=BxHiII", 0, 0, 0, 0, 0)
    far = link + attribute(3, b"eth\0") + attribute(28, struct.pack("=i", peer.descriptor))
    data = attribute(1, b"veth\0") + attribute(2, attribute(1, far))
    _route(16, link + attribute(3, b"eth\0") + attribute(18, data))


def _default(gateway: str) -> None:
    header = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 3, 0, 1, 0)
    _route(24, header + attribute(5, socket.inet_aton(gateway)))


@pytest.fixture
def pair() -> Iterator[tuple[Namespace, Namespace]]:
    """Two namespaces joined by a wire, 10.0.1.2 and 10.0.2.2, each with a default route to the other."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes network namespaces")
    namespaces: list[Namespace] = []

    def make() -> None:
        if ctypes.CDLL(None, use_errno=True).unshare(0x40000000) == 0:
            namespaces.append(Namespace(os.open("/proc/thread-self/ns/net", os.O_RDONLY)))

    for _ in range(2):
        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
    if len(namespaces) != 2:
        pytest.skip("needs the right to make network namespaces")
    here, there = namespaces
    here.run(lambda: _veth(there))
    for namespace, own, other in ((here, HERE, THERE), (there, THERE, HERE)):

        def prepare(own: str = own, other: str = other) -> None:
            _up(1)
            index = socket.if_nametoindex("eth")
            _up(index)
            _address(index, own, 22)

        namespace.run(prepare)
    here.run(lambda: _default(THERE))
    there.run(lambda: _default(HERE))
    yield here, there
    for namespace in namespaces:
        os.close(namespace.descriptor)


def _original(accepted: socket.socket) -> tuple[str, int]:
    port, address = struct.unpack_from(">2xH4s", accepted.getsockopt(socket.SOL_IP, SO_ORIGINAL_DST, 16))
    return socket.inet_ntoa(address), port


def _reaches(opened: socket.socket, listener: socket.socket) -> socket.socket:
    """The accepted end, after a byte has gone each way."""
    accepted, _ = listener.accept()
    accepted.settimeout(5)
    opened.sendall(b"?")
    assert accepted.recv(1) == b"?"
    accepted.sendall(b"!")
    assert opened.recv(1) == b"!"
    return accepted


@pytest.mark.root
def test_outbound_connection_arrives_at_15001_with_its_destination(pair: tuple[Namespace, Namespace]) -> None:
    """An application that knows nothing lands at the proxy, which learns where it wanted to go."""
    here, _ = pair
    nftables.apply(here.path, in_pod_capture())

    with (
        here.listen("0.0.0.0", 15001) as proxy,
        here.connect("10.96.0.10", 80) as app,
        _reaches(app, proxy) as accepted,
    ):
        assert _original(accepted) == ("10.96.0.10", 80)


@pytest.mark.root
def test_marked_traffic_is_not_captured(pair: tuple[Namespace, Namespace]) -> None:
    """A socket with ztunnel's mark goes out as it is; one without is taken, which shows that the rules are there."""
    here, there = pair
    nftables.apply(here.path, in_pod_capture())

    with there.listen(THERE, 8080) as server, here.listen("0.0.0.0", 15001) as proxy:
        with here.connect(THERE, 8080, mark=nftables.MARK) as marked:
            _reaches(marked, server).close()
        with here.connect(THERE, 8080) as plain:
            _reaches(plain, proxy).close()


@pytest.mark.root
def test_inbound_goes_to_15006_and_hbone_does_not(pair: tuple[Namespace, Namespace]) -> None:
    """Plain connections from outside are redirected with their destination kept; 15008 is answered where it was
    dialled.
    """
    here, there = pair
    nftables.apply(here.path, in_pod_capture())

    with here.listen("0.0.0.0", 15006) as plain, here.listen("0.0.0.0", 15008) as hbone:
        with there.connect(HERE, 8080) as client, _reaches(client, plain) as accepted:
            assert _original(accepted) == (HERE, 8080)
        with there.connect(HERE, 15008) as client:
            _reaches(client, hbone).close()


@pytest.mark.root
def test_upstream_with_the_clients_source_address_gets_its_replies(pair: tuple[Namespace, Namespace]) -> None:
    """Ztunnel calls the application as the client; the answer, addressed to another host, comes back to ztunnel."""
    here, _ = pair
    nftables.apply(here.path, in_pod_capture())

    with (
        here.listen(HERE, 8080) as app,
        here.connect(HERE, 8080, mark=nftables.MARK, source=THERE) as upstream,
        _reaches(upstream, app) as accepted,
    ):
        assert accepted.getpeername()[0] == THERE


@pytest.mark.root
def test_without_the_rules_a_spoofed_upstream_hangs(pair: tuple[Namespace, Namespace]) -> None:
    """The control of the test above: the reply leaves for the real owner of the address."""
    here, _ = pair

    with here.listen(HERE, 8080), pytest.raises(OSError):
        here.connect(HERE, 8080, mark=nftables.MARK, source=THERE).close()


@pytest.mark.root
def test_a_call_to_its_own_address_is_not_captured(pair: tuple[Namespace, Namespace]) -> None:
    """A workload that dials itself reaches itself; conntrack decided, so PREROUTING leaves it too."""
    here, _ = pair
    nftables.apply(here.path, in_pod_capture())

    with here.listen("0.0.0.0", 15001), here.listen(HERE, 8080) as itself, here.connect(HERE, 8080) as app:
        _reaches(app, itself).close()


@pytest.mark.root
@pytest.mark.parametrize(
    ("known_by", "proxys"),
    [(UID, {"uid": UID}), (None, {"uid": 1000, "mark": nftables.MARK})],
    ids=["by its user id", "by its mark"],
)
def test_sidecar_rules_spare_the_proxy(
    pair: tuple[Namespace, Namespace], known_by: int | None, proxys: dict[str, int]
) -> None:
    """Everyone else's connection lands at 15001, the proxy's own goes out; inbound lands at 15006."""
    here, there = pair
    nftables.apply(here.path, sidecar_capture(known_by))

    with (
        there.listen(THERE, 8080) as server,
        here.listen("0.0.0.0", 15001) as outbound,
        here.listen("0.0.0.0", 15006) as inbound,
    ):
        with here.connect(THERE, 8080, uid=1000) as app, _reaches(app, outbound) as accepted:
            assert _original(accepted) == (THERE, 8080)
        with here.connect(THERE, 8080, **proxys) as proxy:
            _reaches(proxy, server).close()
        with there.connect(HERE, 8080) as client, _reaches(client, inbound) as accepted:
            assert _original(accepted) == (HERE, 8080)


@pytest.mark.root
@pytest.mark.parametrize("from_node", [False, True], ids=["forwarded", "local"])
def test_service_address_spreads_over_three_endpoints(pair: tuple[Namespace, Namespace], from_node: bool) -> None:
    """90 connections to one address reach all three endpoints at their own port; a third each, give or take chance."""
    node, client = pair
    endpoints = tuple((f"10.5.0.{i}", 9000 + i) for i in (1, 2, 3))
    for address, _ in endpoints:
        node.run(lambda address=address: _address(1, address, 32))
    nftables.apply(node.path, service_dnat([VirtualPort(address="10.96.0.10", port=80, endpoints=endpoints)]))

    listeners = [node.listen(*endpoint) for endpoint in endpoints]
    counts: collections.Counter[int] = collections.Counter()
    opened = [(node if from_node else client).connect("10.96.0.10", 80) for _ in range(90)]
    for index, listener in enumerate(listeners):
        listener.settimeout(0)
        while True:
            try:
                listener.accept()[0].close()
            except BlockingIOError:
                break
            counts[index] += 1
        listener.close()
    for connection in opened:
        connection.close()

    assert sum(counts.values()) == 90
    assert all(10 <= counts[i] <= 55 for i in range(3)), counts


@pytest.mark.root
def test_the_short_form_for_a_new_namespace_captures_too(pair: tuple[Namespace, Namespace]) -> None:
    """Without the deletions the same rules stand."""
    here, _ = pair
    batch = in_pod_capture()
    nftables.apply(here.path, batch.for_new_namespace())

    assert len(batch.for_new_namespace().tables) == len(batch.tables) - 1
    with here.listen("0.0.0.0", 15001) as proxy, here.connect("10.96.0.10", 80) as app:
        _reaches(app, proxy).close()


@pytest.mark.root
def test_applying_twice_and_removing_leaves_nothing(pair: tuple[Namespace, Namespace]) -> None:
    """Idempotent both ways: rules do not pile up, and a removed table captures no more."""
    here, there = pair
    for _ in range(2):
        nftables.apply(here.path, in_pod_capture())
    for _ in range(2):
        nftables.apply(here.path, nftables.removal(nftables.CAPTURE_TABLE))

    with there.listen(THERE, 8080) as server, here.connect(THERE, 8080) as app:
        _reaches(app, server).close()


@pytest.mark.root
def test_a_refused_rule_is_named_and_nothing_of_the_batch_stays(pair: tuple[Namespace, Namespace]) -> None:
    """The error says which rule the kernel did not take; the transaction is atomic, so capture is not half there."""
    here, there = pair
    table = nftmessages.Table("meshbed_capture")
    table.chain("output_nat", "nat", 3, -100)
    table.rule("good", nftmessages.tcp(), nftmessages.redirect(15001))
    table.rule("nonsense", nftmessages.expression("no-such-expression"))

    with pytest.raises(MachineError, match="rule 'nonsense' in output_nat of meshbed_capture"):
        nftables.apply(here.path, Batch(tables=table.messages))
    with there.listen(THERE, 8080) as server, here.connect(THERE, 8080) as app:
        _reaches(app, server).close()


def test_a_namespace_that_is_not_there_is_named() -> None:
    """The error carries the path."""
    with pytest.raises(MachineError, match="/no/such/netns"):
        nftables.apply("/no/such/netns", in_pod_capture())
