"""How a command line becomes a verb: invoke's program with our exit codes, and words that invoke has no place for."""

from __future__ import annotations

import sys

from invoke import ParseError, Program, __version__

from testbed import interrupts


class Verbs(Program):
    """Only how a call that cannot be parsed, or is interrupted, ends."""

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:
        try:
            super().run(with_joined_places(sys.argv if argv is None else argv), exit)
        except SystemExit as end:
            if isinstance(end.__context__, ParseError):
                sys.exit(2)
            sys.exit(interrupts.EXIT_CODE if isinstance(end.__context__, KeyboardInterrupt) else end.code)


def with_joined_places(argv: list[str]) -> list[str]:
    """`capture.start LAB a b c` as invoke takes it: `capture.start LAB a,b,c` (its positionals are one word each)."""
    if "capture.start" not in argv:
        return list(argv)
    first = argv.index("capture.start") + 2
    last = first
    while last < len(argv) and not argv[last].startswith("-"):
        last += 1
    return [*argv[:first], *([",".join(argv[first:last])] if last > first else []), *argv[last:]]


def run() -> None:
    Verbs(name="Meshbed", binary="inv", version=__version__).run()
