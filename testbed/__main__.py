"""`python -m testbed`: invoke over `tasks.py`, with our exit codes (invoke's own for a wrong call is 1)."""

from __future__ import annotations

import sys

from invoke import ParseError, Program, __version__


class Verbs(Program):
    """Only how a call that cannot be parsed ends."""

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:
        try:
            super().run(argv, exit)
        except SystemExit as end:
            wrong_call = isinstance(end.__context__, ParseError)
            sys.exit(2 if wrong_call else end.code)


if __name__ == "__main__":
    Verbs(name="Meshbed", binary="inv", version=__version__).run()
