"""Is a lab on containers the same lab? The same topology, planes and load on namespaces and on Docker, in every round.

Findings must be the same one by one. Latency and CPU are compared within rounds; what may differ is what runs the
programs: the container's interpreter is that of its image, and seccomp filters its system calls.
"""

from testbed.model.experiment import Experiment, Load

EXPERIMENT = Experiment(
    name="runtime_parity",
    question="Does a plane on Docker hold what it holds on namespaces, at the same latency and CPU?",
    topology="two-zones",
    planes=("none", "none@docker", "sidecar", "sidecar@docker", "ambient", "ambient@docker"),
    client="client",
    target="server",
    load=Load(
        kind="open", rate_rps=200, arrival="poisson", connections=8, warmup_s=0.8, window_s=3.0, response_bytes=256
    ),
    rounds=6,
)
