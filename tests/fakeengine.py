"""Something that listens where a Docker engine would: a Unix socket that speaks HTTP, or what else it is told to."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

VERSION = {"Version": "20.10.24", "ApiVersion": "1.41", "MinAPIVersion": "1.12"}
INFO = {
    "ServerVersion": "20.10.24",
    "CgroupDriver": "cgroupfs",
    "Driver": "overlay2",
    "KernelVersion": os.uname().release,
    "SecurityOptions": ["name=seccomp,profile=default"],
}


def answer(status: int, value: object) -> bytes:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def pages(version: Mapping[str, object] = VERSION, info: Mapping[str, object] = INFO) -> dict[str, bytes]:
    """The last part of a path -> the answer to it."""
    return {"version": answer(200, version), "info": answer(200, info)}


@contextmanager
def listening(folder: Path, answers: Mapping[str, bytes] | bytes | None) -> Iterator[str]:
    """The DOCKER_HOST of a socket that gives these answers; the same bytes to all; or, for None, none ever."""
    path = folder / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(8)
        kept: list[socket.socket] = []
        server = threading.Thread(target=_serve, args=(listener, answers, kept), daemon=True)
        server.start()
        try:
            yield f"unix://{path}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            server.join(5.0)
            for one in kept:
                one.close()


def _serve(listener: socket.socket, answers: Mapping[str, bytes] | bytes | None, kept: list[socket.socket]) -> None:
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        kept.append(connection)
        connection.settimeout(5.0)
        if answers is not None:
            threading.Thread(target=_converse, args=(connection, answers), daemon=True).start()


def _converse(connection: socket.socket, answers: Mapping[str, bytes] | bytes) -> None:
    """One request after another, each answered by its path; plain bytes end the connection."""
    waiting = b""
    try:
        while True:
            while b"\r\n\r\n" not in waiting:
                more = connection.recv(4096)
                if not more:
                    return
                waiting += more
            head, _, waiting = waiting.partition(b"\r\n\r\n")
            if isinstance(answers, bytes):
                connection.sendall(answers)
                connection.shutdown(socket.SHUT_RDWR)
                return
            path = head.split(b" ")[1].decode().partition("?")[0].rpartition("/")[2]
            connection.sendall(answers.get(path, answer(404, {"message": f"page not found: {path}"})))
    except OSError:
        return
