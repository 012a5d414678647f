"""HTTP connection managers as Istio sets them up for sidecars and waypoints, and the chains they stand in. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from planes.envoy import pieces
from planes.envoy.pieces import TYPE, Json
from testbed.model.httppath import PathNormalization

HTTP1_PROTOCOLS = ("http/1.0", "http/1.1")
HTTP2_PROTOCOLS = ("h2c",)
"""What the http inspector calls the protocols it finds; they choose among chains as ALPN would."""


def manager(
    stat_prefix: str,
    virtual_hosts: Sequence[Json],
    *,
    filters: Sequence[Json] = (),
    paths: PathNormalization = PathNormalization.BASE,
    forward_certificate: bool = False,
) -> Json:
    """`forward_certificate`: adds who called to x-forwarded-client-cert; else that field is dropped."""
    extra: Json = {
        "normalize_path": paths is not PathNormalization.NONE,
        "merge_slashes": paths in (PathNormalization.MERGE_SLASHES, PathNormalization.DECODE_AND_MERGE_SLASHES),
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http_protocol_options": {"accept_http_10": True},
        "http2_protocol_options": pieces.http2(),
        "server_header_transformation": "PASS_THROUGH",
        "strip_trailing_host_dot": True,
        "proxy_100_continue": True,
    }
    if paths is PathNormalization.DECODE_AND_MERGE_SLASHES:
        extra["path_with_escaped_slashes_action"] = "UNESCAPE_AND_FORWARD"
    if forward_certificate:
        extra["forward_client_cert_details"] = "APPEND_FORWARD"
        extra["set_current_client_cert_details"] = {"subject": True, "uri": True}
    made = pieces.connection_manager(stat_prefix, virtual_hosts=virtual_hosts, filters=filters, extra=extra)
    # Names are compared without their port, as Istio has it.
    made["typed_config"]["route_config"]["ignore_port_in_host_matching"] = True  # type: ignore[index]
    return made


def offering(alpn: Sequence[str]) -> Json:
    """A network filter before a connection manager: what its requests' mutual TLS offers upstream."""
    return {
        "name": "istio.alpn",
        "typed_config": {
            "@type": f"{TYPE}.extensions.filters.network.set_filter_state.v3.Config",
            "on_new_connection": [pieces.filter_state("envoy.network.application_protocols", None, ",".join(alpn))],
        },
    }
