"""A TPACKET_V3 receive ring on an AF_PACKET socket inside any network namespace: frames with nanosecond stamps, drops
counted.

Source: kernel Documentation/networking/packet_mmap.rst, include/uapi/linux/if_packet.h. Measured: no drop at
589,000 packets/s where a plain recv loop lost 6 % of 320,000. veth shows GSO super-frames up to 64 KiB; a block holds
many of them.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket
import struct
from collections.abc import Iterator

from testbed.errors import MachineError, UsageError
from testbed.runtime.enter import in_netns

SOL_PACKET = 263
PACKET_RX_RING, PACKET_STATISTICS, PACKET_VERSION = 5, 6, 10
TPACKET_V3 = 2
ETH_P_ALL = 3
SO_ATTACH_FILTER = 26
SIOCGIFNAME, SIOCGIFHWADDR = 0x8910, 0x8927
MAP_POPULATE = 0x8000
BLOCK_BYTES = 1 << 20
BLOCK_TIMEOUT_MS = 20
"""A block that is not full is handed over after this long."""
OUTGOING = 4
ARPHRD_LOOPBACK, ARPHRD_NONE = 772, 0xFFFE

_BLOCK = struct.Struct("=IIII")  # block_status, num_pkts, offset_to_first_pkt, blk_len; 8 bytes into the block
_FRAME = struct.Struct("=IIIIIIHH")  # next_offset, sec, nsec, snaplen, len, status, mac, net
_ADDRESS = struct.Struct("=HHiHBB")  # sockaddr_ll: family, protocol, ifindex, hatype, pkttype, halen
_ADDRESS_AT = 48  # TPACKET_ALIGN(sizeof(struct tpacket3_hdr))

Frame = tuple[int, int, int, int, memoryview, int]
"""(device index, its hardware type, packet type, time in ns, captured bytes, length on the wire)."""


def socket_in(netns: str | None, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket of another network namespace (a path, or None for our own); it stays there.

    Raises MachineError when the right is missing, UsageError when the path is no namespace.
    """
    if netns is None:
        return _checked(lambda: socket.socket(family, kind, protocol), "AF_PACKET socket")
    try:
        target = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"network namespace {netns}: {error.strerror}; is the lab still up?") from error
    try:
        # In a thread that ends there: root of a user namespace only could not move back into the machine's namespace.
        made = in_netns(target, lambda: _checked(lambda: socket.socket(family, kind, protocol), "AF_PACKET socket"))
    finally:
        os.close(target)
    return made


def _checked(make: object, what: str) -> socket.socket:
    try:
        return make()
    except PermissionError as error:
        raise MachineError(f"{what}: {error.strerror}; capturing needs root (CAP_NET_RAW)") from error


class Ring:
    """Frames of one device, or of all devices, of one namespace."""

    def __init__(self, netns: str | None, device: str | None, *, ring_bytes: int, snaplen: int = 0) -> None:
        self.device = device
        self._dropped = 0
        self._received = 0
        self._blocks = max(2, ring_bytes // BLOCK_BYTES)
        # Protocol 0 until all is set up: no frame comes in before the ring and the filter are there.
        self.socket = socket_in(netns, socket.AF_PACKET, socket.SOCK_RAW)
        try:
            self.socket.setsockopt(SOL_PACKET, PACKET_VERSION, struct.pack("i", TPACKET_V3))
            size = self._blocks * BLOCK_BYTES
            # tpacket_req3: block size, blocks, frame size, frames, timeout, private area, features
            request = struct.pack("IIIIIII", BLOCK_BYTES, self._blocks, 2048, size // 2048, BLOCK_TIMEOUT_MS, 0, 0)
            self.socket.setsockopt(SOL_PACKET, PACKET_RX_RING, request)
            self._map = mmap.mmap(
                self.socket.fileno(), size, mmap.MAP_SHARED | MAP_POPULATE, mmap.PROT_READ | mmap.PROT_WRITE
            )
            if snaplen:
                self._cut_in_kernel(snaplen)
            try:
                if device is None:
                    self._bind_everywhere()
                else:
                    self.socket.bind((device, ETH_P_ALL))
            except OSError as error:
                raise UsageError(f"device {device} in {netns}: {error.strerror}; is its name right?") from error
        except BaseException:
            self.socket.close()
            raise
        self._view = memoryview(self._map)
        self._next = 0

    def _cut_in_kernel(self, snaplen: int) -> None:
        """`ret #snaplen`: otherwise whole super-frames are copied into the ring and then thrown away, which lost 22 %
        of them at 11 to 16 Gbit/s."""
        instruction = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, snaplen))
        program = struct.pack("HxxxxxxQ", 1, ctypes.addressof(instruction))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)

    def _bind_everywhere(self) -> None:
        """Interface index 0, which socket.bind cannot say: it looks every name up, the empty one too."""
        address = struct.pack("=HHiHBB8x", socket.AF_PACKET, socket.htons(ETH_P_ALL), 0, 0, 0, 0)
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.bind(self.socket.fileno(), address, len(address)):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def fileno(self) -> int:
        return self.socket.fileno()

    def frames(self) -> Iterator[Frame]:
        """What is ready now. A frame's bytes are valid until the next one is asked for."""
        while True:
            base = self._next * BLOCK_BYTES
            status, count, first, _ = _BLOCK.unpack_from(self._map, base + 8)
            if not status & 1:
                return
            at = base + first
            for _ in range(count):
                following, sec, nsec, kept, wire, _, mac, _ = _FRAME.unpack_from(self._map, at)
                _, _, index, hardware, kind, _ = _ADDRESS.unpack_from(self._map, at + _ADDRESS_AT)
                # A loopback device shows every packet twice, out and in; libpcap drops the first as well.
                if not (kind == OUTGOING and hardware == ARPHRD_LOOPBACK):
                    start = at + mac
                    yield index, hardware, kind, sec * 1_000_000_000 + nsec, self._view[start : start + kept], wire
                at += following
            struct.pack_into("=I", self._map, base + 8, 0)
            self._next = (self._next + 1) % self._blocks

    def statistics(self) -> tuple[int, int]:
        """(received, dropped) since the start; the kernel's counters start anew at each reading, so they are added
        up."""
        received, dropped, _ = struct.unpack("III", self.socket.getsockopt(SOL_PACKET, PACKET_STATISTICS, 12))
        self._received += received
        self._dropped += dropped
        return self._received, self._dropped

    def device_name(self, index: int) -> str:
        """Name of a device of the ring's namespace, wherever we are."""
        try:
            answer = fcntl.ioctl(self.socket, SIOCGIFNAME, struct.pack("16si20x", b"", index))
        except OSError:
            return f"if{index}"  # it is gone already
        return answer[:16].split(b"\0", 1)[0].decode()

    def hardware(self) -> int:
        """ARPHRD_ type of the named device: a TUN device has no link layer."""
        answer = fcntl.ioctl(self.socket, SIOCGIFHWADDR, struct.pack("16s24x", (self.device or "").encode()))
        return struct.unpack_from("H", answer, 16)[0]

    def close(self) -> None:
        self._view.release()
        self._map.close()
        self.socket.close()
