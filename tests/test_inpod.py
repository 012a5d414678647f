"""In-pod mode: a ztunnel is handed a namespace over its socket and listens inside it, nowhere else."""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.bench.loopback import CLIENT_URI, SERVER_URI, local_view, write_certificates

pytestmark = pytest.mark.root
ROOT = Path(__file__).parent.parent
NODE = f"127.{60 + os.getpid() % 8}.{os.getpid() // 8 % 250 + 1}.1"


def readiness() -> tuple[int, str]:
    connection = http.client.HTTPConnection(NODE, 15021, timeout=5)
    connection.request("GET", "/healthz/ready")
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def listening_ports(pid: int) -> set[int]:
    lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    return {int(line.split()[1].split(":")[1], 16) for line in lines if line.split()[3] == "0A"}


@pytest.mark.skipif(os.geteuid() != 0, reason="entering a namespace needs root")
def test_listeners_open_inside_the_given_namespace_and_leave_with_it(tmp_path: Path):
    """`add` with a descriptor opens 15001, 15006 and 15008 there; `del` closes them; each message has its ack.

    The proxy is ready only after the snapshot, and not while a workload that the view does not know is pending.
    """
    write_certificates(tmp_path, {"client": CLIENT_URI, "server": SERVER_URI})
    config = {
        "name": "z", "role": "ztunnel", "node": "n", "view": local_view("10.9.1.2", "10.9.1.3"), "uds": "zds.sock",
        "identities": {SERVER_URI: {"certificate": "server.pem", "key": "server.key", "roots": "roots.pem"}},
        "options": {"admin_port": 0, "stats_port": 0, "admin_address": NODE},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    agent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    agent.bind(str(tmp_path / "zds.sock"))
    agent.listen()
    agent.settimeout(15)
    argv = [sys.executable, "-m", "planes.ztunnel", "--config", str(tmp_path / "config.json")]
    pod = subprocess.Popen(["unshare", "-n", "sh", "-c", "echo up; exec sleep 60"], stdout=subprocess.PIPE)
    ztunnel = subprocess.Popen(argv, cwd=ROOT)
    try:
        assert pod.stdout is not None
        assert pod.stdout.readline() == b"up\n"
        proxy, _ = agent.accept()
        proxy.settimeout(15)
        assert json.loads(proxy.recv(4096)) == {"hello": {"version": "V1"}}
        netns = os.open(f"/proc/{pod.pid}/ns/net", os.O_RDONLY)
        info = {"name": "server", "namespace": "default", "service_account": "server"}
        message = json.dumps({"add": {"uid": "u1", "workload_info": info}}).encode()
        socket.send_fds(proxy, [message], [netns])
        os.close(netns)
        assert json.loads(proxy.recv(4096)) == {"ack": {"error": ""}}
        assert listening_ports(pod.pid) == {15001, 15006, 15008}
        assert not listening_ports(ztunnel.pid) & {15001, 15006} - listening_ports(os.getpid())
        assert readiness()[0] == 500
        proxy.send(json.dumps({"snapshot_sent": {}}).encode())
        assert json.loads(proxy.recv(4096)) == {"ack": {"error": ""}}
        assert readiness()[0] == 200
        unknown = json.dumps({"add": {"uid": "u2", "workload_info": info | {"name": "nobody"}}}).encode()
        netns = os.open(f"/proc/{pod.pid}/ns/net", os.O_RDONLY)
        socket.send_fds(proxy, [unknown], [netns])
        os.close(netns)
        assert "is not in the view" in json.loads(proxy.recv(4096))["ack"]["error"]
        assert readiness() == (500, "not ready: 1 workloads pending\n")
        proxy.send(json.dumps({"del": {"uid": "u2"}}).encode())
        assert json.loads(proxy.recv(4096)) == {"ack": {"error": ""}}
        assert readiness()[0] == 200
        proxy.send(message)
        assert "0 descriptors" in json.loads(proxy.recv(4096))["ack"]["error"]
        proxy.send(json.dumps({"del": {"uid": "u1"}}).encode())
        assert json.loads(proxy.recv(4096)) == {"ack": {"error": ""}}
        assert listening_ports(pod.pid) == set()
    finally:
        ztunnel.terminate()
        ztunnel.wait(10)
        pod.kill()
        pod.wait()
        agent.close()
