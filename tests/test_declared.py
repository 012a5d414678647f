"""Whether a lab is what is asked for now, and which parts are not."""

from __future__ import annotations

from typing import Any

import pytest

from testbed import topofile
from testbed.declared import Change, change, declaration, differences, told

TEXT = """
name: t
nodes: {node-a: {}, node-b: {}}
workloads:
  client: {node: node-a, serviceAccount: client}
  server: {node: node-b, serviceAccount: server, app: {kind: http-echo, ports: [8080]}}
services:
  server: {ports: [{port: 80, targetPort: 8080, protocol: http}], workloads: [server]}
links:
  - {between: [node-a, node-b], delayMs: 5}
policies:
  - apiVersion: security.istio.io/v1
    kind: PeerAuthentication
    metadata: {name: default, namespace: default}
    spec: {mtls: {mode: STRICT}}
  - apiVersion: security.istio.io/v1
    kind: AuthorizationPolicy
    metadata: {name: default, namespace: default}
    spec: {action: DENY, rules: [{from: [{source: {namespaces: [x]}}]}]}
"""


def made(text: str = TEXT, **asked: Any) -> dict[str, Any]:
    wanted = {"plane": "ambient-l4", "runtime": "netns", "link": "wire", "keylog": False} | asked
    return declaration(topofile.parse(text, "t.yml"), **wanted)


def test_the_same_content_is_the_same_lab() -> None:
    """Comments, blanks and the order of keys do not count; nor does it count what is left open."""
    moved = "# a comment\n" + TEXT.replace(
        "{node: node-a, serviceAccount: client}", "{serviceAccount: client,   node: node-a}"
    )
    assert moved != TEXT
    assert differences(made(), made(moved)) == []
    assert differences(made(), made(link="auto", runtime="auto")) == []


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("delayMs: 5", "delayMs: 6", ["links node-a--node-b: a_to_b: delay_ms: 5.0 → 6.0",
                                        "links node-a--node-b: b_to_a: delay_ms: 5.0 → 6.0"]),
        ("serviceAccount: client", "serviceAccount: other",
         ["workloads default/client: service_account: client → other"]),
        ("mode: STRICT", "mode: PERMISSIVE",
         ["policies PeerAuthentication/default/default: mode: STRICT → PERMISSIVE"]),
        ("namespaces: [x]", "namespaces: [y]", ["policies AuthorizationPolicy/default/default: rules"]),
        ("  client: {node: node-a, serviceAccount: client}\n", "", ["workloads default/client: no longer there"]),
        ("policies:", "  - {between: [node-b, node-c]}\npolicies:", None),
        ("port: 80,", "port: 81,", ["services default/server: ports: "]),
        ("kind: http-echo", "kind: tcp-echo", ["workloads default/server: app: kind: http-echo → tcp-echo"]),
    ],
)  # fmt: skip
def test_every_part_of_a_file_counts_and_is_named(old: str, new: str, says: list[str] | None) -> None:
    """By its name, with what it was and what it is to be."""
    changed = TEXT.replace(old, new)
    assert changed != TEXT
    if says is None:
        changed = changed.replace("node-b: {}}", "node-b: {}, node-c: {}}")
        says = ["nodes node-c: new", "links node-b--node-c: new"]
    lines = differences(made(), made(changed))

    for text in says:
        assert any(text in line for line in lines), lines


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"plane": "sidecar"}, "plane: ambient-l4 → sidecar"),
        ({"plane": "ambient-l4:x=1"}, "plane: ambient-l4 → ambient-l4:x=1"),
        ({"keylog": True}, "keylog: False → True"),
        ({"link": "netem"}, "link kind: wire → netem"),
        ({"runtime": "docker"}, "runtime: netns → docker"),
    ],
)
def test_options_count_too(asked: dict[str, Any], says: str) -> None:
    """Each that decides what comes up."""
    assert differences(made(), made(**asked)) == [says]


def test_a_long_list_is_cut_and_counted() -> None:
    """Two topologies of one name may have nothing in common."""
    assert told([f"part {n}" for n in range(20)]).splitlines()[-1] == "  and 12 more"


@pytest.mark.parametrize(
    ("old", "new", "asked", "needs"),
    [
        ("delayMs: 5", "delayMs: 6", {}, Change(rest=(), links=("node-a--node-b",), plane=False)),
        ("delayMs: 5", "delayMs: 6", {"plane": "sidecar"}, Change(rest=(), links=("node-a--node-b",), plane=True)),
        ("mode: STRICT", "mode: PERMISSIVE", {}, Change(rest=(), links=(), plane=True)),
        ("serviceAccount: client", "serviceAccount: other", {}, Change(rest=(), links=(), plane=True)),
        ("protocol: http", "protocol: tcp", {}, Change(rest=(), links=(), plane=True)),
        ("name: t", "name: t", {"keylog": True}, Change(rest=(), links=(), plane=True)),
        ("name: t", "name: t", {"link": "auto", "runtime": "auto"}, Change(rest=(), links=(), plane=False)),
        ("name: t", "name: t", {"runtime": "docker"}, "runtime: netns → docker"),
        ("name: t", "name: t", {"link": "netem"}, "link kind: wire → netem"),
        ("kind: http-echo", "kind: tcp-echo", {}, "workloads server: app: kind: http-echo → tcp-echo"),
        ("port: 80,", "port: 81,", {}, "services default/server: ports: "),
        ("client: {node: node-a", "client: {node: node-b", {}, "workloads client: node: "),
    ],
)  # fmt: skip
def test_what_a_lab_that_is_up_can_become(old: str, new: str, asked: dict[str, Any], needs: Change | str) -> None:
    """Other delays and other proxies; what namespaces, addresses and applications are made of stays."""
    changed = TEXT.replace(old, new)
    assert (changed == TEXT) == (old == new)
    needed = change(made(), made(changed, **asked))

    if isinstance(needs, Change):
        assert needed == needs
    else:
        assert any(line.startswith(needs) for line in needed.rest), needed
