"""Is what policy means what happens? Every pair of `shop` is called under three sets of policies that use every field
of Istio's, each verdict held against one that was predicted without asking the planes; and code is put into every kind
of component, in a mesh in which nothing is allowed by default, to see what gets past all that.

One short round under load is there to see that the planes work. How fast a changed policy is enforced, and what becomes
of open connections, is `policy_change`'s question; what each component is worth, `blast_radius`'.
"""

from testbed.model.experiment import Experiment, Load

EXPERIMENT = Experiment(
    name="boundaries",
    question="Does every pair of workloads get the verdict that policy means, and what gets past the proxies?",
    topology="deny-default",
    planes=("sidecar", "ambient-l4", "ambient", "hybrid", "node-l7"),
    client="client",
    target="catalog",
    load=Load(kind="open", rate_rps=30, connections=2, warmup_s=0.3, window_s=1.0, response_bytes=256),
    rounds=1,
    aa_pair=False,
    claims=("forced-through-proxy", "pod-ip-bypass", "l4-suffices-for-mtls", "weaker-stance", "app-compromise-keys"),
    attackers=("web", "node-m"),
    pairs=("identities", "requests", "modes"),
)  # fmt: skip
