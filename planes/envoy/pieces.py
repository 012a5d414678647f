"""Pieces of an Envoy configuration that every role is made of, as the dictionaries its JSON takes. Pure.

Where they leave Envoy's defaults: its timeouts (routes 15 s, idle streams 5 min, idle TCP 1 h) would cut what is slow,
its circuit breakers cap a cluster at 1,024 connections or requests, which are tunnels here; its clients would resume
TLS sessions, and two Envoys would agree on a post-quantum key exchange, an eighth more CPU than the others' X25519.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

TYPE = "type.googleapis.com/envoy"
PASSTHROUGH_SOURCE = "127.0.0.6"
"""Istio's inbound passthrough source: what leaves from it is not captured again (facts/hbone 4.1)."""
READY_PORT = 15021
ADMIN_PORT = 15000
LEAF, ROOTS = "leaf", "roots"
"""Names of secrets."""
_MANY = 1_000_000
_SOL_SOCKET, _SO_MARK = 1, 36  # Linux's numbers

Json = dict[str, object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A SPIFFE identity that a proxy holds, with its PEM files (paths as Envoy will open them)."""

    uri: str
    certificate: str
    key: str
    roots: str
    renewed: bool = False
    """Its files are replaced while Envoy runs: it is told so by the files of `secrets` (SDS), which must lie in its
    working directory."""


def exact(uri: str) -> Json:
    return {"exact": uri}


def of_trust_domain(trust_domain: str) -> Json:
    return {"prefix": f"spiffe://{trust_domain}/"}


def address(host: str, port: int) -> Json:
    return {"socket_address": {"address": host, "port_value": port}}


def http2(*, connect: bool = False) -> Json:
    """Istio's windows and stream limit (facts/hbone 1.6)."""
    options: Json = {
        "max_concurrent_streams": 200,
        "initial_stream_window_size": 4 << 20,
        "initial_connection_window_size": 16 << 20,
    }
    return options | {"allow_connect": True} if connect else options


def tls(
    identity: Identity,
    *,
    peers: Sequence[Json],
    alpn: Sequence[str],
    keylog: str | None = None,
    lowest: str = "TLSv1_3",
) -> Json:
    """`common_tls_context`: a URI SAN of the peer must match one of `peers`."""
    context: Json = {
        "tls_params": {
            "tls_minimum_protocol_version": lowest,
            "tls_maximum_protocol_version": "TLSv1_3",
            "ecdh_curves": ["X25519"],
        },
        "alpn_protocols": list(alpn),
    }
    names: Json = {"match_typed_subject_alt_names": [{"san_type": "URI", "matcher": matcher} for matcher in peers]}
    if identity.renewed:
        context["tls_certificate_sds_secret_configs"] = [_secret(LEAF)]
        context["combined_validation_context"] = {
            "default_validation_context": names, "validation_context_sds_secret_config": _secret(ROOTS),
        }  # fmt: skip
    else:
        context["tls_certificates"] = [_certificate(identity)]
        context["validation_context"] = {**_trusted(identity), **names}
    if keylog is not None:
        context["key_log"] = {"path": keylog}
    return context


def _certificate(identity: Identity) -> Json:
    return {"certificate_chain": {"filename": identity.certificate}, "private_key": {"filename": identity.key}}


def _trusted(identity: Identity) -> Json:
    return {"trusted_ca": {"filename": identity.roots}}


def _secret(name: str) -> Json:
    source = {"path_config_source": {"path": f"./{name}.sds.json"}, "resource_api_version": "V3"}
    return {"name": name, "sds_config": source}


def secrets(identity: Identity) -> dict[str, Json]:
    """By name of file. Envoy reads what they name anew when something is moved into the folder where that lies: the
    link through which all three are replaced in one step (`testbed.pki.write_identity`)."""
    watched = {"watched_directory": {"path": identity.certificate.rpartition("/")[0] or "."}}
    made = {
        LEAF: {"tls_certificate": _certificate(identity) | watched},
        ROOTS: {"validation_context": _trusted(identity) | watched},
    }
    kind = f"{TYPE}.extensions.transport_sockets.tls.v3.Secret"
    return {
        f"{name}.sds.json": {"resources": [{"@type": kind, "name": name, **secret}]} for name, secret in made.items()
    }


def server_tls(common: Json) -> Json:
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"{TYPE}.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "require_client_certificate": True,
            "disable_stateless_session_resumption": True,
            "common_tls_context": common,
        },
    }


def client_tls(common: Json, *, sni: str = "") -> Json:
    context: Json = {
        "@type": f"{TYPE}.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        "max_session_keys": 0,
        "common_tls_context": common,
    }
    if sni:
        context["sni"] = sni
    return {"name": "envoy.transport_sockets.tls", "typed_config": context}


def endpoint(host: str, port: int) -> Json:
    return {"endpoint": {"address": address(host, port)}}


