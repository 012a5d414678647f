"""What a proxy costs in every role, ours beside Envoy: ztunnel's part is `l4`, sidecar's and waypoint's `l7`."""

from __future__ import annotations

import argparse
import sys

from testbed.bench import l4, l7
from testbed.bench.compared import table


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="./inv bench.proxy --", description=__doc__)
    parser.add_argument("rounds", type=int, nargs="?", default=3, help="rounds of every role (%(default)s)")
    rounds = parser.parse_args(arguments).rounds
    if rounds < 1:
        parser.error("rounds: at least 1")
    print(f"{rounds} rounds of every role: some {10 + 45 * rounds} s", file=sys.stderr)
    print(table(l4.rows(l4.run(rounds=rounds)) | l7.rows(l7.run(rounds=rounds))))


if __name__ == "__main__":
    main(sys.argv[1:])
