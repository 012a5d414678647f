"""How much is one component of a plane worth to an attacker? His code is put into each, and what it can do is counted.

Nothing is allowed by default. One short round under load is there to see that the planes work; the question is answered
beside it, by attempts and not by figures.
"""

from testbed.model.experiment import Experiment, Load

EXPERIMENT = Experiment(
    name="blast_radius",
    question="What does an attacker get from inside each component of each data plane?",
    topology="deny-default",
    planes=("none", "sidecar", "ambient-l4", "ambient", "node-l7"),
    client="client",
    target="catalog",
    load=Load(kind="open", rate_rps=30, connections=2, warmup_s=0.3, window_s=1.0, response_bytes=256),
    rounds=1,
    aa_pair=False,
    claims=(
        "blast-radius-identities", "app-compromise-keys", "weaker-stance", "forced-through-proxy", "pod-ip-bypass",
        "l4-suffices-for-mtls",
    ),
    attackers=("web", "node-m"),
)  # fmt: skip
