"""pcapng as values and bytes: interfaces, packets numbered as Wireshark numbers them, TLS secrets, drop counts.

Source: draft-ietf-opsawg-pcapng. scapy's reader is not used for whole files because it passes over Interface Statistics
Blocks, in which a capture says what it lost, and hands out no interface number; the tests read the same files with it
and compare every number and byte. A file cut off in the middle of a block is read up to there and marked `cut`.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from testbed.errors import UsageError

SECTION, INTERFACE, SIMPLE, STATISTICS, ENHANCED, SECRETS = 0x0A0D0D0A, 1, 3, 5, 6, 10
TLS_KEY_LOG = 0x544C534B
ETHERNET, RAW_IP = 1, 101
_ENHANCED_HEAD = struct.Struct("<IIIIIII")


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """One interface block. Our captures name it `<sandbox>:<device>`, so that Wireshark's column tells the two
    apart."""

    name: str
    link_type: int = ETHERNET
    snaplen: int = 0
    """0 means unlimited."""

    @property
    def sandbox(self) -> str:
        return self.name.rpartition(":")[0]

    @property
    def device(self) -> str:
        return self.name.rpartition(":")[2]


class Packet(NamedTuple):
    """A tuple and no dataclass: made a hundred thousand times a file, at a quarter of the cost."""

    number: int
    """From 1 over the whole file: Wireshark's frame.number."""
    interface: int
    time_ns: int
    data: bytes
    wire_length: int
    """May exceed len(data) where a snaplen cut it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A whole file."""

    interfaces: tuple[Interface, ...]
    packets: tuple[Packet, ...]
    key_log: str = ""
    """NSS key log text of every Decryption Secrets Block."""
    drops: Mapping[int, int]
    """Interface -> packets lost, only for interfaces whose capture said so in a statistics block."""
    cut: bool = False


def read(path: Path) -> Recording:
    """Raises UsageError for a file that is missing or not pcapng."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UsageError(f"capture {path}: {error.strerror}; give the path of a .pcapng file") from error
    try:
        return parse(data)
    except ValueError as error:
        raise UsageError(f"capture {path}: {error}; give a .pcapng file (editcap -F pcapng converts others)") from error


def parse(data: bytes) -> Recording:
    """Raises ValueError when `data` does not start as pcapng or a block contradicts itself."""
    try:
        return _parse(data)
    except (IndexError, struct.error) as error:
        text = f"a block is shorter than its content, or names an interface that is not there ({error})"
        raise ValueError(text) from error


def _parse(data: bytes) -> Recording:
    interfaces: list[Interface] = []
    ticks: list[tuple[int, int]] = []  # per interface: multiply by, divide by, to get nanoseconds
    packets: list[Packet] = []
    secrets: list[str] = []
    drops: dict[int, int] = {}
    first = 0  # interface numbers start anew in each section
    cut = False
    enhanced = {order: struct.Struct(order + "IIIII").unpack_from for order in "<>"}
    for kind, start, stop, order in _blocks(data):
        if kind == ENHANCED:  # nearly all
            interface, high, low, kept, wire = enhanced[order](data, start)
            interface += first
            multiply, divide = ticks[interface]
            time_ns = high << 32 | low
            if multiply != divide:
                time_ns = time_ns * multiply // divide
            end = start + 20 + kept
            content = data[start + 20 : end if end < stop else stop]
            packets.append(Packet(len(packets) + 1, interface, time_ns, content, wire))
            continue
        body = data[start:stop]
        if kind == SECTION:
            first = len(interfaces)
        elif kind == INTERFACE:
            link_type, _, snaplen = struct.unpack_from(order + "HHI", body)
            options = _options(body[8:], order)
            interfaces.append(
                Interface(name=options.get(2, b"").decode("utf-8", "replace"), link_type=link_type, snaplen=snaplen)
            )
            ticks.append(_tick(options.get(9, b"\x06")))
        elif kind == SIMPLE:
            (wire,) = struct.unpack_from(order + "I", body)
            kept = min(wire, interfaces[first].snaplen or wire)
            packets.append(
                Packet(
                    number=len(packets) + 1,
                    interface=first,
                    time_ns=0,
                    data=bytes(body[4 : 4 + kept]),
                    wire_length=wire,
                )
            )
        elif kind == SECRETS:
            secret_kind, length = struct.unpack_from(order + "II", body)
            if secret_kind == TLS_KEY_LOG:
                secrets.append(bytes(body[8 : 8 + length]).decode("ascii", "replace"))
        elif kind == STATISTICS:
            (interface,) = struct.unpack_from(order + "I", body)
            lost = _options(body[12:], order).get(5)
            if lost is not None:
                drops[first + interface] = struct.unpack(order + "Q", lost)[0]
        elif kind is None:
            cut = True
    return Recording(
        interfaces=tuple(interfaces), packets=tuple(packets), key_log="\n".join(secrets), drops=drops, cut=cut
    )


def _blocks(data: bytes) -> Iterator[tuple[int | None, int, int, str]]:
    """(type, where its body begins and ends, byte order) of each block; type None once at the end if the file stops
    inside a block."""
    at, order = 0, ""
    if data[:4] != b"\n\r\r\n" or len(data) < 12:
        raise ValueError("not a pcapng file (it does not begin with a section header)")
    size = len(data)
    heads = {order: struct.Struct(order + "II").unpack_from for order in "<>"}
    while at < size:
        if at + 12 > size:
            yield None, at, at, order
            return
        if data[at] == 10 and data[at : at + 4] == b"\n\r\r\n":
            order = "<" if data[at + 8 : at + 12] == b"\x4d\x3c\x2b\x1a" else ">"
            head = heads[order]
        kind, length = head(data, at)
        if length < 12 or length % 4:
            raise ValueError(f"block at byte {at} claims an impossible length {length}")
        if at + length > size:
            yield None, at, at, order
            return
        yield kind, at + 8, at + length - 4, order
        at += length


def _options(body: bytes, order: str) -> dict[int, bytes]:
    found, at = {}, 0
    while at + 4 <= len(body):
        code, length = struct.unpack_from(order + "HH", body, at)
        if code == 0:
            break
        found[code] = bytes(body[at + 4 : at + 4 + length])
        at += 4 + (length + 3 & ~3)
    return found


def _tick(resolution: bytes) -> tuple[int, int]:
    value = resolution[0]
    per_second = 2 ** (value & 127) if value & 128 else 10**value
    return (1_000_000_000, per_second)


def block(kind: int, body: bytes) -> bytes:
    body += bytes(-len(body) % 4)
    length = len(body) + 12
    return struct.pack("<II", kind, length) + body + struct.pack("<I", length)


def option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + bytes(-len(value) % 4)


def section_block() -> bytes:
    return block(SECTION, struct.pack("<IHHq", 0x1A2B3C4D, 1, 0, -1) + option(4, b"meshbed") + bytes(4))


def interface_block(interface: Interface) -> bytes:
    head = struct.pack("<HHI", interface.link_type, 0, interface.snaplen)
    return block(INTERFACE, head + option(2, interface.name.encode()) + option(9, b"\x09") + bytes(4))


def packet_block(interface: int, time_ns: int, data: bytes | memoryview, wire_length: int) -> bytes:
    kept = len(data)
    pad = -kept % 4
    length = 32 + kept + pad
    head = _ENHANCED_HEAD.pack(ENHANCED, length, interface, time_ns >> 32, time_ns & 0xFFFFFFFF, kept, wire_length)
    return b"".join((head, data, bytes(pad), length.to_bytes(4, "little")))


def secrets_block(key_log: bytes) -> bytes:
    return block(SECRETS, struct.pack("<II", TLS_KEY_LOG, len(key_log)) + key_log)


def statistics_block(interface: int, time_ns: int, *, received: int, dropped: int) -> bytes:
    head = struct.pack("<III", interface, time_ns >> 32, time_ns & 0xFFFFFFFF)
    counts = option(4, struct.pack("<Q", received)) + option(5, struct.pack("<Q", dropped))
    return block(STATISTICS, head + counts + bytes(4))


class Writer:
    """Appends blocks to an open binary file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._interfaces = 0
        file.write(section_block())

    def interface(self, interface: Interface) -> int:
        self._file.write(interface_block(interface))
        self._interfaces += 1
        return self._interfaces - 1

    def packet(self, interface: int, time_ns: int, data: bytes | memoryview, wire_length: int | None = None) -> None:
        self._file.write(packet_block(interface, time_ns, data, len(data) if wire_length is None else wire_length))

    def secrets(self, key_log: bytes) -> None:
        self._file.write(secrets_block(key_log))

    def statistics(self, interface: int, time_ns: int, *, received: int, dropped: int) -> None:
        self._file.write(statistics_block(interface, time_ns, received=received, dropped=dropped))


