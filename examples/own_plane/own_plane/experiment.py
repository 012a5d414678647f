"""The question: a forwarder beside each workload against none."""

from testbed.model.experiment import Experiment, Load

EXPERIMENT = Experiment(
    name="own-plane",
    question="What does a forwarder beside each workload add, and what can be read on the wire?",
    topology="pair",
    planes=("none", "own"),
    client="client",
    target="server",
    load=Load(rate_rps=100, warmup_s=0.5, window_s=2.0),
    rounds=3,
)
