"""Reading frames by the batch: what one call at a time gives, with the kernel's stamps."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from collections.abc import Iterator

import pytest

from testbed.links.batch import BATCH, Batch, read_singly
from testbed.links.delayline import Shape
from testbed.links.devices import End, in_netns, make_pairs, set_up, settle
from testbed.links.direction import Direction
from testbed.links.pacing import Pacer
from testbed.links.prompt import open_device
from testbed.links.scratch import ScratchLab
from testbed.links.wireproc import Wire

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="packet sockets need root (network namespaces, AF_PACKET)"),
]
SO_TIMESTAMPNS = 35
VNET_HEADER = bytes(10)
A, B = b"\x02\x6e\0\0\0\1", b"\x02\x6e\0\0\0\2"


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Packet sockets on the two ends of a veth pair."""
    with ScratchLab(["a", "b"]) as lab, contextlib.ExitStack() as stack:
        a, b = lab.open_netns("a"), lab.open_netns("b")
        stack.callback(os.close, a)
        stack.callback(os.close, b)
        make_pairs([(End(netns=a, name="x", mac=A), End(netns=b, name="y", mac=B))])
        set_up(a, ["x"])
        set_up(b, ["y"])
        settle(a, ["x"])
        settle(b, ["y"])
        ends = [stack.enter_context(in_netns(fd, lambda n=n: open_device(n))) for fd, n in ((a, "x"), (b, "y"))]
        while not stamps_on_arrival(*ends):  # the kernel begins with that a moment after it was asked
            time.sleep(0.01)
        yield ends[0], ends[1]


def stamps_on_arrival(sender: socket.socket, receiver: socket.socket) -> bool:
    sender.send(frame(0))
    sent_ns = time.time_ns()
    assert select.select([receiver], [], [], 10)[0], "the frame does not come"  # on a busy machine it takes a moment
    ((_, stamp_ns),) = read_singly(receiver, 1)
    return stamp_ns < sent_ns


def frame(number: int) -> bytes:
    """Of a size of its own, with an EtherType for experiments."""
    return VNET_HEADER + B + A + b"\x88\xb5" + number.to_bytes(2, "big") + bytes(46 + 7 * number)


@pytest.mark.parametrize("count", [1, 2, BATCH])
def test_a_batch_is_the_frames_in_order_with_the_time_each_came(pair: tuple[socket.socket, ...], count: int) -> None:
    """Whole, whatever their sizes; each stamp lies between the sends around it."""
    sender, receiver = pair
    batch, sent_ns = Batch(), [time.time_ns()]
    for number in range(count):
        sender.send(frame(number))
        sent_ns.append(time.time_ns())
    frames = batch.read(receiver.fileno())

    assert [one for one, _ in frames] == [frame(number) for number in range(count)]
    assert all(low <= stamp <= high for low, (_, stamp), high in zip(sent_ns, frames, sent_ns[1:], strict=False))


def test_a_batch_leaves_what_it_has_no_room_for_and_ends_with_nothing(pair: tuple[socket.socket, ...]) -> None:
    """One more than a batch is a batch and one; an empty socket is no frames, and does not wait."""
    sender, receiver = pair
    batch = Batch()
    for number in range(BATCH + 1):
        sender.send(frame(number))

    assert [len(batch.read(receiver.fileno())) for _ in range(3)] == [BATCH, 1, 0]


def test_frames_without_a_stamp_have_none_and_spoil_no_later_ones(pair: tuple[socket.socket, ...]) -> None:
    """The kernel writes into the header how much room it used, and would take that for the room there is."""
    sender, receiver = pair
    batch = Batch()
    sender.send(frame(0))
    batch.read(receiver.fileno())
    receiver.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 0)
    for number in range(3):
        sender.send(frame(number))
    without = batch.read(receiver.fileno())
    receiver.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    before_ns = time.time_ns()
    sender.send(frame(9))
    (again,) = batch.read(receiver.fileno())

    assert without == [(frame(number), 0) for number in range(3)]
    assert again[0] == frame(9) and again[1] >= before_ns


def test_one_by_one_is_the_same(pair: tuple[socket.socket, ...]) -> None:
    """Up to as many as asked; a frame of 60 KB as well."""
    sender, receiver = pair
    before_ns = time.time_ns()
    for number in range(3):
        sender.send(frame(number))
    first, second = read_singly(receiver, 2), read_singly(receiver, 2)
    after_ns = time.time_ns()

    assert [one for one, _ in first + second] == [frame(number) for number in range(3)]
    assert len(first) == 2
    assert all(before_ns <= stamp <= after_ns for _, stamp in first + second)


def test_a_direction_holds_only_so_much(pair: tuple[socket.socket, ...]) -> None:
    """What is over the limit is dropped and counted, so that no link can fill the memory."""
    sender, receiver = pair
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        wire = Wire(listener, None, Pacer(), "normal")
    direction = Direction(receiver, sender, "y")
    direction.line.shape = Shape(delay_ns=10**9)
    wire.held_limit = 2 * len(frame(0))
    for _ in range(5):
        sender.send(frame(0))
    wire._read(direction, time.time_ns() - time.monotonic_ns(), BATCH)

    assert (direction.received, len(direction.queue), direction.overflowed) == (5, 3, 2)
    assert direction.held_bytes == 3 * len(frame(0))
