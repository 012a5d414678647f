"""The table of `bench.proxy`, and how it knows that a proxy is up."""

from __future__ import annotations

import socket

import pytest

from testbed.bench.compared import table
from testbed.bench.loopback import wait_for_port


def test_the_ratio_is_of_medians_and_the_rounds_show_its_spread():
    """Ours over Envoy's, with the smallest and the largest ratio of a round."""
    found = {("waypoint", "CPU µs/request"): {"meshbed": [10.0, 30.0, 20.0], "envoy": [20.0, 20.0, 40.0]}}

    assert table(found).splitlines()[2] == "| waypoint | CPU µs/request | 20.0 | 20.0 | 1.00 | 0.50–1.50 |"


def test_without_envoy_there_is_no_ratio():
    """Where Envoy is not installed its columns stay empty."""
    assert table({("waypoint", "added p50, ms"): {"meshbed": [0.5]}}).endswith("| 0.500 |  |  |  |")


def test_a_listening_port_is_found_without_calling_it():
    """Nobody is accepted: a connection would stand in the backlog."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        wait_for_port(server.getsockname(), within_s=1)
        server.setblocking(False)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_port_without_a_listener_is_named():
    """The message says which port stays silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
    with pytest.raises(TimeoutError, match=f"127.0.0.1:{address[1]}"):
        wait_for_port(address, within_s=0.1)
