"""The TCP echo over loopback."""

from __future__ import annotations

import json
import threading
from pathlib import Path

from tests.loopback import app, talk


def test_everything_comes_back_to_a_client_that_has_shut_its_side() -> None:
    """8 MiB, more than any buffer on the way, sent by one thread and read by another."""
    sent = bytes(range(256)) * 32768
    with app("testbed.apps.echo") as echo, echo.connect() as connection:

        def send() -> None:
            connection.sendall(sent)
            connection.shutdown(1)

        sender = threading.Thread(target=send)
        sender.start()
        received = bytearray()
        while part := connection.recv(1 << 20):
            received += part
        sender.join()

    assert bytes(received) == sent


def test_a_banner_comes_before_the_client_has_spoken() -> None:
    """Server-first protocols break proxies that wait for the client's first bytes."""
    with app("testbed.apps.echo", "--banner", "220 hello") as echo, echo.connect() as connection:
        connection.settimeout(10)

        assert connection.recv(100) == b"220 hello\n"


def test_connections_and_bytes_are_counted(tmp_path: Path) -> None:
    """The last line of the log holds the totals; each connection has a line for its opening and one for its end."""
    log = tmp_path / "seen.jsonl"
    with app("testbed.apps.echo", "--name", "db", "--log", str(log)) as echo:
        for _ in range(3):
            talk(echo.port, b"12345")
        with echo.connect():
            talk(echo.port, b"")
            assert echo.end() == 0

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert lines[-1] | {"time": 0} == {
        "time": 0,
        "event": "totals",
        "workload": "db",
        "connections": 5,
        "open_connections": 0,
        "bytes": 15,
    }
    assert [line["event"] for line in lines].count("open") == 5
    assert lines[0]["peer"] == "127.0.0.1"
