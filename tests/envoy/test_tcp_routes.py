"""TCP of a service by `tcp` routes and within a DestinationRule's limit, beside a live Envoy of the same view."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.model.traffic import (
    ConnectionPool,
    Destination,
    DestinationRule,
    L4Match,
    L4Rule,
    Subset,
    TrafficPolicy,
    VirtualService,
    WeightedDestination,
)
from tests.envoy.routescene import IMPLEMENTATIONS, LIMIT_S, RAW, ROLES, Channel, Refused, RouteScene
from tests.labs import needs_envoy

pytestmark = [pytest.mark.envoy, needs_envoy]
CONNECTIONS = 40
"""So many that one of two even shares stays empty once in 10^11 runs."""
LIMIT = 2


def to(subset: str, weight: int | None = None, host: str = RAW) -> WeightedDestination:
    return WeightedDestination(destination=Destination(host=host, subset=subset), weight=weight)


def route(name: str, *rules: L4Rule) -> VirtualService:
    return VirtualService(name=name, namespace="default", hosts=(RAW,), tcp=rules)


@contextlib.contextmanager
def opened(scene: RouteScene, implementation: str, role: str) -> Iterator[Channel | None]:
    """None where the CONNECT is refused already: Envoy's answers 503 if what is inside ended before its answer went."""
    try:
        channel = scene._channel(implementation, role, RAW)
    except Refused as refused:
        assert refused.args[0] == 503
        yield None
        return
    try:
        yield channel
    finally:
        channel.sock.close()


def served_by(channel: Channel | None) -> str:
    """The endpoint behind a connection; empty where it is closed."""
    if channel is None:
        return ""
    try:
        channel.sock.sendall(b"GET /x HTTP/1.1\r\nhost: anything\r\n\r\n")
        return channel.answer("GET").body.decode().partition("|")[0]
    except (EOFError, ConnectionError):
        return ""


def everywhere(scene: RouteScene, tries: int) -> dict[tuple[str, str], set[str]]:
    found: dict[tuple[str, str], set[str]] = {}
    for implementation in IMPLEMENTATIONS:
        for role in ROLES:
            for _ in range(tries):
                with opened(scene, implementation, role) as channel:
                    found.setdefault((implementation, role), set()).add(served_by(channel))
    return found


@pytest.mark.parametrize(
    ("rules", "tries", "expected"),
    [
        pytest.param([L4Rule(destinations=(to("v1", 50), to("v2", 50)))], CONNECTIONS, {"v1", "v2"}, id="weights"),
        pytest.param(
            [
                L4Rule(matches=(L4Match(port=81),), destinations=(to("v1"),)),
                L4Rule(matches=(L4Match(destination_subnets=("10.97.0.0/16",)),), destinations=(to("v1"),)),
                L4Rule(matches=(L4Match(port=80, destination_subnets=("10.96.0.0/16",)),), destinations=(to("v2"),)),
                L4Rule(destinations=(to("v1"),)),
            ],
            6, {"v2"}, id="the first that holds",
        ),
        pytest.param([L4Rule(destinations=(to("", host="other"),))], 6, {"other"}, id="another service"),
        pytest.param([L4Rule(destinations=(to("v9"),))], 6, {""}, id="a subset nobody knows"),
    ],
)  # fmt: skip
def test_where_a_connection_goes(tmp_path: Path, rules: list[L4Rule], tries: int, expected: set[str]) -> None:
    """Sidecar and waypoint, ours and Envoy's: the same endpoints."""
    with RouteScene(tmp_path, [RAW], [route("r", *rules)]) as scene:
        found = everywhere(scene, tries)
    assert found == dict.fromkeys(found, expected) and len(found) == 4


def test_connections_have_a_limit(tmp_path: Path) -> None:
    """As many as `maxConnections` says, whichever endpoint they go to; the next is closed, until one has ended."""
    rule = DestinationRule(
        name="d", namespace="default", host=RAW,
        policy=TrafficPolicy(connection_pool=ConnectionPool(max_connections=LIMIT)),
        subsets=tuple(Subset(name=v, labels=(("version", v),)) for v in ("v1", "v2")),
    )  # fmt: skip
    with RouteScene(tmp_path, [RAW], [rule]) as scene:
        for implementation in IMPLEMENTATIONS:
            for role in ROLES:
                with contextlib.ExitStack() as stack:
                    held = [stack.enter_context(opened(scene, implementation, role)) for _ in range(LIMIT)]
                    assert all(map(served_by, held))
                    with opened(scene, implementation, role) as more:
                        assert served_by(more) == "", (implementation, role)
                    assert all(map(served_by, held)), "those that are open stay"
                    assert held[0] is not None
                    held[0].sock.close()
                    give_up_s = time.monotonic() + LIMIT_S
                    served = ""
                    while not served:
                        assert time.monotonic() < give_up_s, f"{implementation} {role} does not let another in"
                        with opened(scene, implementation, role) as more:
                            served = served_by(more)
