"""The main job in a few minutes: what do sidecars, ztunnels, waypoints and mixtures cost, and what do they hide?

Two zones at a small RTT, every plane in turn, the same open-loop load, proof from packets, boundaries tried. Rounds are
six, for a claim takes as many, and windows short: how far rounds differ decides what may be said, not how many requests
each has (docs/statistics.md), and all of it must take less than four minutes.
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
        kind="open", rate_rps=200, arrival="poisson", connections=8, warmup_s=0.6, window_s=2.0, response_bytes=256
    ),
    rounds=6,
    claims=("two-l4-one-l7", "ambient-slower", "l4-suffices-for-mtls", "hbone-carries-metadata"),
)
