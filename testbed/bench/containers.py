"""Bring-up on containers: a lab of N workloads on netns, the same on Docker, and as many bare containers beside them.

Bare means created and started by the docker package, as many at once as we start, and nothing wired: what Docker alone
takes. Rounds are interleaved, as the machine drifts more between minutes than the three differ.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from testbed.model.topology import App, Node, Topology, Workload, node_network, workload_address
from testbed.runtime.dockerlab import AT_ONCE
from testbed.runtime.dockerruntime import DockerRuntime
from testbed.runtime.netns import NetnsRuntime
from testbed.seams import Runtime

LABEL = "meshbed.bench"


def star(workloads: int) -> Topology:
    """One node; `workloads` + 1 sandboxes."""
    network, gateway = node_network(1)
    return Topology(
        name="star",
        nodes=(Node(name="n", zone="z", address=gateway, network=network),),
        workloads=tuple(
            Workload(
                name=f"w{i}", group="w", namespace="d", service_account="s", node="n",
                address=workload_address(1, i), app=App(kind="idle"),
            )
            for i in range(workloads)
        ),
        services=(),
        links=(),
    )  # fmt: skip


def bare(runtime: DockerRuntime, count: int) -> tuple[float, float]:
    """(seconds up, seconds down) of containers that nobody wires."""
    client, image = runtime.engine().client, runtime.ground().image
    tag = f"{os.getpid()}-{time.monotonic_ns()}"
    begun = time.perf_counter()

    def one(number: int) -> str:
        made = client.api.create_container(
            image, ["sleep", "infinity"], name=f"bare-{tag}-{number}", labels={LABEL: tag},
            host_config=client.api.create_host_config(network_mode="none"),
        )  # fmt: skip
        client.api.start(made["Id"])
        return str(made["Id"])

    with ThreadPoolExecutor(AT_ONCE) as pool:
        ids = list(pool.map(one, range(count)))
    up = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda container: client.api.remove_container(container, force=True), ids))
    return up - begun, time.perf_counter() - up


def lab(runtime: Runtime, count: int) -> tuple[float, float]:
    topology = star(count - 1)
    begun = time.perf_counter()
    running = runtime.up(topology, name=f"bench-{os.getpid()}")
    up = time.perf_counter()
    running.down()
    return up - begun, time.perf_counter() - up


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench.containers", description=__doc__)
    parser.add_argument("--count", type=int, default=10, help="sandboxes of a lab (10)")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args(words)
    docker = DockerRuntime()
    docker.ground()  # the image is made before, and looked for once
    ways: dict[str, Callable[[], tuple[float, float]]] = {
        "netns": lambda: lab(NetnsRuntime(), asked.count),
        "docker": lambda: lab(docker, asked.count),
        "bare docker": lambda: bare(docker, asked.count),
    }
    rows: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(asked.rounds):
        for name, way in ways.items():
            rows[name].append(way())
    print(f"{asked.count} sandboxes, {asked.rounds} rounds, median (least – most), ms")
    for name, measured in rows.items():
        up, down = ([pair[i] * 1000 for pair in measured] for i in (0, 1))
        print(
            f"{name:<12} up {statistics.median(up):8.0f} ({min(up):.0f} – {max(up):.0f})   "
            f"down {statistics.median(down):8.0f} ({min(down):.0f} – {max(down):.0f})"
        )
    ratio = [d[0] / b[0] for d, b in zip(rows["docker"], rows["bare docker"], strict=True)]
    print(f"docker / bare docker, up: {statistics.median(ratio):.2f} ({min(ratio):.2f} – {max(ratio):.2f})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
