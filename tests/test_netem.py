"""netem messages, byte by byte against linux/pkt_sched.h, and the choice between the makers."""

from __future__ import annotations

import os
import struct

import pytest

from testbed.errors import MachineError, UsageError
from testbed.links import probe
from testbed.links.delayline import Shape
from testbed.links.netem import NetemLinks, delete_qdisc, limit_packets, normal_table, options, replace_qdisc
from testbed.links.scratch import ScratchLab
from testbed.model.topology import Impairment, Link


def attributes(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        length, kind = struct.unpack_from("=HH", data)
        found[kind & 0x7FFF] = data[4:length]  # without NLA_F_NESTED
        data = data[(length + 3) & ~3 :]
    return found


def test_a_delay_is_this_message() -> None:
    """5 ms on device 7, each byte derived by hand from the headers (little endian)."""
    expected = bytes.fromhex(
        "78000000" "2400" "0505" "00000000" "00000000"  # length 120, NEWQDISC, REQUEST|ACK|REPLACE|CREATE
        "00" "00" "0000" "07000000" "00000100" "ffffffff" "00000000"  # tcmsg: device 7, handle 1:, root
        "0a00" "0100" "6e6574656d00" "0000"  # TCA_KIND netem
        "4800" "0200"  # TCA_OPTIONS
        "2d310100" "a0860100" "00000000" "00000000" "00000000" "00000000"  # 78125 ticks of 64 ns, limit 100000
        "0c00" "0a00" "404b4c0000000000"  # LATENCY64 5,000,000 ns
        "0c00" "0b00" "0000000000000000"  # JITTER64
        "1400" "0600" "00000000" "00000000" "00000000" "00000000"  # RATE 0: none, and none left over
    )
    assert replace_qdisc(7, Shape(delay_ns=5_000_000)).hex() == expected.hex()


def test_deleting_names_the_root() -> None:
    """The plain device has its default back."""
    expected = bytes.fromhex(
        "24000000" "2500" "0500" "00000000" "00000000" "00000000" "07000000" "00000100" "ffffffff" "00000000"
    )
    assert delete_qdisc(7) == expected


def test_loss_is_a_share_of_32_bits() -> None:
    """10 % is 0x1999999a at the third word of tc_netem_qopt."""
    assert options(Shape(loss=0.1))[8:12] == bytes.fromhex("9a999919")
    assert options(Shape(loss=1.0))[8:12] == b"\xff" * 4


def test_bursty_loss_is_the_kernels_gemodel() -> None:
    """p, r, the chance to pass in bad, the chance to be lost in good; no independent loss beside it."""
    body = options(Shape(loss=0.5, gilbert_elliott=(0.25, 0.5, 1.0, 0.0)))
    model = attributes(attributes(body[24:])[5])[2]

    assert body[8:12] == bytes(4)
    assert model == struct.pack("<IIII", 0x40000000, 0x80000000, 0, 0)


OF_TC = {
    "delay 20ms 2ms": ("b4c40400e8030000000000000000000000000000127a0000", ""),
    "loss 2%": ("00000000e803000052b81e05000000000000000000000000", ""),
    "loss gemodel 1% 20% 90% 0.5%": (
        "00000000e80300000000000000000000" "0000000000000000",
        "18000580" "14000200" "295c8f02" "33333333" "99999919" "14ae4701",
    ),
    "delay 5ms rate 10mbit limit 100000": (
        "2d310100a086010000000000000000000000000000000000",
        "14000600" "d0121300" "00000000" "00000000" "00000000",
    ),
}  # fmt: skip
"""What `tc qdisc replace … netem <words>` of iproute2 6.1 sends (strace): tc_netem_qopt, then attributes."""


@pytest.mark.parametrize(
    ("words", "shape"),
    [
        ("delay 20ms 2ms", Shape(delay_ns=20_000_000, jitter_ns=2_000_000)),
        ("loss 2%", Shape(loss=0.02)),
        ("loss gemodel 1% 20% 90% 0.5%", Shape(gilbert_elliott=(0.01, 0.2, 0.9, 0.005))),
        ("delay 5ms rate 10mbit limit 100000", Shape(delay_ns=5_000_000, rate_bps=10_000_000)),
    ],
)
def test_we_say_what_tc_says(words: str, shape: Shape) -> None:
    """Delay, jitter, loss, rate and the chain (tc-netem(8): p, r, 1-h, 1-k) in tc's own bytes; the limit is ours."""
    its_qopt, its_attributes = (bytes.fromhex(part) for part in OF_TC[words])
    ours = options(shape)

    assert ours[:4] + ours[8:24] == its_qopt[:4] + its_qopt[8:24]
    assert its_attributes in ours[24:]


@pytest.mark.parametrize(
    ("rate_bps", "narrow", "wide"), [(8_000_000, 1_000_000, None), (80_000_000_000, 0xFFFFFFFF, 10**10)]
)
def test_rates_above_32_bits_have_their_attribute(rate_bps: int, narrow: int, wide: int | None) -> None:
    """Bytes per second in TCA_NETEM_RATE, and in RATE64 where that overflows."""
    found = attributes(options(Shape(rate_bps=rate_bps))[24:])

    assert struct.unpack("<IiIi", found[6]) == (narrow, 0, 0, 0)
    assert found.get(8) == (struct.pack("<Q", wide) if wide else None)


def test_jitter_keeps_the_order() -> None:
    """An unlimited link with jitter has a rate, as only then netem keeps order; and a table, else it is uniform."""
    found = attributes(options(Shape(delay_ns=10**7, jitter_ns=10**6))[24:])

    assert struct.unpack("<q", found[11]) == (10**6,)
    assert struct.unpack_from("<I", found[6])[0] > 10**9
    assert found[2] == normal_table()


def test_the_normal_table_is_normal() -> None:
    """Symmetric, one sigma at its 84th percentile, clamped at three."""
    table = struct.unpack("<4096h", normal_table())

    assert table[0] == -table[-1] == -3 * 8192
    assert abs(table[round(0.8413 * 4096)] / 8192 - 1) < 0.01
    assert list(table) == sorted(table)


def test_the_limit_follows_the_rate_and_the_time() -> None:
    """10 Mbit/s held for 60 ms is 50 full frames; without a rate the limit is out of the way."""
    assert limit_packets(Shape(rate_bps=10_000_000, delay_ns=10_000_000, queue_ns=50_000_000)) == 50
    assert limit_packets(Shape(delay_ns=10**9)) == 100_000


def test_an_unknown_maker_is_refused_with_the_known_ones() -> None:
    """The wrong word is answered by the right ones."""
    with pytest.raises(UsageError, match="known: netem, wire"):
        probe.choose("tc")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="links need root (network namespaces)")
def test_auto_takes_netem_exactly_where_the_kernel_has_it() -> None:
    """The probe's word and the choice agree, and netem by name fails aloud where it cannot be."""
    refusal = NetemLinks().check()

    assert probe.choose("auto").name == ("wire" if refusal else "netem")
    if refusal:
        with pytest.raises(MachineError, match="use link='wire' or load sch_netem"):
            probe.choose("netem")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="links need root (network namespaces)")
def test_a_kernel_without_netem_names_the_link() -> None:
    """Joining an impaired link there says which link, why, and what to do; plain links need no netem."""
    link = Link(a="a", b="b", a_address="172.16.0.0", b_address="172.16.0.1", a_to_b=Impairment(delay_ms=1))
    if not NetemLinks().check():
        pytest.skip("this kernel has netem; tests/test_netem_qemu.py and the wire's tests cover links here")
    with ScratchLab(["a", "b"]) as lab, pytest.raises(MachineError, match=r"link a--b: netem is not in this kernel"):
        NetemLinks().join(lab, [link])
