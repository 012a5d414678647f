"""The CNI node agent's part of the in-pod model: hands workloads' network namespaces to a ztunnel by SCM_RIGHTS.

ztunnel is the client of a SOCK_SEQPACKET Unix socket, one message per packet: hello → add… → snapshot_sent, each
answered by an
ack (facts/hbone 2.14, ztunnel's proto/zds.proto). Messages are JSON in the field names of the proto, so that protobuf
can follow without another conversation. A ztunnel keeps its workloads when the agent goes away, as Istio's does.
"""

from __future__ import annotations

import array
import json
import os
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class PodNetns:
    uid: str
    name: str
    namespace: str
    service_account: str
    open_netns: Callable[[], int]
    """Opens a descriptor of the workload's network namespace; the agent closes it once it is sent."""


class NodeAgent:
    """One agent for one ztunnel.

    `start` returns as soon as the socket listens; errors of a conversation are kept in `errors`.
    """

    def __init__(self, path: Path, pods: list[PodNetns], *, owner: int) -> None:
        self.path = path
        self.pods = pods
        self.errors: list[str] = []
        self._owner = owner
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._thread = threading.Thread(target=self._serve, name=f"node-agent {path.parent.name}", daemon=True)
        self._connection: socket.socket | None = None
        self._talk = threading.Lock()

    def start(self) -> None:
        folder = os.open(self.path.parent, os.O_PATH | os.O_CLOEXEC)
        try:
            self._listener.bind(
                f"/proc/self/fd/{folder}/{self.path.name}"
            )  # the full path may be longer than 107 bytes
        finally:
            os.close(folder)
        os.chmod(self.path, 0o600)
        if self._owner != os.geteuid():
            os.chown(self.path, self._owner, self._owner)
        self._listener.listen(4)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return  # closed
            with self._talk:
                try:
                    connection.settimeout(10)
                    connection.recv(65536)  # hello
                    for pod in self.pods:
                        self._add(connection, pod)
                    self._say(connection, {"snapshot_sent": {}})
                    self._connection = connection
                except (OSError, ValueError) as error:
                    self.errors.append(f"{self.path.parent.name}: {error}")
                    connection.close()

    def add(self, pod: PodNetns) -> None:
        """A workload joins while ztunnel runs."""
        with self._talk:
            self.pods.append(pod)
            if self._connection:
                self._add(self._connection, pod)

    def remove(self, uid: str) -> None:
        with self._talk:
            self.pods = [pod for pod in self.pods if pod.uid != uid]
            if self._connection:
                self._say(self._connection, {"del": {"uid": uid}})

    def _add(self, connection: socket.socket, pod: PodNetns) -> None:
        info = {"name": pod.name, "namespace": pod.namespace, "service_account": pod.service_account}
        descriptor = pod.open_netns()
        try:
            self._say(connection, {"add": {"uid": pod.uid, "workload_info": info}}, descriptor)
        finally:
            os.close(descriptor)

    def _say(self, connection: socket.socket, message: dict, descriptor: int | None = None) -> None:
        rights = [] if descriptor is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor]))]
        connection.sendmsg([json.dumps(message).encode()], rights)
        answer = json.loads(connection.recv(65536) or b"{}")
        if error := answer.get("ack", {}).get("error", "connection closed before the ack"):
            raise ValueError(f"ztunnel refused {next(iter(message))}: {error}")

    def close(self) -> None:
        self._listener.close()
        if self._connection:
            self._connection.close()
        self.path.unlink(missing_ok=True)
