"""The node agent's conversation, spoken from ztunnel's side over a real socket."""

from __future__ import annotations

import array
import json
import os
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.nodeagent import NodeAgent, PodNetns

RIGHTS_BYTES = socket.CMSG_SPACE(array.array("i").itemsize)


def pod(name: str, file: Path, opened: list[int]) -> PodNetns:
    """Its "namespace" is a file, so that the descriptor handed over can be recognised."""

    def open_netns() -> int:
        opened.append(os.open(file, os.O_RDONLY | os.O_CLOEXEC))
        return opened[-1]

    return PodNetns(uid=name, name=name, namespace="default", service_account=f"sa-{name}", open_netns=open_netns)


class Ztunnel:
    """The client's side: says hello, hears messages with their descriptors, acknowledges each."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(5)
        folder = os.open(path.parent, os.O_PATH)
        try:
            self.socket.connect(f"/proc/self/fd/{folder}/{path.name}")
        finally:
            os.close(folder)
        self.socket.send(json.dumps({"hello": {"version": "V1"}}).encode())

    def hear(self, error: str = "") -> tuple[dict, str]:
        """The next message and what its descriptor holds; it is acknowledged, or refused."""
        data, ancillary, _, _ = self.socket.recvmsg(65536, RIGHTS_BYTES)
        content = ""
        for level, kind, raw in ancillary:
            assert (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS)
            (descriptor,) = array.array("i", raw)
            content = os.read(descriptor, 100).decode()
            os.close(descriptor)
        self.socket.send(json.dumps({"ack": {"error": error}}).encode())
        return json.loads(data or b"{}"), content


@pytest.fixture
def opened() -> list[int]:
    return []


@pytest.fixture
def agent(tmp_path: Path, opened: list[int]) -> Iterator[NodeAgent]:
    """Listening in a folder deeper than a socket address is long, with two pods."""
    folder = tmp_path / ("d" * 60) / ("e" * 60)
    folder.mkdir(parents=True)
    assert len(str(folder / "ztunnel.sock")) > 120
    pods = []
    for name in ("client", "server"):
        (tmp_path / name).write_text(f"netns of {name}")
        pods.append(pod(name, tmp_path / name, opened))
    agent = NodeAgent(folder / "ztunnel.sock", pods, owner=os.getuid())
    agent.start()
    yield agent
    agent.close()


def closed(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return True
    return False


def settled(agent: NodeAgent) -> None:
    """Until its thread has taken in the last acknowledgement."""
    deadline = time.monotonic() + 5
    while agent._connection is None and not agent.errors and time.monotonic() < deadline:
        time.sleep(0.005)


def test_every_pod_is_handed_over_with_its_namespace_and_then_the_snapshot_ends(
    agent: NodeAgent, opened: list[int]
) -> None:
    """hello, add with a descriptor, ack, …, snapshot_sent: ztunnel's zds.proto; no descriptor of ours stays open."""
    ztunnel = Ztunnel(agent.path)
    first, second, last = (ztunnel.hear() for _ in range(3))
    settled(agent)

    assert first == (
        {
            "add": {
                "uid": "client",
                "workload_info": {"name": "client", "namespace": "default", "service_account": "sa-client"},
            }
        },
        "netns of client",
    )
    assert second[0]["add"]["uid"] == "server" and second[1] == "netns of server"
    assert last == ({"snapshot_sent": {}}, "")
    assert len(opened) == 2 and all(closed(descriptor) for descriptor in opened)
    assert agent.errors == []


def test_a_pod_that_joins_later_is_added_and_one_that_leaves_is_deleted(
    agent: NodeAgent, tmp_path: Path, opened: list[int]
) -> None:
    """Over the same conversation."""
    ztunnel = Ztunnel(agent.path)
    for _ in range(3):
        ztunnel.hear()
    settled(agent)
    (tmp_path / "late").write_text("netns of late")
    joining = threading.Thread(target=agent.add, args=(pod("late", tmp_path / "late", opened),))
    joining.start()
    added = ztunnel.hear()
    joining.join()
    leaving = threading.Thread(target=agent.remove, args=("client",))
    leaving.start()
    gone = ztunnel.hear()
    leaving.join()

    assert (added[0]["add"]["uid"], added[1]) == ("late", "netns of late")
    assert gone == ({"del": {"uid": "client"}}, "")
    assert [p.uid for p in agent.pods] == ["server", "late"]


def test_a_ztunnel_that_comes_again_gets_the_pods_of_now(agent: NodeAgent) -> None:
    """It restarts and has forgotten everything."""
    first = Ztunnel(agent.path)
    for _ in range(3):
        first.hear()
    settled(agent)
    first.socket.close()
    agent.pods = agent.pods[1:]

    second = Ztunnel(agent.path)

    assert second.hear()[0]["add"]["uid"] == "server"
    assert second.hear()[0] == {"snapshot_sent": {}}


def test_a_refusal_is_kept_with_its_reason(agent: NodeAgent) -> None:
    """For whoever asks why a workload is not in the mesh; the agent goes on listening."""
    Ztunnel(agent.path).hear(error="no such namespace")
    settled(agent)

    assert len(agent.errors) == 1
    assert "ztunnel refused add: no such namespace" in agent.errors[0]
    again = Ztunnel(agent.path)
    assert again.hear()[0]["add"]["uid"] == "client"


def test_a_ztunnel_that_dies_before_its_ack_is_an_error_and_no_hang(agent: NodeAgent) -> None:
    """The next one is served."""
    first = Ztunnel(agent.path)
    first.socket.recv(65536)
    first.socket.close()
    settled(agent)

    assert "before the ack" in agent.errors[0] or "reset" in agent.errors[0].lower()
    assert Ztunnel(agent.path).hear()[0]["add"]["uid"] == "client"


def test_only_its_ztunnel_may_speak_to_it(agent: NodeAgent) -> None:
    """Whoever speaks to it gets descriptors of every namespace of the node."""
    assert stat.S_IMODE(agent.path.stat().st_mode) == 0o600
    agent.close()
    assert not agent.path.exists()
