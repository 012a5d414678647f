"""How a command line becomes a verb: invoke's program with our exit codes, and words that invoke has no place for."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

from invoke import ParseError, Program, __version__

from testbed import interrupts


class Verbs(Program):
    """Only how a call that cannot be parsed, or is interrupted, ends, and what it is told."""

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:
        try:
            super().run(with_options_for_words(sys.argv if argv is None else argv), exit)
        except SystemExit as end:
            if isinstance(end.__context__, ParseError):
                sys.exit(2)
            sys.exit(interrupts.EXIT_CODE if isinstance(end.__context__, KeyboardInterrupt) else end.code)

    def parse_tasks(self) -> None:
        try:
            super().parse_tasks()
        except ParseError as error:
            verb = error.context
            options = [flag for flag in verb.flags if flag.startswith("--")] if verb else []
            told = mended(str(error), verb.name if verb else "", options, self.parser.contexts)
            raise ParseError(told, verb) from None


def mended(said: str, verb: str, options: Iterable[str], verbs: Iterable[str]) -> str:
    """What invoke says of a call it cannot parse, as what, where and mend. `verb`: where it stopped, or empty."""
    from testbed.yamlpos import suggestion

    if found := re.fullmatch(r"No idea what '(.*)' is!", said, re.DOTALL):
        word = found[1]
        if not verb:
            hint = suggestion(word, verbs).partition("known: ")[0]
            return f"no {'option' if word.startswith('-') else 'verb'} is called {word!r}; {hint}./inv --list names all"
        if word.startswith("-"):
            return f"{verb}: no option is called {word!r}; {suggestion(word, options)}"
        return f"{verb}: {word!r} is one word too many, and no verb; ./inv --help {verb}"
    if found := re.fullmatch(r"'.*' did not receive required positional arguments: (.*)", said):
        words = found[1].replace("'", "").upper().replace(", ", " ")
        return f"{verb}: {words} must be given; ./inv --help {verb}"
    if found := re.fullmatch(r"Flag <Argument: ([^ >]+).*> needed value and was not given one!", said):
        return f"{verb}: --{found[1].replace('_', '-')} takes a value; ./inv --help {verb}".removeprefix(": ")
    return said


OPTIONAL_WORDS = {
    "capture.start": (1, "where"),
    "capture.stop": (0, "lab"),
    "lab.down": (0, "name"),
    "lab.inspect": (0, "name"),
    "link.show": (0, "name"),
}
"""Verb -> how many words it needs, and the option that takes those behind them (several joined by commas)."""


SWITCHES = ("--dry-run", "--json", "-d", "-j")
"""Options of those verbs that take no value, so that a word behind one is a word of the verb."""


def with_options_for_words(argv: list[str]) -> list[str]:
    """invoke has no optional positionals: `capture.start LAB a b` becomes `capture.start LAB --where=a,b`."""
    at = next((number for number, word in enumerate(argv) if word in OPTIONAL_WORDS), None)
    if at is None:
        return list(argv)
    needed, option = OPTIONAL_WORDS[argv[at]]
    kept, words = argv[: at + 1], []
    rest = iter(argv[at + 1 :])
    for word in rest:
        if not word.startswith("-"):
            words.append(word)
            continue
        kept.append(word)
        if word == "--":
            break
        if word not in SWITCHES and "=" not in word:
            kept += [value for value in [next(rest, None)] if value is not None]
    kept[at + 1 : at + 1] = words[:needed]
    if words[needed:]:
        kept.insert(at + 1 + needed, f"--{option}={','.join(words[needed:])}")
    return [*kept, *rest]


def run() -> None:
    Verbs(name="Meshbed", binary="inv", version=__version__).run()
