"""`python -m planes.ztunnel --config <folder>/config.json`"""

from __future__ import annotations

import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] != "--config":
        print("usage: python -m planes.ztunnel --config <folder>/config.json", file=sys.stderr)
        return 2
    from planes.mesh import suites

    suites.restrict()
    from planes.mesh import net
    from planes.ztunnel import program, settings
    from testbed.errors import TestbedError

    loop = net.new_loop()
    try:
        loop.run_until_complete(program.run(settings.load(Path(arguments[1]).resolve())))
    except TestbedError as error:
        print(f"ztunnel: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
