"""What a ztunnel's table of certificates has: fetched when wanted, forgotten when not."""

from __future__ import annotations

from pathlib import Path

import pytest

from planes.mesh.tls import KeyFiles
from planes.ztunnel.certificates import Certificates
from testbed.bench.loopback import CLIENT_URI, SERVER_URI, write_certificates
from testbed.errors import PeerError


@pytest.fixture
def given(tmp_path: Path) -> dict[str, KeyFiles]:
    names = {"client": CLIENT_URI, "server": SERVER_URI}
    write_certificates(tmp_path, names)
    return {
        uri: KeyFiles(certificate=tmp_path / f"{name}.pem", key=tmp_path / f"{name}.key", roots=tmp_path / "roots.pem")
        for name, uri in names.items()
    }


def test_a_certificate_is_fetched_once(given: dict[str, KeyFiles]) -> None:
    """Where its files are is asked when it is wanted, so one that was given later is found."""
    later: dict[str, KeyFiles] = {}
    certificates = Certificates(lambda: later)
    with pytest.raises(PeerError, match=r"no certificate for .*sa/client; the deployer gave none"):
        certificates.fetch(CLIENT_URI)
    later.update(given)

    first = certificates.fetch(CLIENT_URI)
    assert certificates.fetch(CLIENT_URI) is first and certificates.held == [CLIENT_URI]


def test_what_nobody_wants_is_forgotten(given: dict[str, KeyFiles]) -> None:
    """And fetched anew, not remembered, if somebody does again."""
    certificates = Certificates(lambda: given)
    certificates.fetch_all()
    old = certificates.fetch(SERVER_URI)

    assert not certificates.keep_only({CLIENT_URI, SERVER_URI})
    assert certificates.keep_only({CLIENT_URI}) and certificates.held == [CLIENT_URI]
    assert certificates.fetch(SERVER_URI) is not old


def test_a_renewal_counts_for_those_that_changed(given: dict[str, KeyFiles], tmp_path: Path) -> None:
    """One that cannot be read stays, and is told of."""
    certificates = Certificates(lambda: given)
    certificates.fetch_all()
    warned: list[str] = []
    write_certificates(tmp_path, {"client": CLIENT_URI})
    (tmp_path / "server.key").write_text("nonsense")

    assert certificates.reload(warned.append) == {CLIENT_URI}
    assert certificates.held == [CLIENT_URI, SERVER_URI]
    assert len(warned) == 1 and "sa/server" in warned[0] and "the old certificate stays" in warned[0]
