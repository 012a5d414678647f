"""What is found at a boundary, from outcomes of every kind: also those that an honest plane never shows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from testbed import boundaries
from testbed.model.experiment import Finding, Result
from testbed.model.identity import Identity
from testbed.model.placement import Claim, Encryption, Placement
from testbed.pki import KEY_FILE

CLIENT = Identity("cluster.local", "default", "client")
OTHER = Identity("cluster.local", "secure", "vault")
MESHED = Claim(source="client", destination="server", segment="wire", encryption=Encryption.MTLS)


@pytest.fixture
def program() -> Iterator[subprocess.Popen[bytes]]:
    """Something that runs and sees the test's own files."""
    running = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield running
    running.kill()
    running.wait()


def deployment(folder: Path, *, apps: dict[str, object], proxies: dict[str, object]) -> SimpleNamespace:
    """Each proxy is placed to hold the client's identity."""
    lab = SimpleNamespace(folder=folder, apps=apps)
    placed = [SimpleNamespace(name=name, role="ztunnel", identities=(CLIENT,)) for name in proxies]
    return SimpleNamespace(
        lab=lab,
        proxies=proxies,
        placement=SimpleNamespace(plane="p", proxies=placed, claims=(MESHED,)),
        folder=lambda name: folder / "proxies" / name,
    )


def key(folder: Path, proxy: str, identity: Identity) -> None:
    place = folder / "proxies" / proxy / "identities" / boundaries.file_name(identity)
    place.mkdir(parents=True)
    (place / KEY_FILE).write_text("key")


class TestIdentitiesHeld:
    def test_a_proxy_that_reaches_its_own_keys_only_holds(self, tmp_path: Path, program: subprocess.Popen) -> None:
        """The count is of what it can read."""
        key(tmp_path, "z", CLIENT)

        found = boundaries.identities_held(deployment(tmp_path, apps={}, proxies={"z": program}))

        assert (found.result, found.value) == (Result.HOLDS, "ztunnel: 1")

    def test_a_proxy_that_reaches_anothers_key_is_broken(self, tmp_path: Path, program: subprocess.Popen) -> None:
        """Its capture would give that workload away too."""
        key(tmp_path, "z", CLIENT)
        key(tmp_path, "y", OTHER)

        found = boundaries.identities_held(deployment(tmp_path, apps={}, proxies={"z": program}))

        assert (found.result, found.value) == (Result.BROKEN, "ztunnel: 2")

    def test_a_proxy_that_does_not_reach_its_own_key_is_broken(self, tmp_path: Path, program: subprocess.Popen) -> None:
        """Then something else than it was placed to do is measured."""
        (tmp_path / "proxies" / "z").mkdir(parents=True)

        found = boundaries.identities_held(deployment(tmp_path, apps={}, proxies={"z": program}))

        assert (found.result, found.value) == (Result.BROKEN, "ztunnel: 0")

    def test_an_application_that_reaches_a_key_is_broken(self, tmp_path: Path, program: subprocess.Popen) -> None:
        """It needs none at all."""
        key(tmp_path, "z", CLIENT)
        (tmp_path / "apps" / "server").mkdir(parents=True)

        found = boundaries.identities_held(deployment(tmp_path, apps={"server": program}, proxies={}))

        assert found.result is Result.BROKEN and "server 1" in found.evidence

    def test_what_cannot_be_looked_into_is_no_evidence(self, tmp_path: Path, program: subprocess.Popen) -> None:
        """That no key was found where nobody looked proves nothing."""
        key(tmp_path, "z", CLIENT)
        gone = SimpleNamespace(pid=2**22 + 1)

        found = boundaries.identities_held(deployment(tmp_path, apps={"server": gone}, proxies={"z": program}))

        assert found.result is Result.NO_EVIDENCE and "not seen from inside: server" in found.evidence

    def test_a_key_that_was_found_counts_though_another_place_was_not_seen(
        self, tmp_path: Path, program: subprocess.Popen
    ) -> None:
        """Ignorance of one component is no excuse for another."""
        key(tmp_path, "z", OTHER)
        gone = SimpleNamespace(pid=2**22 + 1)

        found = boundaries.identities_held(deployment(tmp_path, apps={"server": gone}, proxies={"z": program}))

        assert found.result is Result.BROKEN


def packet_finding(segment: str, value: str, result: Result) -> Finding:
    return Finding(
        id=f"packets.p/client>server/{segment}/hidden", plane="p", segment=segment, statement="", result=result,
        evidence="", packets=(7,), value=value,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("findings", "result", "value"),
    [
        ([("a", "0 of 8 readable", Result.HOLDS)], Result.HOLDS, "0 of 1 segments"),
        (
            [("a", "0 of 8 readable", Result.HOLDS), ("b", "0 of 8 readable", Result.NO_EVIDENCE)],
            Result.NO_EVIDENCE,
            "0 of 2 segments",
        ),
        (
            [("a", "1 of 8 readable", Result.BROKEN), ("b", "0 of 8 readable", Result.NO_EVIDENCE)],
            Result.BROKEN,
            "1 of 2 segments",
        ),
        ([], Result.NO_EVIDENCE, "0 of 0 segments"),
    ],
)
def test_plaintext_on_one_segment_outweighs_ignorance_of_another(
    tmp_path: Path, findings: list[tuple[str, str, Result]], result: Result, value: str
) -> None:
    """A leak is a leak, and silence is no proof."""
    plane = SimpleNamespace(placement=Placement(plane="p", claims=(MESHED,)))

    found = boundaries.plaintext_visible(plane, [packet_finding(*f) for f in findings])

    assert (found.result, found.value) == (result, value)
