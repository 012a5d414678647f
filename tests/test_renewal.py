"""When certificates are renewed: half of a life by the clock, soon again after a failure. No time passes here."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from testbed import renewal
from testbed.model.identity import Identity
from testbed.pki import CertificateAuthority, entrust, not_after, rewrite_identity, write_identity

NOW = 1_700_000_000.0
DAY_S = 24 * 3600.0
WHO = Identity("cluster.local", "default", "server")


class Over(Exception):
    """The story has been told."""


class Story:
    """A clock that moves only by sleeping, and what each renewal answers."""

    def __init__(self, *answers: bool, now: float = NOW, skips: float = 0.0) -> None:
        self.now = now
        self.skips = skips
        self.renewed_at: list[float] = []
        self.longest_s = 0.0
        self._answers: Iterator[bool] = iter(answers)

    def wait(self, duration_s: float) -> None:
        assert duration_s > 0
        self.longest_s = max(self.longest_s, duration_s)
        self.now += duration_s + self.skips
        self.skips = 0.0

    def renew(self, now: float) -> bool:
        try:
            answer = next(self._answers)
        except StopIteration:
            raise Over from None
        self.renewed_at.append(now)
        return answer

    def told(self, *, lifetime_s: float) -> list[float]:
        with pytest.raises(Over):
            renewal.keep_renewing(
                self.renew, issued_at=NOW, lifetime_s=lifetime_s, clock=lambda: self.now, wait=self.wait
            )
        return [at - NOW for at in self.renewed_at]


def test_each_life_is_renewed_at_its_half() -> None:
    """A day's after 12 hours, as Istio's agents do, and then every 12 hours."""
    assert Story(True, True, True).told(lifetime_s=DAY_S) == [DAY_S / 2, DAY_S, 1.5 * DAY_S]


def test_a_failure_is_tried_again_long_before_the_end() -> None:
    """A minute later at most; of a short life a twentieth."""
    assert Story(False, False, True).told(lifetime_s=DAY_S) == [DAY_S / 2, DAY_S / 2 + 60, DAY_S / 2 + 120]
    assert Story(False, True, True).told(lifetime_s=100) == [50, 55, 105]


def test_a_machine_that_slept_renews_when_it_wakes() -> None:
    """The clock has moved on by days; the first look at it is within a minute of waking."""
    story = Story(True, skips=3 * DAY_S)
    assert story.told(lifetime_s=DAY_S) == [3 * DAY_S + 60]
    assert story.longest_s == 60


def test_who_starts_late_renews_at_once() -> None:
    """The half is over already."""
    assert Story(True, now=NOW + DAY_S).told(lifetime_s=DAY_S) == [DAY_S]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    authority = CertificateAuthority(now=NOW)
    write_identity(tmp_path / "who", authority.issue(WHO, now=NOW, lifetime_s=60), authority.bundle, uid=os.geteuid())
    return tmp_path / "who"


def job(folders: list[Path], write: Callable[[dict], bytes]) -> bytes:
    import sys

    return write(
        {
            "path": sys.path,
            "authority": CertificateAuthority(now=NOW).handed_over().decode(),
            "lifetime_s": 60.0,
            "identities": [["cluster.local", "default", "server", str(folder)] for folder in folders],
        }
    )


def as_bytes(value: dict) -> bytes:
    import json

    return json.dumps(value).encode()


def test_every_folder_gets_a_leaf_that_lives_from_now(place: Path) -> None:
    """With a key of its own, all three files replaced."""
    before = {path.name: path.read_bytes() for path in place.glob("*.pem")}

    assert renewal.sign(job([place], as_bytes), NOW + 30) == 0
    assert not_after(place / "cert.pem") == NOW + 90
    after = {path.name: path.read_bytes() for path in place.glob("*.pem")}
    assert after.keys() == before.keys() and all(after[name] != before[name] for name in after)


def test_one_folder_that_is_gone_does_not_keep_the_others_from_theirs(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is told, and counts as a failure, so that it is tried again."""
    assert renewal.sign(job([place.parent / "gone", place], as_bytes), NOW + 30) == 1
    assert not_after(place / "cert.pem") == NOW + 90
    said = capfd.readouterr().err
    assert f"{place.parent / 'gone'}: No such file or directory" in said and "renewed 1 of 2" in said


def test_a_child_signs_and_its_failure_is_known(place: Path, tmp_path: Path) -> None:
    """Here nothing of what it imports stays."""
    for folders, done in (([place], True), ([tmp_path / "gone"], False)):
        memory = os.memfd_create("job")
        try:
            os.write(memory, job(folders, as_bytes))
            assert renewal.in_child(memory, [], NOW + 30) is done
        finally:
            os.close(memory)
    nothing = os.memfd_create("job")
    try:
        assert renewal.in_child(nothing, [], NOW) is False
    finally:
        os.close(nothing)


def test_files_in_an_entrusted_folder_are_for_its_group_to_read(place: Path) -> None:
    """And for nobody else; the folder's group passes on to them."""
    authority = CertificateAuthority(now=NOW)
    entrust(place, os.geteuid(), os.getegid())
    rewrite_identity(place, authority.issue(WHO, now=NOW, lifetime_s=60), authority.bundle)

    assert stat.S_IMODE(place.stat().st_mode) == 0o2750
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.glob("*.pem")} == {0o640}
    made = (place / "key.pem").resolve().parent
    assert (stat.S_IMODE(made.stat().st_mode), list(place.glob("..of.*"))) == (0o2750, [made])


def test_an_authority_that_was_handed_over_signs_as_the_same() -> None:
    """Same root, same trust domain; what it signs fits what the first one handed out."""
    from cryptography import x509

    first = CertificateAuthority(now=NOW, trust_domain="other.example")
    second = CertificateAuthority.taken_over(first.handed_over())

    assert (second.bundle, second.trust_domain) == (first.bundle, "other.example")
    assert second.handed_over() == first.handed_over()
    root = x509.load_pem_x509_certificate(first.bundle)
    made = [x509.load_pem_x509_certificate(a.issue(WHO, now=NOW).cert_pem) for a in (first, second)]
    for leaf in made:
        leaf.verify_directly_issued_by(root)
    assert [e.oid for e in made[0].extensions] == [e.oid for e in made[1].extensions]
    assert made[0].extensions.get_extension_for_class(x509.AuthorityKeyIdentifier) == (
        made[1].extensions.get_extension_for_class(x509.AuthorityKeyIdentifier)
    )
