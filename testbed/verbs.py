"""How a command line becomes a verb: invoke's program with our exit codes, and words that invoke has no place for."""

from __future__ import annotations

import sys

from invoke import ParseError, Program, __version__

from testbed import interrupts


class Verbs(Program):
    """Only how a call that cannot be parsed, or is interrupted, ends."""

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:
        try:
            super().run(with_options_for_words(sys.argv if argv is None else argv), exit)
        except SystemExit as end:
            if isinstance(end.__context__, ParseError):
                sys.exit(2)
            sys.exit(interrupts.EXIT_CODE if isinstance(end.__context__, KeyboardInterrupt) else end.code)


OPTIONAL_WORDS = {
    "capture.start": (1, "where"),
    "capture.stop": (0, "lab"),
    "lab.down": (0, "name"),
    "lab.inspect": (0, "name"),
    "link.show": (0, "name"),
}
"""Verb -> how many words it needs, and the option that takes those behind them (several joined by commas)."""


def with_options_for_words(argv: list[str]) -> list[str]:
    """invoke has no optional positionals: `capture.start LAB a b` becomes `capture.start LAB --where=a,b`."""
    at = next((number for number, word in enumerate(argv) if word in OPTIONAL_WORDS), None)
    if at is None:
        return list(argv)
    needed, option = OPTIONAL_WORDS[argv[at]]
    first = last = at + 1 + needed
    while last < len(argv) and not argv[last].startswith("-"):
        last += 1
    words = argv[first:last]
    return [*argv[:first], *([f"--{option}={','.join(words)}"] if words else []), *argv[last:]]


def run() -> None:
    Verbs(name="Meshbed", binary="inv", version=__version__).run()
