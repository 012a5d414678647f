"""The main job in a few minutes: what do sidecars, ztunnels, waypoints and mixtures cost, and what do they hide?

Two zones at a small RTT, every plane in turn, the same open-loop load, proof from packets, boundaries tried.
"""

from testbed.model.experiment import Experiment, Load

EXPERIMENT = Experiment(
    name="quickstart",
    question="What does each data plane add in latency, CPU and memory, and what can be read on the wire?",
    topology="two-zones",
    planes=("none", "sidecar", "ambient-l4", "ambient", "hybrid"),
    client="client",
    target="server",
    load=Load(
        kind="open", rate_rps=200, arrival="poisson", connections=8, warmup_s=0.8, window_s=3.0, response_bytes=256
    ),
    rounds=5,
    claims=("two-l4-one-l7", "ambient-slower", "l4-suffices-for-mtls", "hbone-carries-metadata"),
)
