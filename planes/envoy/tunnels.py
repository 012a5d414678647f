"""HBONE as Envoy speaks it, for every role: tunnels out to endpoints and waypoints, and the end of tunnels in. Pure.

A cluster whose endpoints are all reached alike dials them itself. Where Envoy must choose an endpoint first and tunnel
to just that one, Istio's way is used: endpoints are addresses of an internal listener, the chosen one travels as
metadata, and that listener opens CONNECT for it (facts/hbone 3.3, points 5 to 7).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planes.envoy import pieces
from planes.envoy.authorization import PEER_PRINCIPAL
from planes.envoy.parts import Parts
from planes.envoy.pieces import TYPE, Identity, Json
from planes.mesh.route import join
from planes.mesh.view import HBONE_PORT, WorkloadView

ORIGINAL_DST = "envoy.filters.listener.original_dst"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tunnels:
    """Tunnels that leave under one identity."""

    identity: Identity
    baggage: str
    """What the workload says of itself in every CONNECT (facts/hbone 1.3)."""
    keylog: str | None = None

    def to(self, parts: Parts, name: str, addresses: Sequence[tuple[str, int]], expected: Iterable[str]) -> str:
        """A cluster that carries CONNECT to any of `addresses`, whose peer must prove one of `expected` exactly."""
        listed = [pieces.endpoint(host, port) for host, port in addresses]
        return parts.cluster(
            pieces.cluster(f"hbone|{name}", listed, transport=self._tls(expected), http=pieces.h2_upstream())
        )

    def opener(self, parts: Parts, name: str, expected: Iterable[str]) -> str:
        """An internal listener, its name given back, that opens a tunnel to whatever `through` it was chosen for."""
        inside, dial = f"connect_originate|{name}", f"hbone|{name}"
        parts.cluster(
            pieces.original_destination_cluster(
                dial, transport=self._tls(expected), http=pieces.h2_upstream(), port=HBONE_PORT
            )
        )
        parts.listeners.append(
            pieces.internal_listener(
                inside,
                [pieces.chain([self.proxy(dial, "%DOWNSTREAM_LOCAL_ADDRESS%")])],
                filters=[pieces.listener_filter("original_dst", "OriginalDst")],
            )
        )
        return inside

    def proxy(self, cluster: str, authority: str) -> Json:
        return pieces.tcp_proxy(cluster, authority=authority, baggage=self.baggage)

    def _tls(self, expected: Iterable[str]) -> Json:
        peers = [pieces.exact(uri) for uri in expected]
        return pieces.client_tls(pieces.tls(self.identity, peers=peers, alpn=["h2"], keylog=self.keylog))


def through(inside: str, workload: WorkloadView, port: int) -> Json:
    """An endpoint that is reached by the internal listener `inside`."""
    target = join(workload.addresses[0], port)
    return {
        "endpoint": {"address": {"envoy_internal_address": {"server_listener_name": inside, "endpoint_id": target}}},
        "metadata": {"filter_metadata": {ORIGINAL_DST: {"local": target}}},
    }


def server_tls(identity: Identity, trust_domain: str, keylog: str | None) -> Json:
    """HBONE's server side asks for the trust domain only; the rest is policy's (facts/hbone 1.2)."""
    peers = [pieces.of_trust_domain(trust_domain)]
    return pieces.server_tls(pieces.tls(identity, peers=peers, alpn=["h2"], keylog=keylog))


def internal_transport() -> Json:
    """To an internal listener, with the chosen endpoint's metadata and what filter state is shared."""
    return {
        "name": "envoy.transport_sockets.internal_upstream",
        "typed_config": {
            "@type": f"{TYPE}.extensions.transport_sockets.internal_upstream.v3.InternalUpstreamTransport",
            "passthrough_metadata": [{"kind": {"host": {}}, "name": ORIGINAL_DST}],
            "transport_socket": raw(),
        },
    }


def raw() -> Json:
    return {
        "name": "envoy.transport_sockets.raw_buffer",
        "typed_config": {"@type": f"{TYPE}.extensions.transport_sockets.raw_buffer.v3.RawBuffer"},
    }


def inwards(parts: Parts, listener: str, *, at: str = "") -> str:
    """A cluster to one of the own internal listeners; where a tunnel led and whose it is goes along as filter state.

    `at`: as if it had led there, `address:port`, where the authority was a name.
    """
    internal: Json = {"server_listener_name": listener}
    endpoint: Json = {"endpoint": {"address": {"envoy_internal_address": internal}}}
    if at:
        internal["endpoint_id"] = at
        endpoint["metadata"] = {"filter_metadata": {ORIGINAL_DST: {"local": at}}}
    name = f"{listener}|{at}" if at else listener
    return parts.cluster(pieces.cluster(name, [endpoint], transport=internal_transport()))


def onwards(parts: Parts, name: str, listener: str, http: Json) -> str:
    """A cluster to an internal listener that tunnels on to where the connection was going (Istio's `encap`)."""
    internal = {"envoy_internal_address": {"server_listener_name": listener, "endpoint_id": name}}
    endpoints = [{"endpoint": {"address": internal}}]
    return parts.cluster(pieces.cluster(name, endpoints, transport=internal_transport(), http=http))


def remember_destination() -> Json:
    """A network filter before what leaves by `onwards`: Istio's filter state goes one internal listener far only."""
    said = (f"{ORIGINAL_DST}.local_ip", None, "%DOWNSTREAM_LOCAL_ADDRESS%")
    return {
        "name": "remember_destination",
        "typed_config": {
            "@type": f"{TYPE}.extensions.filters.network.set_filter_state.v3.Config",
            "on_new_connection": [pieces.filter_state(*said, shared=True)],
        },
    }


def remember_peer() -> Json:
    """Istio's `connect_authority`: a CONNECT's authority, the client's address and identity, for what is inside it."""
    said = (
        (f"{ORIGINAL_DST}.local_ip", None, "%REQ(:AUTHORITY)%"),
        (f"{ORIGINAL_DST}.remote_ip", None, "%DOWNSTREAM_REMOTE_ADDRESS%"),
        (PEER_PRINCIPAL, "envoy.string", "%DOWNSTREAM_PEER_URI_SAN%"),
    )
    return {
        "name": "connect_authority",
        "typed_config": {
            "@type": f"{TYPE}.extensions.filters.http.set_filter_state.v3.Config",
            "on_request_headers": [pieces.filter_state(*entry, shared=True) for entry in said],
        },
    }
