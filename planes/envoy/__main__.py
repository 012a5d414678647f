"""`python -m planes.envoy --config <folder>/config.json`: writes `envoy.json` beside it and becomes Envoy."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main(arguments: list[str]) -> int:
    if len(arguments) != 2 or arguments[0] != "--config":
        print("usage: python -m planes.envoy --config <folder>/config.json", file=sys.stderr)
        return 2
    from planes.envoy import bootstrap
    from planes.envoy.binary import required
    from testbed.errors import TestbedError

    file = Path(arguments[1]).resolve()
    try:
        program = required()
        config, secrets, undone = bootstrap.load(file)
    except TestbedError as error:
        print(f"envoy: {error}", file=sys.stderr)
        return error.exit_code
    for what in undone:
        print(f"envoy: not done by this Envoy's configuration: {what}", file=sys.stderr, flush=True)
    made = file.with_name("envoy.json")
    for path, content in ((made, config), *((file.with_name(name), text) for name, text in secrets.items())):
        path.write_text(json.dumps(content, indent=1))
    # One worker, as our proxies are one thread; hot restart's shared memory is one per machine, whatever the namespace,
    # and a second Envoy fails on it.
    # A key log is written like an access log, every 10 s by default: later than a proof window ends.
    options = ["--disable-hot-restart", "--concurrency", "1", "-l", "warning", "--file-flush-interval-msec", "50"]
    os.execv(program, [str(program), "-c", str(made), *options])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
