"""Keys come and go with the workloads of a node: what a ztunnel can speak as is what runs beside it, at any time."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives import serialization

from testbed import livemembers
from testbed.errors import UsageError
from testbed.model.identity import Identity
from testbed.pki import CERTIFICATE_FILE, KEY_FILE
from tests.labs import needs_root
from tests.namespaced.worlds import World, runtime_name, wait_for, world

pytestmark = [pytest.mark.root, needs_root]

# `first` and `second` share an identity on one node, `remote` has it on the other.
SHARED = """
name: shared
nodes: {node-a: {}, node-b: {}}
workloads:
  client: {node: node-a, serviceAccount: client}
  first: {node: node-a, serviceAccount: shared, app: {kind: tcp-echo, ports: [9000]}}
  second: {node: node-a, serviceAccount: shared, app: {kind: tcp-echo, ports: [9000]}}
  remote: {node: node-b, serviceAccount: shared, app: {kind: tcp-echo, ports: [9000]}}
links:
  - {between: [node-a, node-b]}
"""
LIFETIME_S = 4.0
"""Where the CA may signal; else nothing is to be renewed under a case, for proxies would notice too late."""


@pytest.fixture
def shared() -> Iterator[World]:
    life = {"leaf_lifetime_s": LIFETIME_S} if runtime_name() == "netns" else {}
    with world(SHARED, renewed=True, **life) as made:
        yield made


def held(made: World, node: str) -> set[str]:
    """Service accounts whose certificates the node's ztunnel has in use."""
    return {Identity.parse(uri).service_account for uri in json.loads(made.dump(node))["identities"]}


def given(made: World, node: str) -> set[str]:
    """And those in its folder."""
    return {place.name.rpartition(".")[2] for place in made.deployment.folder(f"ztunnel.{node}").glob("identities/*")}


def secret(made: World, node: str, account: str) -> bytes:
    """The number that is the key, from its file, as a little-endian machine's OpenSSL has it in memory."""
    (place,) = made.deployment.folder(f"ztunnel.{node}").glob(f"identities/*.{account}")
    key = serialization.load_pem_private_key((place / KEY_FILE).read_bytes(), None)
    return key.private_numbers().private_value.to_bytes(32, "little")


def in_memory(made: World, node: str, number: bytes) -> bool:
    """Whether the ztunnel has it anywhere that it can write to, in either order of bytes."""
    pid = made.proxy(node).pid
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            start, end, rights = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line).groups()
            if not rights.startswith("rw"):
                continue
            try:
                content = os.pread(memory.fileno(), int(end, 16) - int(start, 16), int(start, 16))
            except OSError:
                continue
            if number in content or number[::-1] in content:
                return True
    return False


def test_prefetch_forget_certs(shared: World) -> None:
    """ztunnel's own steps: not for another node's workload, once for several, forgotten with the last of them.

    Then the key is nowhere in the process, and the CA, which goes on renewing the others, brings it back no more.
    """
    assert held(shared, "node-a") == {"client", "shared"} and held(shared, "node-b") == {"shared"}
    livemembers.leave(shared.deployment, "remote")
    assert held(shared, "node-b") == given(shared, "node-b") == set()
    assert held(shared, "node-a") == given(shared, "node-a") == {"client", "shared"}
    livemembers.leave(shared.deployment, "first")
    assert held(shared, "node-a") == given(shared, "node-a") == {"client", "shared"}
    assert shared.echo("client", shared.ip("second"), 9000) == b"hello"
    seen: list[bytes] = []

    def known() -> bool:  # a renewal may come between its file and its memory
        seen.append(secret(shared, "node-a", "shared"))
        return in_memory(shared, "node-a", seen[-1])

    wait_for(known, "the key is in the memory of a ztunnel that uses it")
    with shared.connect("client", shared.ip("second"), 9000) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
        livemembers.leave(shared.deployment, "second")
        assert sock.recv(1) == b""
    assert held(shared, "node-a") == given(shared, "node-a") == {"client"}
    wait_for(lambda: not any(in_memory(shared, "node-a", key) for key in seen), "the key is nowhere in the process")
    if runtime_name() == "netns":
        renewals_go_on_without(shared, "shared")


def renewals_go_on_without(shared: World, account: str) -> None:
    log = shared.deployment.renewer.log
    before = log.read_text().count("renewed 1 of 1 certificates")
    wait_for(lambda: log.read_text().count("renewed 1 of 1 certificates") >= before + 2, "the client's is renewed")
    assert account not in given(shared, "node-a") | held(shared, "node-a")


def test_a_certificate_is_there_before_its_workloads_first_connection(shared: World) -> None:
    """A new key, not the one of before; who joins second with that identity changes nothing."""
    old = secret(shared, "node-b", "shared")
    livemembers.leave(shared.deployment, "remote")
    livemembers.leave(shared.deployment, "client")
    with pytest.raises(UsageError, match=r"has left ztunnel\.node-b already"):
        livemembers.leave(shared.deployment, "remote")
    livemembers.join(shared.deployment, "remote")
    assert held(shared, "node-b") == given(shared, "node-b") == {"shared"}
    wait_for(lambda: in_memory(shared, "node-b", secret(shared, "node-b", "shared")), "its key is in the memory")
    livemembers.join(shared.deployment, "client")
    assert shared.echo("client", shared.ip("remote"), 9000) == b"hello"
    assert secret(shared, "node-b", "shared") != old and not in_memory(shared, "node-b", old)
    (place,) = shared.deployment.folder("ztunnel.node-a").glob("identities/*.client")
    joined = (place / CERTIFICATE_FILE).read_bytes()
    if runtime_name() == "netns":
        wait_for(lambda: (place / CERTIFICATE_FILE).read_bytes() != joined, "who joined is renewed with the others")
        assert shared.echo("client", shared.ip("remote"), 9000) == b"hello"
    with pytest.raises(UsageError, match=r"is in ztunnel\.node-a already"):
        livemembers.join(shared.deployment, "client")
