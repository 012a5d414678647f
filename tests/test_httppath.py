"""Paths normalised as Istio's options say, and templates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.model.httppath import PathNormalization, normalize, template

NONE, BASE = PathNormalization.NONE, PathNormalization.BASE
MERGE, DECODE = PathNormalization.MERGE_SLASHES, PathNormalization.DECODE_AND_MERGE_SLASHES


@pytest.mark.parametrize(
    ("how", "path", "expected"),
    [
        (NONE, b"/../%2Fa../b", b"/../%2Fa../b"),
        (BASE, b"/a/../b", b"/b"),
        (BASE, b"/a/./b", b"/a/b"),
        (BASE, b"/a/b/..", b"/a/"),
        (BASE, b"/a/.", b"/a/"),
        (BASE, b"/../../a", b"/a"),
        (BASE, b"/..", b"/"),
        (BASE, b"/\\da", b"//da"),
        (BASE, b"\\da", b"/da"),
        (BASE, b"/a%2e%2E/b/%2e%2e/c", b"/a../c"),
        (BASE, b"/%61%2Dx%7e", b"/a-x~"),
        (BASE, b"/a%2Fb%5cc", b"/a%2Fb%5cc"),
        (BASE, b"/a//b", b"/a//b"),
        (BASE, b"/a/..?x=/../y%61", b"/?x=/../y%61"),
        (BASE, b"/a?x=/../", b"/a?x=/../"),
        (BASE, b"/.well-known/x", b"/.well-known/x"),
        (BASE, b"/a/...", b"/a/..."),
        (BASE, b"/caf\xc3\xa9", b"/caf%C3%A9"),
        (BASE, b"/a/%%32e%%32e/b", b"/b"),
        (BASE, b"*", b"*"),
        (MERGE, b"/a//b///c", b"/a/b/c"),
        (MERGE, b"//a", b"/a"),
        (MERGE, b"/a%2F%2Fb", b"/a%2F%2Fb"),
        (DECODE, b"/a%2f/b%5Cc", b"/a/b/c"),
        (DECODE, b"/a%2f..%2fb", b"/b"),
    ],
)
def test_normalization(how: PathNormalization, path: bytes, expected: bytes) -> None:
    """Each option does what Istio's documentation shows, and leaves the query alone."""
    assert normalize(path, how) == expected


@given(
    path=st.lists(
        st.sampled_from([b"/", b"//", b".", b"..", b"a", b"%2e", b"%2F", b"\\", b"%41", b"?", b"%", b"32e", b"5c"])
    ).map(lambda parts: b"/" + b"".join(parts)),
    how=st.sampled_from(list(PathNormalization)),
)
def test_what_is_normalised_stays_as_it_is(path: bytes, how: PathNormalization) -> None:
    """Otherwise two proxies in a row would judge different paths."""
    once = normalize(path, how)

    assert normalize(once, how) == once
    if how is not NONE:
        segments = once.partition(b"?")[0].split(b"/")
        assert b".." not in segments and b"." not in segments


def test_template_text_around_its_parts_is_literal() -> None:
    """Dots and stars outside the braces are no patterns."""
    matches = template("/a.b/{*}.c")

    assert matches(b"/a.b/x.c")
    assert not matches(b"/aXb/x.c")
    assert not matches(b"/a.b/x/y.c")
