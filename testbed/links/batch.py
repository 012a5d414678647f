"""Reading the frames that wait in a packet socket: many by one `recvmmsg`, or one at a time.

`socket.recvmsg` takes 3.0 us for a small frame, of which the kernel needs one: it also asks for the device's name each
time and allocates room for the largest frame. Here that is 1.5 us. But the frame is copied once more, which for
super-frames of 64 KB costs more than the call: they are read one by one.
"""

from __future__ import annotations

import ctypes
import socket
import struct

from testbed.links.delayline import NS_PER_S

READ_BYTES = 65536 + 64
BATCH = 64
SUPER_FRAME_BYTES = 8192
"""Above this a frame is dearer to copy than to read by a call of its own."""
CONTROL_BYTES = 32
"""One control message with a timespec: header and stamp of 16 bytes each."""
STAMP = struct.Struct("qq")
_HEADER = struct.Struct("=QI4xQQQQi4xI4x")
"""struct mmsghdr: name, its length, vector, its count, control, its length, flags; what was received."""
_libc = ctypes.CDLL(None)

Frames = list[tuple[bytes, int]]
"""Each with the time of its arrival, realtime; 0 where the kernel gave none."""


class Batch:
    """Room for one batch, shared by all sockets of a process."""

    def __init__(self) -> None:
        self._bytes = bytearray(BATCH * READ_BYTES)
        self._view = memoryview(self._bytes)
        self._control = bytearray(BATCH * CONTROL_BYTES)
        room, control = (_address(buffer) for buffer in (self._bytes, self._control))
        vector = struct.Struct("=QQ")
        self._vectors = bytearray(b"".join(vector.pack(room + n * READ_BYTES, READ_BYTES) for n in range(BATCH)))
        vectors = _address(self._vectors)
        self._pristine = b"".join(
            _HEADER.pack(0, 0, vectors + n * vector.size, 1, control + n * CONTROL_BYTES, CONTROL_BYTES, 0, 0)
            for n in range(BATCH)
        )
        self._headers = bytearray(self._pristine)
        self._pointer = ctypes.c_void_p(_address(self._headers))
        self._received = [struct.Struct("=" + "40xQ8xI4x" * n) for n in range(BATCH + 1)]
        self._stamps = [struct.Struct("=" + "16xqq" * n) for n in range(BATCH + 1)]

    def read(self, fd: int) -> Frames:
        """Up to BATCH frames; none when there are none, or the device is down or gone (which clears the error)."""
        count = _libc.recvmmsg(fd, self._pointer, BATCH, socket.MSG_DONTWAIT, None)
        if count <= 0:
            return []
        received = self._received[count].unpack_from(self._headers)
        stamps = self._stamps[count].unpack_from(self._control)
        view, frames = self._view, []
        for n in range(count):
            start = n * READ_BYTES
            frame = bytes(view[start : start + received[2 * n + 1]])
            frames.append((frame, stamps[2 * n] * NS_PER_S + stamps[2 * n + 1]))
        if received[::2].count(CONTROL_BYTES) != count:  # the kernel writes how much it used, and takes it as the room
            frames = [
                (frame, stamp if used == CONTROL_BYTES else 0)
                for (frame, stamp), used in zip(frames, received[::2], strict=True)
            ]
            self._headers[:] = self._pristine
        return frames


def read_singly(sock: socket.socket, most: int) -> Frames:
    """As `Batch.read`, each by its own call."""
    frames: Frames = []
    read = sock.recvmsg
    while len(frames) < most:
        try:
            frame, ancillary, _, _ = read(READ_BYTES, CONTROL_BYTES)
        except OSError:
            break
        if ancillary:
            seconds, nanoseconds = STAMP.unpack(ancillary[0][2])
            frames.append((frame, seconds * NS_PER_S + nanoseconds))
        else:
            frames.append((frame, 0))
    return frames


def _address(buffer: bytearray) -> int:
    """Stays valid while the buffer lives, as it is never resized."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))
