"""The keeper of a lab on Docker: holds the containers' network namespaces, wires them, and removes the containers at
the lab's end.

It is `keeper.Keeper` in all else: it ends with its owner unless detached, starts the wires, speaks `wireframe`. After a
SIGKILL of the keeper itself the containers remain for `lab.gc`.
"""

from __future__ import annotations

import os
import sys

from testbed.runtime import dockersocket, kernel
from testbed.runtime.keeper import BASE, Client, Keeper, main


class DockerKeeper(Keeper):
    def do_adopt(self, client: Client, message: dict) -> None:
        """Namespace `first + i` is that of process `pids[i]`: opened, its sysctls written, all of them wired."""
        first = message.get("first", 0)
        for i, (pid, sysctls) in enumerate(zip(message["pids"], message["namespaces"], strict=True), first):
            fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
            os.dup2(fd, BASE + i, inheritable=False)
            os.close(fd)
            kernel.setns(BASE + i, kernel.NEWNET)
            for path, value in sysctls:
                try:
                    out = os.open(path, os.O_WRONLY)
                except FileNotFoundError:
                    continue  # a kernel without IPv6 has nothing to switch off
                try:
                    os.write(out, value)
                finally:
                    os.close(out)
        self.do_wire(client, message)

    def finish(self) -> None:
        try:
            dockersocket.sweep(self.settings["engine"], self.settings["labels"])
        except OSError as error:
            # The folder stays: lab.gc finds by it what is left.
            print(f"containers of {self.settings['folder']} remain: {error}", file=sys.stderr)
            self.settings["folder"] = ""
        super().finish()


def run() -> None:
    main(DockerKeeper)
