"""Envoy alone in the ztunnel role: its HBONE client and its HBONE server, without a mesh around them. Pure.

For benches and interop on loopback; a lab's Envoys are `bootstrap`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from planes.envoy import pieces
from planes.envoy.pieces import Identity, Json


def client_config(
    *, listen: tuple[str, int], authority: str, dial: tuple[str, int], folder: Path, name: str, expected: str
) -> Json:
    """TCP on `listen` into CONNECT `authority` over mTLS to `dial`, whose URI SAN must be exactly `expected`.

    `folder` holds `<name>.pem`, `<name>.key` and `roots.pem`.
    """
    common = pieces.tls(_identity(folder, name), peers=[pieces.exact(expected)], alpn=["h2"])
    cluster = pieces.cluster(
        "hbone", [pieces.endpoint(*dial)], transport=pieces.client_tls(common), http=pieces.h2_upstream()
    )
    proxy = pieces.tcp_proxy("hbone", authority=authority)
    return _static(pieces.listener("outbound", *listen, [pieces.chain([proxy])]), cluster)


def server_config(
    *,
    listen: tuple[str, int],
    authorities: Sequence[str],
    folder: Path,
    name: str,
    trust_domain: str,
    expected: str | None = None,
) -> Json:
    """HBONE on `listen`: CONNECT for one of `authorities` (`ip:port`) goes to that address; else 404.

    A client must prove `expected` exactly, or any identity of `trust_domain`.
    """
    peer = pieces.exact(expected) if expected else pieces.of_trust_domain(trust_domain)
    transport = pieces.server_tls(pieces.tls(_identity(folder, name), peers=[peer], alpn=["h2"]))
    terminator = pieces.connect_terminator("inbound", domains=authorities, cluster_name="target", filters=[])
    cluster = pieces.original_destination_cluster("target", header=":authority")
    return _static(pieces.listener("inbound", *listen, [pieces.chain([terminator], transport=transport)]), cluster)


def _identity(folder: Path, name: str) -> Identity:
    return Identity(
        uri="", certificate=str(folder / f"{name}.pem"), key=str(folder / f"{name}.key"),
        roots=str(folder / "roots.pem"),
    )  # fmt: skip


def _static(listener: Json, cluster: Json) -> Json:
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
