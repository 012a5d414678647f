"""The report on a single file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from testbed.errors import UsageError
from testbed.observe import pcapng
from testbed.verify.dissect import verify_file
from tests.recorded import TO_CLIENT, TO_SERVER, Authority, Laid, Tunnels, hbone


def test_a_file_tells_of_tunnels_and_of_cleartext(tmp_path: Path) -> None:
    """TLS with identities and CONNECTs once the keys are there; HTTP in clear always."""
    ids = {n: f"spiffe://cluster.local/ns/n/sa/{n}" for n in ("client", "server")}
    exchange, keys = hbone(Authority(tmp_path), tmp_path, Tunnels(bodies=[(b"q", b"r")]), **ids)
    lay = Laid()
    lay.point("a:eth0")
    lay.exchange(exchange)
    clear = [(TO_SERVER, b"GET /x HTTP/1.1\r\n\r\n"), (TO_CLIENT, b"HTTP/1.1 200 OK\r\n\r\n")]
    lay.exchange(clear, client=("10.0.1.2", 9), server=("10.0.2.2", 80))
    pcapng.write(tmp_path / "c.pcapng", lay.recording())
    (tmp_path / "k.txt").write_text(keys)

    blind = verify_file(tmp_path / "c.pcapng", None)
    seeing = verify_file(tmp_path / "c.pcapng", tmp_path / "k.txt")

    assert ids["client"] not in blind.text and "TLS 1.3" in blind.text and "READABLE: GET /x HTTP/1.1" in blind.text
    assert ids["client"] in seeing.text and ids["server"] in seeing.text
    assert "CONNECT 10.0.2.2:8080 → 200  baggage: k8s.namespace.name=default" in seeing.text
    assert json.loads(seeing.json)["connections"][0]["alpn"] == "h2"


def test_a_missing_key_log_is_named(tmp_path: Path) -> None:
    """Rather than reported as traffic that cannot be opened."""
    pcapng.write(tmp_path / "c.pcapng", Laid().recording())

    with pytest.raises(UsageError, match="no-keys"):
        verify_file(tmp_path / "c.pcapng", tmp_path / "no-keys")