def cluster(
    name: str,
    endpoints: Sequence[Json],
    *,
    transport: Json | None = None,
    http: Json | None = None,
    source: str | None = None,
    policy: str = "RANDOM",
) -> Json:
    """A static cluster. `http` is its `explicit_http_config`; `source` the address its sockets are bound to."""
    made: Json = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "10s",
        "lb_policy": policy,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": list(endpoints)}]},
    }
    return _completed(made, transport, http, source)


def original_destination_cluster(
    name: str,
    *,
    transport: Json | None = None,
    http: Json | None = None,
    source: str | None = None,
    header: str | None = None,
    port: int | None = None,
) -> Json:
    """Dials where the connection was going, or what `header` says; `port` overrides the port."""
    made: Json = {"name": name, "type": "ORIGINAL_DST", "lb_policy": "CLUSTER_PROVIDED", "connect_timeout": "10s"}
    options: Json = {}
    if header is not None:
        options |= {"use_http_header": True, "http_header_name": header}
    if port is not None:
        options["upstream_port_override"] = port
    if options:
        made["original_dst_lb_config"] = options
    return _completed(made, transport, http, source)


def _completed(made: Json, transport: Json | None, http: Json | None, source: str | None) -> Json:
    made["circuit_breakers"] = {
        "thresholds": [
            {"max_connections": _MANY, "max_pending_requests": _MANY, "max_requests": _MANY, "max_retries": _MANY}
        ]
    }
    if transport is not None:
        made["transport_socket"] = transport
    if http is not None:
        made["typed_extension_protocol_options"] = {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{TYPE}.extensions.upstreams.http.v3.HttpProtocolOptions", **http,
            }
        }  # fmt: skip
    if source is not None:
        made["upstream_bind_config"] = {"source_address": {"address": source, "port_value": 0}}
    return made


def h2_upstream() -> Json:
    return {"explicit_http_config": {"http2_protocol_options": http2()}}


def filter_state(key: str, factory: str | None, text: str, *, shared: bool = False) -> Json:
    """One entry of a `set_filter_state` filter; `factory` where the key is not itself one, `shared` with upstreams."""
    made: Json = {"object_key": key, "format_string": {"text_format_source": {"inline_string": text}}}
    if factory is not None:
        made["factory_key"] = factory
    if shared:
        made["shared_with_upstream"] = "ONCE"
    return made


def tcp_proxy(cluster_name: str, *, authority: str | None = None, baggage: str = "") -> Json:
    """`authority`: into CONNECT for it instead of plain bytes; Envoy's format strings are understood."""
    config: Json = {
        "@type": f"{TYPE}.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": cluster_name,
        "cluster": cluster_name,
        "idle_timeout": "0s",
    }
    if authority is not None:
        tunnel: Json = {"hostname": authority}
        if baggage:
            text = baggage.replace("%", "%%")
            tunnel["headers_to_add"] = [{"header": {"key": "baggage", "value": text}}]
        config["tunneling_config"] = tunnel
    return {"name": "envoy.filters.network.tcp_proxy", "typed_config": config}


def connection_manager(
    stat_prefix: str,
    *,
    virtual_hosts: Sequence[Json],
    filters: Sequence[Json] = (),
    codec: str = "AUTO",
    extra: Mapping[str, object] | None = None,
) -> Json:
    """HTTP. No timeouts of Envoy's own: they would cut long bodies and quiet streams."""
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": f"{TYPE}.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": stat_prefix,
            "codec_type": codec,
            "stream_idle_timeout": "0s",
            "route_config": {"name": stat_prefix, "virtual_hosts": list(virtual_hosts), "validate_clusters": False},
            "http_filters": [*filters, router()],
            **(extra or {}),
        },
    }


def router() -> Json:
    return {
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": f"{TYPE}.extensions.filters.http.router.v3.Router"},
    }


def connect_terminator(
    stat_prefix: str, *, domains: Sequence[str], cluster_name: str, filters: Sequence[Json],
    refusals: Mapping[int, int] | None = None, others: Sequence[Json] = (),
) -> Json:  # fmt: skip
    """An HBONE server: CONNECT for an authority among `domains`, to `cluster_name`; any other is answered 404.

    All of it is needed: the upgrade at the manager and at the route, the matcher, `allow_connect`.
    `refusals` are statuses of Envoy's own answers and what is said instead; `others` are more `connect_host`s.
    """
    extra: Json = {}
    if refusals:
        extra["local_reply_config"] = {"mappers": [_said_instead(*pair) for pair in refusals.items()]}
    served = [connect_host(stat_prefix, domains, cluster_name)] if domains else []
    return connection_manager(
        stat_prefix,
        codec="HTTP2",
        virtual_hosts=[*served, *others],
        filters=filters,
        extra={
            "http2_protocol_options": http2(connect=True), "upgrade_configs": [{"upgrade_type": "CONNECT"}], **extra,
        },
    )  # fmt: skip


