"""HBONE in: what may change while the application is being connected."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from planes.ztunnel import inbound
from planes.ztunnel.decisions import InboundTarget
from testbed.model.l4policy import Verdict


@pytest.mark.parametrize(("allowed", "status"), [(True, 200), (False, 401)])
def test_policy_is_asked_again_once_the_connection_is_registered(allowed: bool, status: int) -> None:
    """A policy that came while the application was connected finds nothing to cut yet, and must not be missed."""
    answered: list[int] = []
    connection = SimpleNamespace(
        streams={1: None},
        respond=lambda stream, code, fields=(), end=False: answered.append(code),
        reset=lambda stream, code: None,
    )
    held = SimpleNamespace(connection=connection, closed=False, schedule=lambda: None, stream_done=lambda: None)
    tunnel = SimpleNamespace(
        stream=SimpleNamespace(id=1, received_end=False, sink=None),
        release_held=lambda: None, drop=lambda: None, start=lambda: None,
    )  # fmt: skip
    decisions = SimpleNamespace(
        verdict=lambda *_: Verdict(allowed=allowed, reason="as the test says"), baggage=lambda *_: ""
    )
    telemetry = SimpleNamespace(failed=lambda *_: None, opened=lambda *_: None)
    proxy = SimpleNamespace(
        context=SimpleNamespace(decisions=decisions, telemetry=telemetry),
        namespace="default", name="server", live=set(), endpoints=SimpleNamespace(discard=lambda _: None),
    )  # fmt: skip
    record = SimpleNamespace(source=("10.0.1.2", 1), source_identity="spiffe://cluster.local/ns/default/sa/client")

    inbound._go_on(proxy, held, tunnel, InboundTarget(status=200, port=8080), record)

    assert answered == [status]
    assert len(proxy.live) == allowed
