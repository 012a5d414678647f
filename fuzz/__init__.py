"""Every parser that bytes from outside reach, given bytes that nobody sane would send.

`targets/` holds one small check a parser: it takes any bytes and raises if the parser broke a promise. `corpus/` holds
its seeds and what was found. `mutate` varies them by a seed (for the test suite), `run` by coverage (atheris, where it
is installed). What was run, and what it found, is in docs/fuzzing.md.
"""
