"""Route messages as bytes, read back by the kernel's own rules and by property."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed import acks, netlink
from testbed.errors import MachineError
from testbed.netlink import End
from testbed.runtime import wiring
from testbed.runtime.routing import routes
from tests.labs import line


def attributes(data: bytes) -> dict[int, bytes]:
    """A second reading of attributes, after linux/netlink.h."""
    found = {}
    while data:
        length, kind = struct.unpack_from("=HH", data)
        found[kind] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def ack(sequence: int, errno: int) -> bytes:
    return struct.pack("=IHHIIiIHHII", 36, 2, 0, sequence, 0, -errno, 16, 16, 0, sequence, 0)


class Script:
    """A kernel that answers each send with the datagrams it was told."""

    def __init__(self, answers: list[list[bytes]]) -> None:
        self.answers = answers
        self.sent: list[bytes] = []
        self._ready: list[bytes] = []

    def send(self, data: bytes) -> int:
        self.sent.append(data)
        self._ready += self.answers[len(self.sent) - 1]
        return len(data)

    def recv(self, size: int) -> bytes:
        return self._ready.pop(0)


@given(st.integers(0, 0xFFFF), st.binary(max_size=300))
def test_attributes_are_padded_to_four_bytes_and_read_back(kind: int, data: bytes) -> None:
    """Length counts the header and not the padding (linux/netlink.h)."""
    encoded = netlink.attribute(kind, data)

    assert len(encoded) % 4 == 0
    assert attributes(encoded) == {kind: data}


def test_veth_names_both_namespaces_and_indexes() -> None:
    """The peer's header and attributes lie in VETH_INFO_PEER, so that both ends are born in place."""
    message = netlink.veth(
        End(name="eth0", index=2, mac="02:00:0a:00:01:02", namespace_fd=101), End(name="w-a", index=10, namespace_pid=7)
    )
    outer = attributes(message.body[16:])
    kind = attributes(outer[18])
    peer = attributes(kind[2])[1]

    assert struct.unpack_from("=BxHiII", message.body)[2:] == (2, 0, 0)
    assert (outer[3], outer[1], outer[28]) == (b"eth0\0", bytes.fromhex("02000a000102"), struct.pack("=I", 101))
    assert kind[1] == b"veth\0"
    assert struct.unpack_from("=BxHiII", peer)[2:] == (10, 0, 0)
    assert attributes(peer[16:]) == {3: b"w-a\0", 19: struct.pack("=I", 7)}


def test_onlink_default_route_has_no_destination() -> None:
    """0.0.0.0/0 carries no RTA_DST; the gateway is taken for reachable on the device."""
    message = netlink.route("0.0.0.0", 0, index=2, via="10.0.1.1", source="10.0.1.2", onlink=True)
    family, prefix, *_, scope, _, flags = struct.unpack_from("=BBBBBBBBI", message.body)

    assert (family, prefix, scope, flags) == (2, 0, 0, 4)
    assert attributes(message.body[12:]) == {4: b"\2\0\0\0", 5: bytes([10, 0, 1, 1]), 7: bytes([10, 0, 1, 2])}


def test_route_without_gateway_has_link_scope() -> None:
    """A destination on the device itself."""
    assert struct.unpack_from("=BBBBBBBBI", netlink.route("10.0.1.1", 32, index=2).body)[6] == 253


@pytest.mark.parametrize("name", ["", "w-sixteen-bytes!", "ü" * 8])
def test_device_name_must_fit_the_kernel(name: str) -> None:
    """IFNAMSIZ holds 15 bytes and a zero."""
    with pytest.raises(ValueError, match="1 to 15 bytes"):
        netlink.veth(End(name=name), End(name="b"))


@given(st.integers(0, 100))
def test_chunks_hold_every_message_once_in_order(count: int) -> None:
    """Sequence numbers are positions, whatever the chunking."""
    parts = netlink.chunks([netlink.link_up(i + 1) for i in range(count)])
    sequences = [
        struct.unpack_from("=I", data, o + 8)[0] for n, data in parts for o in range(0, len(data), len(data) // n)
    ]

    assert sequences == list(range(count))
    assert all(n <= netlink.CHUNK for n, _ in parts)


def test_refused_message_is_named_with_where_and_the_rest_counted() -> None:
    """Acknowledgements come several to a datagram, and a refusal does not stop the batch."""
    script = Script([[ack(0, 0) + ack(1, 17), ack(2, 17)]])

    with pytest.raises(MachineError, match=r"lab x: address 10.0.0.2/32 on device 2: File exists \(and 1 more\)"):
        netlink.transact(script, [netlink.address(2, f"10.0.0.{i}", 32) for i in (1, 2, 3)], where="lab x")  # type: ignore[arg-type]


def test_all_accepted_is_silent() -> None:
    """One send for a batch that fits."""
    script = Script([[ack(0, 0), ack(1, 0)]])

    netlink.transact(script, [netlink.link_up(1), netlink.link_up(2)], where="x")  # type: ignore[arg-type]

    assert len(script.sent) == 1


def test_truncated_answer_is_refused_not_looped_over() -> None:
    """A length below the header would never advance."""
    with pytest.raises(ValueError, match="length 4"):
        list(acks.acknowledgements(struct.pack("=IHHII", 4, 2, 0, 0, 0)))


def test_workload_ports_are_unique_and_fit() -> None:
    """Names that agree in their first 13 bytes still get ports of their own."""
    names = [f"a-rather-long-name-{i}" for i in range(50)]

    assert len({wiring.port_name(name) for name in names}) == 50
    assert all(len(wiring.port_name(name)) <= 15 for name in names)
    assert wiring.port_name("client") == "w-client"


def test_every_namespace_gets_its_batch_after_the_pairs() -> None:
    """Two nodes with two workloads and a waypoint of its own: five pairs, seven namespaces."""
    planned = wiring.plan(line(2, 2), [("wp", "n1", "10.0.1.9")])
    batches = wiring.batches(planned, base=100)

    assert [p.name for p in planned] == ["n1", "n2", "w1-0", "w1-1", "w2-0", "w2-1", "wp"]
    assert len(batches[0].messages) == 5
    assert sorted(b.namespace for b in batches[1:]) == list(range(7))


def test_a_name_used_twice_is_refused() -> None:
    """Sandboxes are found by name, so a waypoint cannot be called as a workload."""
    with pytest.raises(ValueError, match="two sandboxes are called 'w1-0'"):
        wiring.plan(line(1, 1), [("w1-0", "n1", "10.0.1.9")])


def test_an_extra_outside_its_nodes_network_gets_a_route_of_its_own() -> None:
    """Beside the node's /24 the other node learns a /32 over the same link; one inside needs none."""
    topology = line(2, 1)
    planned = wiring.plan(topology, [("far", "n1", "192.168.7.7"), ("near", "n1", "10.0.1.99")])
    batches = wiring.route_batches(routes(topology), planned, {"n1": {"to-n2": 5}, "n2": {"to-n1": 6}})
    said = {planned[batch.namespace].name: [message.what for message in batch.messages] for batch in batches}

    assert said["n2"] == [
        "route 10.0.1.0/24 via 172.16.0.0 on device 6",
        "route 192.168.7.7/32 via 172.16.0.0 on device 6",
    ]
    assert len(said["n1"]) == 1