def connect_host(name: str, domains: Sequence[str], cluster_name: str | None) -> Json:
    """CONNECT for one of `domains`; without a cluster it is answered 404, which an exact name needs beside `host:*`."""
    route: Json = {
        "match": {"connect_matcher": {}},
        "route": {
            "cluster": cluster_name,
            "timeout": "0s",
            "upgrade_configs": [{"upgrade_type": "CONNECT", "connect_config": {}}],
        },
    }
    return {"name": name, "domains": list(domains), "routes": [route] if cluster_name is not None else []}


def _said_instead(status: int, other: int) -> Json:
    compared = {"op": "EQ", "value": {"default_value": status, "runtime_key": f"refusal_{status}"}}
    return {"filter": {"status_code_filter": {"comparison": compared}}, "status_code": other}


def chain(filters: Sequence[Json], *, match: Json | None = None, transport: Json | None = None, name: str = "") -> Json:
    made: Json = {"filters": list(filters)}
    if name:
        made["name"] = name
    if match is not None:
        made["filter_chain_match"] = match
    if transport is not None:
        made["transport_socket"] = transport
    return made


def to_address(host: str, port: int | None = None, **more: object) -> Json:
    """A filter chain's match by (original) destination."""
    match: Json = {"prefix_ranges": [{"address_prefix": host, "prefix_len": 128 if ":" in host else 32}], **more}
    return match | {"destination_port": port} if port is not None else match


def listener(
    name: str,
    host: str,
    port: int,
    chains: Sequence[Json],
    *,
    default: Json | None = None,
    original_destination: bool = False,
    inspect: Sequence[Json] = (),
) -> Json:
    """`inspect` are listener filters that look at the first bytes: `inspector`."""
    made: Json = {"name": name, "address": address(host, port), "filter_chains": list(chains)}
    filters: list[Json] = list(inspect)
    if original_destination:
        filters.insert(0, listener_filter("original_dst", "OriginalDst"))
    if filters:
        made["listener_filters"] = filters
        made["listener_filters_timeout"] = "0s"
    if default is not None:
        made["default_filter_chain"] = default
    return made


def listener_filter(name: str, message: str) -> Json:
    return {
        "name": f"envoy.filters.listener.{name}",
        "typed_config": {"@type": f"{TYPE}.extensions.filters.listener.{name}.v3.{message}"},
    }


def inspector(what: str, *, not_at: Sequence[int] = (), only_at: Sequence[int] | None = None) -> Json:
    """`tls` or `http`: looks at the first bytes for chains to be chosen by, and so waits for a client to speak.

    `not_at` and `only_at` are destination ports: where the protocol is known, one that waits for the server is not kept
    waiting (facts/hbone 7, row 17).
    """
    message = {"tls": "TlsInspector", "http": "HttpInspector"}[what]
    made = listener_filter(f"{what}_inspector", message)
    if only_at is not None:
        return made | {"filter_disabled": {"not_match": _at_ports(only_at)} if only_at else {"any_match": True}}
    return made | {"filter_disabled": _at_ports(not_at)} if not_at else made


def _at_ports(ports: Sequence[int]) -> Json:
    rules = [{"destination_port_range": {"start": port, "end": port + 1}} for port in ports]
    return rules[0] if len(rules) == 1 else {"or_match": {"rules": rules}}


def internal_listener(name: str, chains: Sequence[Json], *, filters: Sequence[Json] = (), **more: object) -> Json:
    """A listener that only this Envoy's own clusters reach: no bytes on the wire."""
    return {
        "name": name,
        "internal_listener": {},
        "filter_chains": list(chains),
        "listener_filters": list(filters),
        **more,
    }


def ready_listener() -> Json:
    """`/healthz/ready` on Istio's port, answered as soon as Envoy listens at all."""
    host: Json = {
        "name": "ready", "domains": ["*"],
        "routes": [{"match": {"path": "/healthz/ready"}, "direct_response": {"status": 200}}],
    }  # fmt: skip
    return listener("ready", "127.0.0.1", READY_PORT, [chain([connection_manager("ready", virtual_hosts=[host])])])


def bootstrap(
    *,
    node: str,
    listeners: Sequence[Json],
    clusters: Sequence[Json],
    admin_port: int = ADMIN_PORT,
    mark: int | None = None,
) -> Json:
    """`mark`: on every connection that leaves from no address of its own choice (`cluster`'s `source`)."""
    marked = {"level": _SOL_SOCKET, "name": _SO_MARK, "int_value": mark, "state": "STATE_PREBIND"}
    return {
        "node": {"id": node, "cluster": "meshbed"},
        "admin": {"address": address("127.0.0.1", admin_port)},
        "bootstrap_extensions": [
            {
                "name": "envoy.bootstrap.internal_listener",
                "typed_config": {"@type": f"{TYPE}.extensions.bootstrap.internal_listener.v3.InternalListener"},
            }
        ],
        **({"cluster_manager": {"upstream_bind_config": {"socket_options": [marked]}}} if mark is not None else {}),
        "static_resources": {"listeners": list(listeners), "clusters": list(clusters)},
    }
