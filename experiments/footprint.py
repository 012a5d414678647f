"""What a plane takes for being there: memory, idle CPU, proxies and configuration against workloads and replicas.

Nobody calls anybody. Workloads grow in two ways: each a service of its own with a waypoint of its own, or replicas of
two services with one waypoint each. What a sidecar takes is the same in both; what a waypoint takes is not.
"""

from dataclasses import replace

from experiments.forms import full, quick
from testbed.model.experiment import Axis, Cell, Load

IDLE = Load(kind="idle", rate_rps=0, warmup_s=0.3, window_s=0.5)
NODES = 2
SERVICES = 2
ALONE, REPLICAS = "services of one workload", f"replicas of {SERVICES} services"


def _cell(per_node: int, line: str, load: Load = IDLE) -> Cell:
    services = f":services={SERVICES}" if line == REPLICAS else ""
    return Cell(
        name=f"{per_node} a node, {line}",
        load=load,
        at=per_node,
        line=line,
        topology=f"crowd:per_node={per_node}:nodes={NODES}{services}",
    )


EXPERIMENT = replace(
    quick(
        "footprint",
        "What does each plane take per workload, per node and per service while nobody calls?",
        load=Load(),
        cells=(_cell(1, ALONE), _cell(3, ALONE), _cell(6, ALONE), _cell(3, REPLICAS), _cell(6, REPLICAS)),
        claims=("per-pod-vs-per-node", "replicas-gain-most", "ninety-percent", "fewer-config-streams"),
        axis=Axis(
            name="workloads per node",
            metrics=("memory_pss", "cpu_idle", "proxies", "config", "cpu_to_ready", "deploy_time"),
        ),
    ),
    planes=("sidecar", "ambient-l4", "ambient", "node-l7"),
)

FULL = replace(
    full(EXPERIMENT),
    cells=tuple(
        _cell(per_node, line, replace(IDLE, window_s=5.0))
        for line in (ALONE, REPLICAS)
        for per_node in (1, 2, 4, 8, 16, 32)
        if line == ALONE or per_node > 1
    ),
)
