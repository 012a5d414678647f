"""Envoy as sidecar and waypoint without capture or control plane: benches on loopback, one service of one endpoint."""

from __future__ import annotations

from pathlib import Path

from planes.envoy import pieces
from planes.envoy.pieces import Identity, Json

_ALPN_HTTP1 = ("istio-http/1.1", "istio", "http/1.1")
_ALPN_HTTP2 = ("istio-h2", "istio", "h2")


def identity(uri: str, folder: Path, name: str) -> Identity:
    """Of `<name>.pem`, `<name>.key` and `roots.pem` in `folder`."""
    paths = {"certificate": f"{name}.pem", "key": f"{name}.key", "roots": "roots.pem"}
    return Identity(uri=uri, **{key: str(folder / file) for key, file in paths.items()})


def _static(listener: Json, clusters: list[Json], *more: Json) -> Json:
    return {
        "bootstrap_extensions": pieces.bootstrap(node="bench", listeners=[], clusters=[])["bootstrap_extensions"],
        "static_resources": {"listeners": [listener, *more], "clusters": clusters},
    }


def _manager(name: str, cluster: str, domains: list[str], **extra: object) -> Json:
    route = {"match": {"prefix": "/"}, "route": {"cluster": cluster, "timeout": "0s"}}
    host: Json = {"name": name, "domains": domains, "routes": [route]}
    return pieces.connection_manager(name, virtual_hosts=[host], extra={"generate_request_id": True, **extra})


def _h1() -> Json:
    return {"explicit_http_config": {"http_protocol_options": {}}}


def sidecar_outbound(
    own: Identity, *, listen: tuple[str, int], host: str, dial: tuple[str, int], expected: str, http2: bool
) -> Json:
    """Requests for `host` on `listen`, by Istio's mutual TLS to `dial`."""
    alpn = _ALPN_HTTP2 if http2 else _ALPN_HTTP1
    common = pieces.tls(own, peers=[pieces.exact(expected)], alpn=alpn)
    transport = pieces.client_tls(common, sni=f"outbound_.80_._.{host}")
    upstream = pieces.cluster(
        "outbound", [pieces.endpoint(*dial)], transport=transport, http=pieces.h2_upstream() if http2 else _h1()
    )
    chain = pieces.chain([_manager("outbound", "outbound", [host])])
    return _static(pieces.listener("outbound", *listen, [chain]), [upstream])


def sidecar_inbound(
    own: Identity, *, listen: tuple[str, int], trust_domain: str, application: tuple[str, int]
) -> Json:
    """Mutual TLS on `listen`, HTTP/1 to the application."""
    peers = [pieces.of_trust_domain(trust_domain)]
    transport = pieces.server_tls(pieces.tls(own, peers=peers, alpn=["h2", "http/1.1"]))
    manager = _manager(
        "inbound", "application", ["*"], forward_client_cert_details="APPEND_FORWARD",
        set_current_client_cert_details={"subject": True, "uri": True},
    )  # fmt: skip
    app = pieces.cluster(
        "application", [pieces.endpoint(*application)], http=_h1(), source=pieces.PASSTHROUGH_SOURCE
    )
    return _static(pieces.listener("inbound", *listen, [pieces.chain([manager], transport=transport)]), [app])


def waypoint(
    own: Identity, *, listen: tuple[str, int], authority: str, trust_domain: str, target: str,
    dial: tuple[str, int], expected: str,
) -> Json:  # fmt: skip
    """CONNECT for `authority` on `listen`, HTTP inside, and CONNECT for `target` to `dial`: Istio's three listeners."""
    server = pieces.server_tls(pieces.tls(own, peers=[pieces.of_trust_domain(trust_domain)], alpn=["h2"]))
    terminator = pieces.connect_terminator("terminate", domains=[authority], cluster_name="main", filters=[])
    client = pieces.client_tls(pieces.tls(own, peers=[pieces.exact(expected)], alpn=["h2"]))
    clusters = [
        pieces.cluster("main", [_inside("main")]),
        pieces.cluster("service", [_inside("originate")], http=_h1()),
        pieces.cluster("hbone", [pieces.endpoint(*dial)], transport=client, http=pieces.h2_upstream()),
    ]
    return _static(
        pieces.listener("terminate", *listen, [pieces.chain([terminator], transport=server)]),
        clusters,
        pieces.internal_listener("main", [pieces.chain([_manager("main", "service", ["*"])])]),
        pieces.internal_listener("originate", [pieces.chain([pieces.tcp_proxy("hbone", authority=target)])]),
    )


def _inside(listener: str) -> Json:
    return {"endpoint": {"address": {"envoy_internal_address": {"server_listener_name": listener, "endpoint_id": "0"}}}}
