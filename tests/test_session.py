"""Sessions under stress of the kinds that loops and peers bring: no fast loop, a reader that stalls, a stream reset."""

from __future__ import annotations

import hashlib
import itertools
import random
import socket
import threading
import time
from pathlib import Path

import pytest

from tests.test_ztunnel_direct import echo_until_eof
from tests.ztunnels import pair, rss_kib, wait_for

BOUND_KIB = 24 << 10
"""Windows of 4 MiB a stream and 1 MiB of write buffer, and what the allocator keeps of them."""


@pytest.fixture
def without_fast_loops(tmp_path: Path) -> dict[str, str]:
    """An environment in which neither uvloop nor aiofastnet can be imported."""
    folder = tmp_path / "absent"
    folder.mkdir()
    for name in ("uvloop", "aiofastnet"):
        folder.joinpath(f"{name}.py").write_text("raise ImportError('not here')")
    root = Path(__file__).resolve().parent.parent
    return {"PYTHONPATH": f"{folder}:{root}"}


def exchange(client: socket.socket, message: bytes) -> bytes:
    with client:
        client.sendall(message)
        client.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_the_proxy_runs_on_the_standard_library_alone(tmp_path: Path, without_fast_loops: dict[str, str]) -> None:
    """Handshake, half-close and 5 MB each way without uvloop and aiofastnet."""
    with pair(tmp_path, env=without_fast_loops) as proxies, socket.create_server((proxies.server, 8080)) as listener:
        threading.Thread(target=echo_until_eof, args=(listener,), daemon=True).start()
        for message in (b"ping", bytes(range(256)) * 20_000):
            assert exchange(proxies.connect(), message) == message[::-1]


def test_a_reader_that_stalls_does_not_fill_the_proxies(tmp_path: Path) -> None:
    """A client that sends until nothing goes any more finds an end, and neither proxy has grown beyond its windows."""
    with pair(tmp_path) as proxies, socket.create_server((proxies.server, 8080)) as listener:
        client = proxies.connect()
        with client:
            listener.settimeout(10)
            upstream, _ = listener.accept()
            before = [rss_kib(p.pid) for p in (proxies.outbound, proxies.inbound)]
            client.settimeout(1.5)
            sent, chunk = 0, b"z" * 65536
            try:
                while sent < 256 << 20:
                    sent += client.send(chunk)
            except TimeoutError:
                pass
            grown = [rss_kib(p.pid) - was for p, was in zip((proxies.outbound, proxies.inbound), before, strict=True)]
            assert sent < 64 << 20
            assert max(grown) < BOUND_KIB
            upstream.settimeout(10)
            got = 0
            while got < sent:
                data = upstream.recv(1 << 20)
                assert data, f"ended after {got} of {sent} bytes"
                got += len(data)
            assert got == sent
            upstream.close()


@pytest.mark.parametrize("direction", ["request", "answer"])
def test_bulk_arrives_unchanged_also_where_the_readers_stall(tmp_path: Path, direction: str) -> None:
    """Two tunnels at once, 32 MB each, readers that pause: what waits is a copy, not the buffer all reads share."""
    blocks = [random.Random(seed).randbytes(1_000_003) for seed in (7, 8)]
    arrived: dict[int, bytes] = {}
    with pair(tmp_path) as proxies, socket.create_server((proxies.server, 8080)) as listener:
        listener.settimeout(10)

        def write(sock: socket.socket, block: bytes) -> None:
            for _ in range(32):
                sock.sendall(block)
            sock.shutdown(socket.SHUT_WR)

        def read(sock: socket.socket, number: int) -> None:
            sock.settimeout(10)
            got = hashlib.sha256()
            for turn in itertools.count():
                data = sock.recv(1 << 18)
                if not data:
                    break
                got.update(data)
                if turn % 64 == 0:
                    time.sleep(0.05)
            arrived[number] = got.digest()

        threads, ends = [], []
        for number, block in enumerate(blocks):
            client = proxies.connect()
            upstream, _ = listener.accept()
            ends += [client, upstream]
            writer, reader = (client, upstream) if direction == "request" else (upstream, client)
            threads.append(threading.Thread(target=write, args=(writer, block)))
            threads.append(threading.Thread(target=read, args=(reader, number)))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        for end in ends:
            end.close()
    assert arrived == {n: hashlib.sha256(block * 32).digest() for n, block in enumerate(blocks)}


def test_a_clean_reset_ends_one_direction_only(tmp_path: Path) -> None:
    """RST_STREAM(CANCEL): the application reads an end, and its connection lives until it ends its side itself."""
    from tests.test_drain import Tunnel, closed_connections

    with pair(tmp_path) as proxies, socket.create_server((proxies.server, 8080)) as listener:
        tunnel = Tunnel(proxies)
        upstream, _ = listener.accept()
        tunnel.send(b"before")
        tunnel.reset()
        upstream.settimeout(10)
        assert b"".join(iter(lambda: upstream.recv(100), b"")) == b"before"
        assert closed_connections(proxies) == 0
        upstream.close()
        wait_for(lambda: closed_connections(proxies) == 1)
        tunnel.close()


def test_a_peer_that_reads_nothing_is_cut(tmp_path: Path) -> None:
    """It asks for answers without end, with requests in between so that it looks busy; others are served, and the
    proxy has not grown by what it asked for."""
    from tests.test_eager import Eager

    ping = b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)
    with pair(tmp_path) as proxies, socket.create_server((proxies.server, 8080)) as listener:
        threading.Thread(target=echo_until_eof, args=(listener,), daemon=True).start()
        deaf = Eager(proxies)
        deaf.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        deaf.sock.settimeout(30)
        before, sent, number = rss_kib(proxies.inbound.pid), 0, 1
        with pytest.raises(OSError, match=r"reset|pipe|EOF|closed"):
            while sent < 256 << 20:
                request = b"\0\0\x01\x01\x04" + number.to_bytes(4) + b"\x82"  # a GET without anything else
                deaf.sock.sendall(request + ping * 5_000)
                sent, number = sent + 17 * 5_000, number + 2
        assert rss_kib(proxies.inbound.pid) - before < BOUND_KIB
        assert exchange(proxies.connect(), b"ping") == b"gnip"
