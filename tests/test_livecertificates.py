"""What is said of a lab's certificates at any moment of their life."""

from __future__ import annotations

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

from testbed.livecertificates import Standing, standing
from testbed.model.identity import Identity
from testbed.pki import CertificateAuthority, write_identity
from testbed.runtime.ownership import being

NOW = 1_700_000_000.0
DAY_S = 24 * 3600.0
GOOD = Standing(lifetime_s=DAY_S, ends_at=NOW + DAY_S, renewed_by=7)


@pytest.mark.parametrize(
    ("seen", "after_s", "says"),
    [
        (GOOD, 0, ""),
        (GOOD, DAY_S / 2 + 60, ""),
        (GOOD, DAY_S * 0.61, "overdue, the certificates are good until 2023-11-15T22:13:20Z; its CA (process 7)"),
        (GOOD, DAY_S, "its certificates have ended (until 2023-11-15T22:13:20Z)"),
        (dataclasses.replace(GOOD, renewed_by=None), 1, "its CA has ended, so nothing renews the certificates"),
        (dataclasses.replace(GOOD, renewed_by=None), DAY_S + 1, "its certificates have ended"),
        (dataclasses.replace(GOOD, lifetime_s=4, ends_at=NOW + 4), 3.9, ""),
        (dataclasses.replace(GOOD, ends_at=NOW + 2 * DAY_S), DAY_S, ""),
    ],
)  # fmt: skip
def test_a_warning_says_what_is_wrong_and_the_mend(seen: Standing, after_s: float, says: str) -> None:
    """Nothing while all is well; a renewal that is a little late is no news."""
    warning = seen.warning(NOW + after_s, "pair")

    assert says in warning and bool(says) == bool(warning)
    assert not says or ("lab pair: " in warning and "./inv lab.down pair" in warning)


def test_it_stands_as_the_first_certificate_that_ends(tmp_path: Path) -> None:
    """Of all in all folders; and whoever was to renew them may be gone, its number taken by another."""
    authority = CertificateAuthority(now=NOW)
    for name, lifetime_s in (("a", 100), ("b", 60)):
        leaf = authority.issue(Identity("cluster.local", "default", name), now=NOW, lifetime_s=lifetime_s)
        write_identity(tmp_path / f"proxies/p/identities/{name}", leaf, authority.bundle, uid=os.geteuid())
    me = being(os.getpid())
    assert me is not None
    written = {"ca": dataclasses.asdict(me), "lifetime_s": 100.0, "issued_at": NOW}

    seen = standing(tmp_path, written)
    assert seen is not None and (seen.ends_at, seen.renewed_by) == (NOW + 60, os.getpid())
    other = standing(tmp_path, written | {"ca": {"pid": me.pid, "started": me.started + 1}})
    assert other is not None and other.renewed_by is None and "no longer renewed" in other.text()
    gone = subprocess.Popen(["true"])
    gone.wait()
    dead = standing(tmp_path, written | {"ca": {"pid": gone.pid, "started": 1}})
    assert dead is not None and dead.row()["renewed_by"] is None


def test_a_lab_without_certificates_says_nothing(tmp_path: Path) -> None:
    """Plane none."""
    assert standing(tmp_path, None) is None
