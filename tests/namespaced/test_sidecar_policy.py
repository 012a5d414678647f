"""AuthorizationPolicy at a sidecar: connections by identity, requests by what they ask; also while they are open."""

from __future__ import annotations

import ssl
import time

import pytest

from tests.labs import needs_root
from tests.namespaced.sidecars import SidecarWorld, allow, peer
from tests.namespaced.test_sidecar_mtls import stranger
from tests.namespaced.worlds import read_all

pytestmark = [pytest.mark.root, needs_root]

CLIENT, OTHER = "cluster.local/ns/default/sa/client", "cluster.local/ns/default/sa/other"


def test_http_is_denied_with_403_in_istios_words(sidecars: SidecarWorld) -> None:
    """Whom no ALLOW names is answered 403, counted at both ends; plaintext has no identity to be named."""
    with sidecars.resources(allow(CLIENT, app="web")):
        assert sidecars.http("client", "web").status == 200
        with (
            sidecars.counts("web", "istio_requests_total", reporter="destination", response_code="403", by=2),
            sidecars.counts("other", "istio_requests_total", reporter="source", response_code="403"),
        ):
            denied = sidecars.http("other", "web")
            assert (denied.status, denied.body) == (403, b"RBAC: access denied")
            assert sidecars.http("outsider", "web").status == 403


def test_tcp_is_closed(sidecars: SidecarWorld) -> None:
    """A connection that is not HTTP just ends, and the failure is counted as a denial."""
    with sidecars.resources(allow(CLIENT, app="echo")):
        assert sidecars.echo("client", sidecars.vip("echo"), 90) == b"hello"
        with sidecars.counts("echo", "istio_tcp_connections_failed_total", response_flags="DENY"):
            assert sidecars.echo("other", sidecars.vip("echo"), 90) == b""


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/public/a", 200),
        ("POST", "/public/a", 403),
        ("GET", "/private", 403),
        ("GET", "/public/../private", 403),
        ("GET", "/public/%2e%2e/private", 403),
    ],
)
def test_requests_are_judged_one_by_one(sidecars: SidecarWorld, method: str, path: str, status: int) -> None:
    """Method and path, and the path as the application will resolve it."""
    with sidecars.resources(allow(app="web", methods=["GET"], paths=["/public/*"])):
        assert sidecars.http("client", "web", path, method=method).status == status


def test_one_connection_may_be_allowed_and_denied_by_turns(sidecars: SidecarWorld) -> None:
    """A denial on layer 7 answers its request and leaves the connection open."""
    with (
        sidecars.resources(allow(app="web", paths=["/a"])),
        sidecars.keep_alive("client", sidecars.vip("web"), 80, "web") as ask,
    ):
        assert [ask(path).status for path in ("/a", "/b", "/a")] == [200, 403, 200]


def test_deny_goes_before_allow(sidecars: SidecarWorld) -> None:
    """Both match: the answer is no."""
    with sidecars.resources(allow(CLIENT, OTHER, app="web"), allow(OTHER, app="web", action="DENY")):
        assert sidecars.http("client", "web").status == 200
        assert sidecars.http("other", "web").status == 403


def test_a_request_policy_lets_no_other_bytes_through(sidecars: SidecarWorld) -> None:
    """Bytes that are no HTTP at a port declared HTTP: with a path to be allowed there is nothing to allow them by."""
    with sidecars.resources(allow(app="web", paths=["/a"])):
        files = sidecars.credentials(sidecars.identity("outsider"))
        with stranger(sidecars, files, version=ssl.TLSVersion.TLSv1_3, alpn=["istio"]) as made:
            made.sendall(b"\x00\x00\x00 not a request\r\n\r\n")
            assert read_all(made).startswith(b"HTTP/1.1 400")


def test_a_new_policy_judges_the_next_request_of_an_open_connection(sidecars: SidecarWorld) -> None:
    """And its end lets requests through again, on the same connection."""
    with sidecars.keep_alive("other", sidecars.vip("web"), 80, "web") as ask:
        assert ask().status == 200
        with sidecars.resources(allow(CLIENT, app="web")):
            assert ask().status == 403
        assert ask().status == 200


def test_a_new_policy_ends_open_tcp_connections_after_the_drain(sidecars: SidecarWorld) -> None:
    """Only those it refuses, and not at once: Istio's listener drains (here 0.5 s, there 45 s)."""
    with (
        sidecars.connect("client", sidecars.vip("echo"), 90) as kept,
        sidecars.connect("other", sidecars.vip("echo"), 90) as refused,
    ):
        for sock in (kept, refused):
            sock.sendall(b"x")
            assert sock.recv(1) == b"x"
        with sidecars.resources(allow(CLIENT, app="echo")):
            began_s = time.monotonic()
            refused.sendall(b"y")
            assert refused.recv(1) == b"y"
            assert read_all(refused) == b""
            assert time.monotonic() - began_s < 5
            kept.sendall(b"z")
            assert kept.recv(1) == b"z"


def test_strict_drains_open_plaintext(sidecars: SidecarWorld) -> None:
    """What came in plaintext before STRICT may not go on; what came by mTLS may."""
    with (
        sidecars.keep_alive("outsider", sidecars.vip("web"), 80, "web") as plain,
        sidecars.keep_alive("client", sidecars.vip("web"), 80, "web") as secured,
    ):
        assert (plain().status, secured().status) == (200, 200)
        with sidecars.resources(peer("STRICT", app="web")):
            assert (plain().status, secured().status) == (0, 200)


def test_a_policy_on_trial_changes_nothing(sidecars: SidecarWorld) -> None:
    """Dry run: it would deny, and does not."""
    trial = allow(OTHER, app="web", action="DENY").replace(
        '"metadata": {', '"metadata": {"annotations": {"istio.io/dry-run": "true"}, '
    )
    with sidecars.resources(trial):
        assert sidecars.http("other", "web").status == 200
