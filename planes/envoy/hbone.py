"""Envoy in the ztunnel role: its HBONE client and its HBONE server as bootstrap dictionaries (facts/envoy). Pure.

What makes CONNECT work, what the defaults would cut, and why circuit breakers are raised: facts/envoy, traps 2 to 5.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

_TYPE = "type.googleapis.com/envoy"
_MANY = 1_000_000


def _address(host: str, port: int) -> dict:
    return {"socket_address": {"address": host, "port_value": port}}


def _h2(*, connect: bool) -> dict:
    options: dict = {
        "max_concurrent_streams": 200,
        "initial_stream_window_size": 4 << 20,
        "initial_connection_window_size": 16 << 20,
    }
    if connect:
        options["allow_connect"] = True
    return options


def _common_tls(folder: Path, name: str, matcher: dict) -> dict:
    return {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3",
                       "ecdh_curves": ["X25519"]},
        "alpn_protocols": ["h2"],
        "tls_certificates": [
            {"certificate_chain": {"filename": str(folder / f"{name}.pem")},
             "private_key": {"filename": str(folder / f"{name}.key")}}
        ],
        "validation_context": {
            "trusted_ca": {"filename": str(folder / "roots.pem")},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": matcher}],
        },
    }  # fmt: skip


def _breakers() -> dict:
    limit = {"max_connections": _MANY, "max_pending_requests": _MANY, "max_requests": _MANY, "max_retries": _MANY}
    return {"thresholds": [limit]}


def client_config(
    *, listen: tuple[str, int], authority: str, dial: tuple[str, int], folder: Path, name: str, expected: str
) -> dict:
    """TCP on `listen` into CONNECT `authority` over mTLS to `dial`, whose URI SAN must be exactly `expected`.

    `folder` holds `<name>.pem`, `<name>.key` and `roots.pem`.
    """
    tcp_proxy = {
        "@type": f"{_TYPE}.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "outbound",
        "cluster": "hbone",
        "idle_timeout": "0s",
        "tunneling_config": {"hostname": authority},
    }
    cluster = {
        "name": "hbone",
        "type": "STATIC",
        "connect_timeout": "10s",
        "circuit_breakers": _breakers(),
        "load_assignment": {
            "cluster_name": "hbone",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(*dial)}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": _h2(connect=False)},
            }
        },
        "transport_socket": {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": f"{_TYPE}.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                "max_session_keys": 0,
                "common_tls_context": _common_tls(folder, name, {"exact": expected}),
            },
        },
    }
    listener = {
        "name": "outbound",
        "address": _address(*listen),
        "filter_chains": [{"filters": [{"name": "envoy.filters.network.tcp_proxy", "typed_config": tcp_proxy}]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def server_config(
    *,
    listen: tuple[str, int],
    authorities: Sequence[str],
    folder: Path,
    name: str,
    trust_domain: str,
    expected: str | None = None,
) -> dict:
    """HBONE on `listen`: CONNECT for one of `authorities` (`ip:port`) goes to that address; else 404.

    A client must prove `expected` exactly, or any identity of `trust_domain`.
    """
    matcher = {"exact": expected} if expected else {"prefix": f"spiffe://{trust_domain}/"}
    route = {
        "match": {"connect_matcher": {}},
        "route": {
            "cluster": "target",
            "timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        },
    }
    manager = {
        "@type": f"{_TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "inbound",
        "codec_type": "HTTP2",
        "stream_idle_timeout": "0s",
        "http2_protocol_options": _h2(connect=True),
        "upgrade_configs": [{"upgrade_type": "CONNECT"}],
        "route_config": {
            "virtual_hosts": [{"name": "inbound", "domains": list(authorities), "routes": [route]}],
        },
        "http_filters": [
            {
                "name": "envoy.filters.http.router",
                "typed_config": {"@type": f"{_TYPE}.extensions.filters.http.router.v3.Router"},
            }
        ],
    }
    listener = {
        "name": "inbound",
        "address": _address(*listen),
        "filter_chains": [
            {
                "transport_socket": {
                    "name": "envoy.transport_sockets.tls",
                    "typed_config": {
                        "@type": f"{_TYPE}.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
                        "require_client_certificate": True,
                        "common_tls_context": _common_tls(folder, name, matcher),
                    },
                },
                "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
            }
        ],
    }
    cluster = {
        "name": "target",
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s",
        "circuit_breakers": _breakers(),
        "original_dst_lb_config": {"use_http_header": True, "http_header_name": ":authority"},
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
