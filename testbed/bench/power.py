"""What the statistics find: planted differences in synthetic latencies, by machine and number of rounds.

    python -m testbed.bench.power [--repeats 100] [--aa RUN …]

Needs no root and measures nothing: it runs the rules of a report on latencies made from seeds. `--aa` adds how far the
two halves of the A/A pair were apart in runs of this machine, to say which of the made machines it is like.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from testbed.power import BUSY, IDLE, PERCENTS, REFERENCE, Cell, Host, repeat
from testbed.stats import wilson_interval
from testbed.stopping import StopRule
from testbed.store import Run
from testbed.table import AA, BASE, summarise

P50, P99 = 0.03, 0.05
ROUNDS = (8, 12, 16, 24, 40, 80)
CELLS = (Cell(rate_rps=500, window_s=4), Cell(rate_rps=500, window_s=10))


def row(host: Host, cell: Cell, rounds: int, repeats: int) -> dict[str, object]:
    """How often +3 % of p50 and +5 % of p99 are claimed, and how often the same rounds' A/A pair shows something."""
    rule = StopRule(most_rounds=rounds)
    found = dict.fromkeys(PERCENTS, 0)
    false = dict.fromkeys(PERCENTS, 0)
    for seed in range(repeats):
        for percent, effect in repeat(host, cell, rule, p50=P50, p99=P99, seed=seed).effects.items():
            found[percent] += effect.claimed
            assert effect.aa is not None
            false[percent] += not effect.aa.holds(1.0)
    return {
        "machine": host.name, "requests": round(cell.rate_rps * cell.window_s), "rounds": rounds, "repeats": repeats,
        **{f"found_p{q}": found[q] for q in PERCENTS}, **{f"aa_apart_p{q}": false[q] for q in PERCENTS},
    }  # fmt: skip


def aa_spread(path: Path) -> dict[str, object]:
    """Standard deviation of the logarithm of the pair's ratio, of one run's rounds."""
    summary = summarise(Run.open(path).measurements())
    found: dict[str, object] = {"run": str(path)}
    for q in PERCENTS:
        first, second = summary.rounds(BASE, f"latency_p{q}"), summary.rounds(AA, f"latency_p{q}")
        apart = [math.log(second[n] / first[n]) for n in first.keys() & second.keys()]
        found |= {"rounds": len(apart), f"spread_p{q}": statistics.stdev(apart) if len(apart) > 1 else None}
    return found


def table(rows: Sequence[dict[str, object]]) -> str:
    lines = [
        "| machine | requests a trial | rounds | +3 % p50 found | +5 % p99 found | A/A apart p50, p99 |",
        "|---|---|---|---|---|---|",
    ]
    for one in rows:
        said = []
        for q in PERCENTS:
            of = wilson_interval(int(str(one[f"found_p{q}"])), int(str(one["repeats"])))
            said.append(f"{of.estimate:.0%} [{of.low:.0%}, {of.high:.0%}]")
        apart = ", ".join(f"{int(str(one[f'aa_apart_p{q}'])) / int(str(one['repeats'])):.0%}" for q in PERCENTS)
        lines.append(f"| {one['machine']} | {one['requests']} | {one['rounds']} | {said[0]} | {said[1]} | {apart} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="what the statistics find, from synthetic latencies; some minutes")
    parser.add_argument("--json", action="store_true", help="figures for programs")
    parser.add_argument("--repeats", type=int, default=100, help="synthetic runs for each figure (100)")
    parser.add_argument("--rounds", type=int, nargs="*", default=ROUNDS, help="numbers of rounds")
    parser.add_argument("--aa", type=Path, nargs="*", default=(), metavar="RUN", help="A/A spread of stored runs, too")
    arguments = parser.parse_args()
    rows = [
        row(host, cell, rounds, arguments.repeats)
        for host in (IDLE, REFERENCE, BUSY)
        for cell in CELLS
        for rounds in arguments.rounds
    ]
    spreads = [aa_spread(path) for path in arguments.aa]
    if arguments.json:
        print(json.dumps({"rows": rows, "aa": spreads}, indent=1))
        return
    print(table(rows))
    for spread in spreads:
        print(spread)


if __name__ == "__main__":
    main()
