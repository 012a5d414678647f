"""HBONE as Envoy speaks it, for every role: tunnels out to endpoints and waypoints, and the end of tunnels in. Pure.

A cluster whose endpoints are all reached alike dials them itself. Where Envoy must choose an endpoint first and tunnel
to just that one, Istio's way is used: endpoints are addresses of an internal listener, the chosen one travels as
metadata, and that listener opens CONNECT for it (facts/hbone 3.3, points 5 to 7).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from planes.envoy import pieces
from planes.envoy.pieces import TYPE, Identity, Json
from planes.mesh.route import join
from planes.mesh.view import HBONE_PORT, Protocol, WorkloadView

_ORIGINAL_DST = "envoy.filters.listener.original_dst"


@dataclass(slots=True)
class Parts:
    """Listeners and clusters as they gather; each cluster once."""

    listeners: list[Json] = field(default_factory=list)
    clusters: dict[str, Json] = field(default_factory=dict)

    def cluster(self, made: Json) -> str:
        name = str(made["name"])
        self.clusters.setdefault(name, made)
        return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnels:
    """Tunnels that leave under one identity."""

    identity: Identity
    baggage: str
    """What the workload says of itself in every CONNECT (facts/hbone 1.3)."""
    keylog: str | None = None

    def to(self, parts: Parts, host: str, port: int, expected: Iterable[str]) -> str:
        """A cluster that carries CONNECT to `host:port`, whose peer must prove one of `expected` exactly."""
        name = f"hbone|{host}|{port}"
        return parts.cluster(
            pieces.cluster(
                name, [pieces.endpoint(host, port)], transport=self._tls(expected), http=pieces.h2_upstream()
            )
        )

    def each(self, parts: Parts, name: str, endpoints: Sequence[tuple[WorkloadView, int]], *, http: Json | None) -> str:
        """A cluster that chooses among `endpoints` (workload, port) and reaches each as it can be: HBONE or plain."""
        inside = f"connect_originate|{name}"
        listed: list[Json] = []
        tunnelled = [w for w, _ in endpoints if w.protocol is Protocol.HBONE]
        for workload, port in endpoints:
            host = workload.addresses[0]
            if workload.protocol is Protocol.HBONE:
                target = join(host, port)
                listed.append(
                    {
                        "endpoint": {
                            "address": {
                                "envoy_internal_address": {"server_listener_name": inside, "endpoint_id": target}
                            }
                        },
                        "metadata": {
                            "filter_metadata": {
                                _ORIGINAL_DST: {"local": target},
                                "envoy.transport_socket_match": {"tunnel": "hbone"},
                            }
                        },
                    }
                )
            else:
                listed.append(pieces.endpoint(host, port))
        made = pieces.cluster(name, listed, http=http, policy="LEAST_REQUEST" if http else "RANDOM")
        if tunnelled:
            made["transport_socket_matches"] = [
                {"name": "hbone", "match": {"tunnel": "hbone"}, "transport_socket": internal_transport()},
                {"name": "plain", "match": {}, "transport_socket": raw()},
            ]
            dial = f"hbone|{name}"
            parts.cluster(
                pieces.original_destination_cluster(
                    dial,
                    transport=self._tls(sorted({str(w.identity) for w in tunnelled})),
                    http=pieces.h2_upstream(),
                    port=HBONE_PORT,
                )
            )
            parts.listeners.append(
                pieces.internal_listener(
                    inside,
                    [pieces.chain([self.proxy(dial, "%DOWNSTREAM_LOCAL_ADDRESS%")])],
                    filters=[pieces.listener_filter("original_dst", "OriginalDst")],
                )
            )
        return parts.cluster(made)

    def proxy(self, cluster: str, authority: str) -> Json:
        return pieces.tcp_proxy(cluster, authority=authority, baggage=self.baggage)

    def _tls(self, expected: Iterable[str]) -> Json:
        peers = [pieces.exact(uri) for uri in expected]
        return pieces.client_tls(pieces.tls(self.identity, peers=peers, alpn=["h2"], keylog=self.keylog))


def server_tls(identity: Identity, trust_domain: str, keylog: str | None) -> Json:
    """HBONE's server side asks for the trust domain only; the rest is policy's (facts/hbone 1.2)."""
    peers = [pieces.of_trust_domain(trust_domain)]
    return pieces.server_tls(pieces.tls(identity, peers=peers, alpn=["h2"], keylog=keylog))


def internal_transport(*names: str) -> Json:
    """To an internal listener, with the chosen endpoint's metadata; `names` of the host's metadata besides."""
    return {
        "name": "envoy.transport_sockets.internal_upstream",
        "typed_config": {
            "@type": f"{TYPE}.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
            "passthrough_metadata": [{"kind": {"host": {}}, "name": name} for name in (_ORIGINAL_DST, *names)],
            "transport_socket": raw(),
        },
    }


def raw() -> Json:
    return {
        "name": "envoy.transport_sockets.raw_buffer",
        "typed_config": {"@type": f"{TYPE}.extensions.transport_sockets.raw_buffer.v3.RawBuffer"},
    }
