"""What bytes cost: answers of 64 B to 10 MB.

Small requests pay for parsing and wake-ups, large ones for copies and records of TLS. The rate falls as answers grow,
so that every cell moves at most 20 MB a second and none is near what the slowest plane carries; within a cell all
planes have the same.
"""

from experiments.forms import full, quick
from testbed.model.experiment import Axis, Cell, Load

MOST_BYTES_PER_S = 20_000_000
SIZES = {"64 B": 64, "1 KiB": 1024, "16 KiB": 16 * 1024, "128 KiB": 128 * 1024, "1 MB": 10**6, "10 MB": 10**7}


def _load(size: int) -> Load:
    rate_rps = min(200.0, MOST_BYTES_PER_S / size)
    # A handful of requests has no p99: larger answers get a longer window.
    window_s = 2.5 if size <= 128 * 1024 else 5.0
    return Load(
        kind="open", rate_rps=rate_rps, arrival="poisson", connections=8, warmup_s=0.8, window_s=window_s,
        response_bytes=size,
    )  # fmt: skip


EXPERIMENT = quick(
    "payload",
    "How does what a plane adds depend on the size of the answer?",
    load=_load(1024),
    cells=tuple(Cell(name=name, load=_load(size), at=size) for name, size in SIZES.items()),
    axis=Axis(name="size of the answer", unit="B", logarithmic=True),
)

FULL = full(EXPERIMENT)
