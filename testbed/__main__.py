"""`python -m testbed`: invoke over `tasks.py`, with our exit codes (invoke's own for a wrong call or Ctrl-C is 1)."""

from __future__ import annotations

import sys

from testbed import interrupts


def main() -> None:
    interrupts.install()  # before the slow imports: a signal then ends with 130 as any later one
    try:
        from testbed.verbs import run

        run()
    except KeyboardInterrupt:
        print("interrupted before anything was begun", file=sys.stderr)
        interrupts.deafen()
        sys.exit(interrupts.EXIT_CODE)
    except SystemExit as end:
        if end.code == interrupts.EXIT_CODE:
            interrupts.deafen()
        raise


if __name__ == "__main__":
    main()
