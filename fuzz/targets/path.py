"""Normalised paths stay as they are when normalised again: else a proxy judges one path and the next serves another."""

from __future__ import annotations

from testbed.model.httppath import PathNormalization, normalize, template


def check(data: bytes) -> None:
    """Up to the first NUL a path (as codecs let it through), behind it a template."""
    path, _, pattern = data.partition(b"\0")
    for how in PathNormalization:
        once = normalize(path, how)
        assert normalize(once, how) == once, f"{how}: {once!r} changes again"
        assert len(once) <= 3 * len(path) + 1, "a path grew"
        before, _, _ = once.partition(b"?")
        if how is not PathNormalization.NONE and path.startswith((b"/", b"\\")):
            assert before.startswith(b"/") and b"\\" not in before
            assert not {b".", b".."} & set(before.split(b"/")), f"{how}: dots are left in {before!r}"
    template(pattern.decode("latin-1"))(path)
