"""What `insider` listens with: packet sockets, here and where a node agent lets it in, and a component's memory."""

from __future__ import annotations

import array
import contextlib
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from testbed.runtime import kernel

ETH_P_ALL = 3
LIMIT_S = 1.5
CHUNK_BYTES, PAGE_BYTES = 1 << 20, 1 << 12
LONGEST_TOKEN_BYTES = 64
STAGE = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) r(.)")


def connected(name: str, kind: int) -> socket.socket:
    """To a Unix socket by its path, however long, or by its abstract name. Raises OSError."""
    sock = socket.socket(socket.AF_UNIX, kind)
    folder = -1
    try:
        sock.settimeout(LIMIT_S)
        if not name.startswith("\0"):
            folder = os.open(Path(name).parent, os.O_PATH | os.O_CLOEXEC)
            name = f"/proc/self/fd/{folder}/{Path(name).name}"
        sock.connect(name)
    except OSError:
        sock.close()
        raise
    finally:
        if folder >= 0:
            os.close(folder)
    return sock


def given(path: str) -> Iterator[tuple[str, int]]:
    """Names of workloads with descriptors of their network namespaces, as the node agent hands them out."""
    with connected(path, socket.SOCK_SEQPACKET) as sock:
        sock.send(b'{"version": "V1"}')
        while True:
            data, rights, _, _ = sock.recvmsg(65536, socket.CMSG_SPACE(4))
            message = json.loads(data or b"{}")
            sock.send(b'{"ack": {"error": ""}}')
            if "add" not in message:
                return
            for level, kind, payload in rights:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    yield message["add"]["workload_info"]["name"], array.array("i", payload[:4])[0]


def inside(data: bytes, wanted: Mapping[bytes, str]) -> set[str]:
    return {name for token, name in wanted.items() if token in data}


def in_memory(memory: int, maps: int, wanted: Mapping[bytes, str]) -> set[str]:
    """In what the component has written to: its heap and stacks, not its code."""
    if memory < 0:
        return set()
    found: set[str] = set()
    os.lseek(maps, 0, os.SEEK_SET)
    text = b""
    while part := os.read(maps, CHUNK_BYTES):
        text += part
    for line in text.decode().splitlines():
        match = STAGE.match(line)
        if match is None or match[3] != "w":
            continue
        last = b""
        for piece in pieces(memory, int(match[1], 16), int(match[2], 16)):
            found |= inside(last + piece, wanted)
            last = piece[-LONGEST_TOKEN_BYTES:]
    return found


def pieces(memory: int, at: int, end: int) -> Iterator[bytes]:
    """What can be read between two addresses; a page that cannot, as one that was never touched may, is passed over."""
    size = CHUNK_BYTES
    while at < end:
        try:
            data = os.pread(memory, min(size, end - at), at)
        except OSError:
            data = b""
        if data:
            yield data
            at += len(data)
            size = min(CHUNK_BYTES, size * 16)
        elif size > PAGE_BYTES:
            size //= 16
        else:
            at += PAGE_BYTES


def listeners(agent: str) -> list[socket.socket]:
    """A packet socket here, and in each network namespace that the node agent hands out."""
    wires = []
    with contextlib.suppress(OSError):
        wires.append(packet_socket())
    if agent and wires:
        back = os.open("/proc/self/ns/net", os.O_RDONLY)
        with contextlib.suppress(OSError):
            for _, fd in given(agent):
                kernel.setns(fd, kernel.NEWNET)
                os.close(fd)
                wires.append(packet_socket())
        kernel.setns(back, kernel.NEWNET)
        os.close(back)
    return wires


def packet_socket() -> socket.socket:
    return socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
