"""An old and a new ztunnel side by side on the same ports, as at an upgrade (facts/hbone 1.9)."""

from __future__ import annotations

import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

from planes.mesh import net
from tests.loopback import ENV, ROOT
from tests.test_drain import Tunnel
from tests.ztunnels import pair, wait_for


def listeners(address: str, port: int) -> int:
    """Sockets that listen there, by the kernel's table."""
    wanted = f"{int.from_bytes(socket.inet_aton(address), 'little'):08X}:{port:04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1] == wanted and row[3] == "0A" for row in rows)


def test_a_new_process_takes_over_the_ports_of_the_old(tmp_path: Path) -> None:
    """Both listen; the old one ends with its open tunnel, which works all the while; new ones reach the new process."""
    with (
        pair(tmp_path, drain_deadline_s=20.0) as proxies,
        socket.create_server((proxies.server, 8080)) as listener,
    ):
        listener.settimeout(10)
        old_tunnel = Tunnel(proxies)
        first, _ = listener.accept()
        argv = [sys.executable, "-m", "planes.ztunnel", "--config", str(tmp_path / "server" / "config.json")]
        successor = subprocess.Popen(argv, cwd=ROOT, env=ENV)
        try:
            wait_for(lambda: listeners(proxies.server, 15008) == 2)
            proxies.inbound.send_signal(signal.SIGTERM)
            wait_for(lambda: listeners(proxies.server, 15008) == 1)
            for _ in range(8):
                tunnel = Tunnel(proxies)
                upstream, _ = listener.accept()
                tunnel.send(b"new")
                assert upstream.recv(10) == b"new"
                upstream.close()
                tunnel.close()
            assert proxies.inbound.poll() is None
            old_tunnel.sock.sendall(b"\0\0\3\0\0\0\0\0\1old")  # by hand: after a GOAWAY h2 sends no more
            assert first.recv(10) == b"old"
            first.close()
            old_tunnel.close()
            assert proxies.inbound.wait(10) == 0
        finally:
            successor.kill()
            successor.wait()


def test_the_backlog_is_ztunnels() -> None:
    """128 connections may wait to be accepted; of a listener TCP_INFO tells its limit where others tell SACKs."""
    with net.listen("127.0.0.1", 0) as listening:
        info = listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        _waiting, limit = struct.unpack_from("<II", info, 24)
        assert limit == 128


def test_a_second_listener_needs_the_same_user_and_option() -> None:
    """Two of ours share a port; what does not ask for it is refused."""
    with net.listen("127.0.0.1", 0) as first, net.listen("127.0.0.1", first.getsockname()[1]) as second:
        assert first.getsockname() == second.getsockname()
        with socket.socket() as other:
            try:
                other.bind(first.getsockname())
            except OSError:
                return
            raise AssertionError("a stranger took the port")