def write(path: Path, recording: Recording) -> None:
    """The whole file or none, readable by its owner only (it may hold secrets). Packets are renumbered by their order.

    Secrets go before the packets they open: Wireshark reads once, from the front.
    """
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            writer = Writer(file)
            if recording.key_log:
                writer.secrets(recording.key_log.encode())
            for interface in recording.interfaces:
                writer.interface(interface)
            for packet in recording.packets:
                writer.packet(packet.interface, packet.time_ns, packet.data, packet.wire_length)
            last_ns = recording.packets[-1].time_ns if recording.packets else 0
            received = _per_interface(recording)
            for interface_number, dropped in recording.drops.items():
                writer.statistics(interface_number, last_ns, received=received[interface_number], dropped=dropped)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk does not say whose it is
        raise


def _per_interface(recording: Recording) -> list[int]:
    counts = [0] * len(recording.interfaces)
    for packet in recording.packets:
        counts[packet.interface] += 1
    return counts


def embed_secrets(path: Path, key_log_files: Sequence[Path]) -> int:
    """Put the text of the key logs into the capture (a Decryption Secrets Block); returns how many secrets it now
    holds.

    A key log that does not exist is passed over: a plane without TLS writes none. Repeating it adds nothing twice.
    """
    recording = read(path)
    lines = dict.fromkeys(line for line in recording.key_log.splitlines() if line.strip())
    for file in key_log_files:
        if file.exists():
            text = file.read_text("ascii", "replace")
            lines.update(dict.fromkeys(line for line in text.splitlines() if line.strip() and not line.startswith("#")))
    if lines:
        write(
            path,
            Recording(
                interfaces=recording.interfaces,
                packets=recording.packets,
                key_log="\n".join(lines) + "\n",
                drops=recording.drops,
                cut=recording.cut,
            ),
        )
    return len(lines)
