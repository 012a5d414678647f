"""Limits of a trial for tests on a busy machine: what is tested with them is the way, not the figures."""

from __future__ import annotations

from testbed.fidelity import Gates

MACHINE = {
    "send_lag_p99_ms": 1e6, "generator_cpu_share": 10.0, "host_busy": 2.0, "host_steal": 2.0, "queue_wait": 2.0,
    "retransmit_share": 2.0, "drop_share": 2.0, "link_off_share": 1e6,
}  # fmt: skip


def gates(**others: float) -> Gates:
    """Nothing that the machine's mood decides makes a trial invalid; `others` are set beside."""
    return Gates(**{**MACHINE, **others})
