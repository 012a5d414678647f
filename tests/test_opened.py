"""The log line of an opening connection: written on request only, before anything has ended."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.test_drain import Tunnel
from tests.ztunnels import pair, wait_for


def test_an_opening_connection_is_logged_at_debug(tmp_path: Path) -> None:
    """Both sides, with both ends named, while the connection is still open; bytes are not known yet."""
    log = tmp_path / "log"
    with (
        pair(tmp_path, access_log=str(log), access_log_debug=True) as proxies,
        socket.create_server((proxies.server, 8080)) as listener,
        proxies.connect(),
    ):
        upstream, _ = listener.accept()
        wait_for(lambda: log.exists() and log.read_text().count("connection opened") == 2)
        lines = log.read_text().splitlines()
        assert not any("connection complete" in line for line in lines)
        for line, direction in zip(sorted(lines, key=lambda x: "outbound" in x), ("inbound", "outbound"), strict=True):
            assert "\tdebug\taccess\tconnection opened\t" in line
            assert f'direction="{direction}"' in line and "sa/client" in line and "bytes_sent" not in line
        upstream.close()


def test_it_is_not_written_otherwise(tmp_path: Path) -> None:
    """As ztunnel at its default level."""
    log = tmp_path / "log"
    with pair(tmp_path, access_log=str(log)) as proxies, socket.create_server((proxies.server, 8080)) as listener:
        tunnel = Tunnel(proxies)
        upstream, _ = listener.accept()
        upstream.close()
        tunnel.close()
        wait_for(lambda: log.exists() and "connection complete" in log.read_text())
        assert "opened" not in log.read_text()
