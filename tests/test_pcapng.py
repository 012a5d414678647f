"""Files as others read them: Wireshark's numbering by way of scapy, secrets, losses, cut ends."""

from __future__ import annotations

from pathlib import Path

import pytest
from scapy.utils import RawPcapNgReader

from testbed.errors import UsageError
from testbed.observe import pcapng
from testbed.observe.pcapng import Interface, Packet, Recording

KEYS = "CLIENT_HANDSHAKE_TRAFFIC_SECRET " + "ab" * 32 + " " + "cd" * 32


def recording(**changes: object) -> Recording:
    packets = tuple(
        Packet(
            number=n + 1, interface=n % 2, time_ns=1_700_000_000_123_456_789 + n, data=bytes([n]) * n, wire_length=n + 5
        )
        for n in range(20)
    )
    interfaces = (Interface(name="node-a:to-b"), Interface(name="node-b:to-a", link_type=pcapng.RAW_IP, snaplen=96))
    return Recording(**{"interfaces": interfaces, "packets": packets, "drops": {0: 0, 1: 7}, **changes})


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """Everything comes back, stamps to the nanosecond."""
    pcapng.write(tmp_path / "a.pcapng", recording(key_log=KEYS + "\n"))

    assert pcapng.read(tmp_path / "a.pcapng") == recording(key_log=KEYS + "\n")


def test_scapy_reads_the_same_packets_in_the_same_order(tmp_path: Path) -> None:
    """Numbers are those of any other reader of the file."""
    pcapng.write(tmp_path / "a.pcapng", recording(key_log=KEYS + "\n"))

    with RawPcapNgReader(str(tmp_path / "a.pcapng")) as reader:
        theirs = [(data, m.ifname, (m.tshigh << 32 | m.tslow), m.wirelen) for data, m in reader]

    ours = recording()
    assert theirs == [
        (p.data, ours.interfaces[p.interface].name.encode(), p.time_ns, p.wire_length) for p in ours.packets
    ]


def test_secrets_are_embedded_once_and_before_the_packets(tmp_path: Path) -> None:
    """Wireshark reads from the front; embedding twice does not double them."""
    out, keys = tmp_path / "a.pcapng", tmp_path / "keys.txt"
    pcapng.write(out, recording())
    keys.write_text(f"# comment\n{KEYS}\n")

    assert [pcapng.embed_secrets(out, [keys, tmp_path / "none"]) for _ in range(2)] == [1, 1]

    assert pcapng.read(out) == recording(key_log=KEYS + "\n")
    assert out.read_bytes().index(KEYS.encode()) < out.read_bytes().index(bytes([9]) * 9)
    assert out.stat().st_mode & 0o777 == 0o600


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """Whole or not at all."""
    out = tmp_path / "a.pcapng"
    pcapng.write(out, recording())
    bad = Packet(number=1, interface=0, time_ns=0, data="no bytes", wire_length=0)

    with pytest.raises(TypeError):
        pcapng.write(out, recording(packets=(bad,)))

    assert pcapng.read(out) == recording() and list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize("missing", [1, 4, 40, 200])
def test_a_cut_file_is_read_to_the_cut_and_says_so(tmp_path: Path, missing: int) -> None:
    """A half-written file is never mistaken for a whole one."""
    pcapng.write(tmp_path / "a.pcapng", recording())

    read = pcapng.parse((tmp_path / "a.pcapng").read_bytes()[:-missing])

    assert read.cut and read.packets == recording().packets[: len(read.packets)]


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    """With the mend."""
    (tmp_path / "x").write_bytes(b"\xd4\xc3\xb2\xa1" + bytes(40))

    with pytest.raises(UsageError, match="editcap"):
        pcapng.read(tmp_path / "x")
