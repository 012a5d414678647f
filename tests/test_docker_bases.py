"""Which base: a decision over what was asked, what the engine holds, and what can be made here."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.docker import bases
from testbed.docker.bases import AUTO, Attempt, BaseKind, How

OFFICIAL, DEBIAN, PACKED, GIVEN = BaseKind
USE, PULL, MAKE = How
KINDS = st.sets(st.sampled_from([OFFICIAL, DEBIAN, PACKED]))
MAKEABLE = st.sampled_from([(PACKED,), (DEBIAN, PACKED)])


@pytest.mark.parametrize(
    ("asked", "present", "makeable", "expected"),
    [
        (AUTO, set(), {DEBIAN, PACKED}, [(OFFICIAL, PULL), (DEBIAN, MAKE), (PACKED, MAKE)]),
        (AUTO, set(), {PACKED}, [(OFFICIAL, PULL), (PACKED, MAKE)]),
        (AUTO, {PACKED}, {DEBIAN, PACKED}, [(PACKED, USE), (OFFICIAL, PULL), (DEBIAN, MAKE)]),
        (AUTO, {DEBIAN, OFFICIAL}, {PACKED}, [(OFFICIAL, USE), (DEBIAN, USE), (PACKED, MAKE)]),
        ("packed", {OFFICIAL}, {DEBIAN, PACKED}, [(PACKED, MAKE)]),
        ("packed", {PACKED}, {DEBIAN, PACKED}, [(PACKED, USE)]),
        ("debian", set(), {PACKED}, [(DEBIAN, MAKE)]),
        ("official", set(), {DEBIAN, PACKED}, [(OFFICIAL, PULL)]),
        ("mine:1", set(), {DEBIAN, PACKED}, [(GIVEN, PULL)]),
        ("mine:1", {GIVEN}, {DEBIAN, PACKED}, [(GIVEN, USE)]),
    ],
)
def test_bases_are_tried_in_this_order(
    asked: str, present: set[BaseKind], makeable: set[BaseKind], expected: list[tuple[BaseKind, How]]
) -> None:
    """At hand, then pulled, then of Debian packages, then packed; a base that is named is the only one."""
    assert bases.attempts(asked, present=present, makeable=makeable) == [Attempt(*one) for one in expected]


@given(KINDS, MAKEABLE)
def test_left_to_itself_a_packed_base_is_always_among_them(
    present: set[BaseKind], makeable: tuple[BaseKind, ...]
) -> None:
    """It needs neither registry nor archive. None is tried twice, and the network not before what is at hand."""
    tried = bases.attempts(AUTO, present=present, makeable=makeable)

    assert len({attempt.kind for attempt in tried}) == len(tried)
    assert PACKED in {attempt.kind for attempt in tried}
    hows = [attempt.how for attempt in tried]
    assert hows == sorted(hows, key=[USE, PULL, MAKE].index)
    assert {attempt.kind for attempt in tried if attempt.how is USE} == present


@pytest.mark.parametrize(
    ("asked", "kind", "reference", "suits"),
    [
        (AUTO, "debian", "meshbed-base:x", True),
        ("debian", "debian", "meshbed-base:x", True),
        ("packed", "debian", "meshbed-base:x", False),
        ("mine:1", "given", "mine:1", True),
        ("mine:1", "given", "mine:2", False),
        ("packed", "given", "packed", False),
    ],
)
def test_an_image_is_found_again_only_on_the_base_asked_for(asked: str, kind: str, reference: str, suits: bool) -> None:
    assert bases.suits(asked, kind, reference) is suits


def test_the_environment_chooses_where_nobody_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--base` comes first; an empty variable is none."""
    monkeypatch.delenv("MESHBED_IMAGE_BASE", raising=False)
    assert bases.wanted(AUTO) == AUTO
    monkeypatch.setenv("MESHBED_IMAGE_BASE", "packed")
    assert (bases.wanted(AUTO), bases.wanted("debian")) == ("packed", "debian")
    monkeypatch.setenv("MESHBED_IMAGE_BASE", "")
    assert bases.wanted(AUTO) == AUTO


def test_bases_are_named_for_this_interpreters_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled packages are copied from here, so no other minor version will do; another date is another base."""
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    names = bases.references()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")

    assert names[OFFICIAL] == f"python:{version}-slim-bookworm"
    assert all(version in name for name in names.values())
    assert bases.references()[DEBIAN] != names[DEBIAN] and bases.references()[PACKED] != names[PACKED]
