"""What a library left of a private key in memory that it has freed: found and overwritten.

OpenSSL clears the numbers that it works with when it frees them, but not the buffers in which it decoded the key's
file: measured, three copies of a P-256 key stayed in the heap for as long as nothing else was written there.

Nothing here makes a copy that it does not overwrite itself: secrets are bytearrays, and `erase` ends with theirs.
"""

from __future__ import annotations

import binascii
import ctypes
import mmap
import os
from collections.abc import Collection, Iterator

_CHUNK = 1 << 20
_SCALAR = b"\x02\x01\x01\x04\x20"
"""RFC 5915: version 1, then an octet string of 32, which of P-256 is the key."""
_LEAST = 32
"""Shorter lines of a file are no secret that could be told from something else."""
_memcmp, _memmem = ctypes.CDLL(None).memcmp, ctypes.CDLL(None).memmem
_memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_memmem.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t)
_memmem.restype = ctypes.c_void_p


def secrets(text: bytearray) -> list[bytearray]:
    """What must not be left of a key's PEM text: the key as its decoder has it, and the lines; `text` is overwritten.

    None for another kind of key.
    """
    lines = [line for line in text.splitlines() if line and not line.startswith(b"-----")]
    joined = bytearray().join(lines)
    try:
        decoded = binascii.a2b_base64(joined)
    except binascii.Error:
        decoded = b""
    at = decoded.find(_SCALAR) + len(_SCALAR)
    key = bytearray(memoryview(decoded)[at : at + 32]) if at >= len(_SCALAR) else bytearray()
    if len(decoded) > 1:  # shorter ones are the interpreter's own
        # It is ours alone and nobody has hashed it: the one place where bytes are written to.
        ctypes.memset(id(decoded) + bytes.__basicsize__ - 1, 0, len(decoded))
    clear(text, joined)
    if len(key) < 32:
        clear(*lines)
        return []
    return [key, *(line for line in lines if len(line) >= _LEAST)]


def erase(wanted: Collection[bytearray]) -> int:
    """All of `sweep` at once; in how many other places they stood."""
    return sum(sweep(wanted))


def sweep(wanted: Collection[bytearray]) -> Iterator[int]:
    """Overwrites each of `wanted` wherever it stands in this process's writable memory, and `wanted` itself at the end.

    A step is a megabyte, half a millisecond, between which other things may be done: tells in how many places
    they stood there. What is found is compared again right before it is overwritten, and between the two nothing is
    allocated from the heap that was searched: no living value can have taken its place.
    """
    if not wanted:
        return
    buffer = mmap.mmap(-1, _CHUNK)  # given back whole: of a freed bytearray the process would keep the pages
    held = [(ctypes.addressof((ctypes.c_char * len(one)).from_buffer(one)), len(one)) for one in wanted]
    begin = ctypes.addressof((ctypes.c_char * _CHUNK).from_buffer(buffer))
    own = [*held, (begin, _CHUNK)]
    longest = max(map(len, wanted))
    memory = os.open("/proc/self/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        for start, end in list(_writable()):
            at = start
            while at < end:
                try:
                    with memoryview(buffer) as whole, whole[: min(_CHUNK, end - at)] as piece:
                        size = os.preadv(memory, [piece], at)
                except OSError:
                    break  # gone meanwhile, or of a device
                count = 0
                for secret, length in held:
                    place = _memmem(begin, size, secret, length)
                    while place:
                        address = at + place - begin
                        ours = any(first <= address < first + room for first, room in own)
                        if not ours and not _memcmp(address, secret, length):
                            ctypes.memset(address, 0, length)
                            count += 1
                        place = _memmem(place + 1, begin + size - place - 1, secret, length)
                yield count
                if size < longest:
                    break
                at += size if at + size >= end else size - longest + 1
    finally:
        os.close(memory)
        buffer.close()
        clear(*wanted)


def clear(*held: bytearray) -> None:
    for one in held:
        one[:] = bytes(len(one))


def _writable() -> Iterator[tuple[int, int]]:
    """Where something is allocated. Libraries' own variables are of files, and reading would bring them in."""
    with open("/proc/self/maps", "rb") as maps:
        for line in maps:
            span, rights, *_, inode, place = [*line.split(maxsplit=5), b""][:6]
            if rights.startswith(b"rw") and inode == b"0" and place.strip() in (b"", b"[heap]"):
                start, _, end = span.partition(b"-")
                yield int(start, 16), int(end, 16)
