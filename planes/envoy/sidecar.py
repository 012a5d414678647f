"""Envoy as a sidecar: 15001 for what its workload calls, 15006 for who calls it, 15008 if it takes tunnels. Pure.

Istio's shape with stock filters (facts/hbone 4.2, 4.3). HTTP/1 and HTTP/2 have chains of their own on the way out, so
that the ALPN says which is inside: Istio does it per request, with a filter of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

from planes.envoy import http, pieces
from planes.envoy.authorization import Authorization, by_certificate, by_filter_state
from planes.envoy.parts import Parts, Subject
from planes.envoy.pieces import PASSTHROUGH_SOURCE, Json
from planes.envoy.routes import Routes, fault_filter, virtual_host
from planes.envoy.tunnels import Tunnels, inwards, remember_peer, server_tls
from planes.envoy.upstreams import ALPN_HTTP1, ALPN_HTTP2, Upstreams, either_protocol
from planes.l7.settings import Ports
from planes.mesh import baggage
from planes.mesh.route import join
from testbed.model.policy import Mode

_PORTS = Ports()
_ISTIO = ("istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2")
_ISTIO_HTTP = ("istio-http/1.0", "istio-http/1.1", "istio-h2")
_ISTIO_TCP = ("istio", "istio-peer-exchange")
ALPN_HTTP = ("h2", "http/1.1")
ALPN_TCP = ("istio-peer-exchange", "h2", "http/1.1")
_ANY_PORT: Json = {}


def build(subject: Subject, parts: Parts) -> None:
    parts.cluster(pieces.original_destination_cluster("passthrough", http=either_protocol()))
    parts.listeners.append(_outbound(subject, parts))
    parts.listeners.append(_Inbound(subject, parts).listener())
    if subject.listens_hbone:
        parts.listeners += _Inbound(subject, parts).tunnelled()


def _black_hole(parts: Parts) -> str:
    """Without endpoints: there is no filter that only closes."""
    return parts.cluster(pieces.cluster("black-hole", []))


# -- outbound


def _outbound(subject: Subject, parts: Parts) -> Json:
    view = subject.configured
    tunnels = Tunnels(identity=subject.identity, baggage=baggage.render(subject.local), keylog=subject.keylog)
    upstreams = Upstreams(parts=parts, tunnels=tunnels, subject=subject)
    routes = Routes(view, parts, lambda cluster: upstreams.of(subject, cluster))
    chains: list[Json] = []
    looked_into: set[int] = set()
    for port in sorted({p.port for s in view.config.services for p in s.ports if p.is_http}):
        looked_into.add(port)
        chains += _http_chains(f"outbound_{port}", routes, routes.hosts_of_port(port), {"destination_port": port}, view)
    for service in view.config.services:
        for entry in service.ports:
            cluster = view.cluster(service.key, entry.port)
            if entry.is_http or cluster is None:
                continue
            proxy = routes.of_connections(service, entry.port)
            chains.append(pieces.chain([proxy], match=pieces.to_address(service.address, entry.port)))
            if not entry.protocol:
                looked_into.add(entry.port)
                hosts = [virtual_host("*", ["*"], routes.of_service(service, entry.port))]
                match = pieces.to_address(service.address, entry.port)
                chains += _http_chains(f"outbound_{service.address}_{entry.port}", routes, hosts, match, view)
    unknown = "passthrough" if view.config.outbound_any else _black_hole(parts)
    return pieces.listener(
        "outbound", "0.0.0.0", _PORTS.outbound, chains,
        default=pieces.chain([pieces.tcp_proxy(unknown)]), original_destination=True,
        inspect=[pieces.inspector("http", only_at=sorted(looked_into))],
    )  # fmt: skip


def _http_chains(name: str, routes: Routes, hosts: Sequence[Json], match: Json, view) -> list[Json]:  # type: ignore[no-untyped-def]
    filters = [fault_filter()] if routes.with_faults else []
    manager = http.manager(name, hosts, filters=filters, paths=view.config.path_normalization)
    return [
        pieces.chain([http.offering(alpn), manager], match={**match, "application_protocols": list(protocols)})
        for alpn, protocols in ((ALPN_HTTP1, http.HTTP1_PROTOCOLS), (ALPN_HTTP2, http.HTTP2_PROTOCOLS))
    ]


# -- inbound


class _Inbound:
    """Chains by the workload's port: what its protocol and its mode let in, as what."""

    def __init__(self, subject: Subject, parts: Parts) -> None:
        self._subject, self._parts, self._view = subject, parts, subject.configured
        config = self._view.config
        policies = self._view.policy_resources()
        self._by_certificate = Authorization(
            policies=policies, trust_domain=config.trust_domain, name=by_certificate
        )
        self._by_tunnel = Authorization(policies=policies, trust_domain=config.trust_domain, name=by_filter_state)
        self._by_certificate.tell_undone(parts)
        parts.cluster(
            pieces.original_destination_cluster("inbound", source=PASSTHROUGH_SOURCE, http=either_protocol())
        )

    def listener(self) -> Json:
        ports = sorted({*self._view.inbound_protocols, *(m.port for m in self._view.config.port_modes)})
        nowhere = [pieces.tcp_proxy(_black_hole(self._parts))]
        chains = [pieces.chain(nowhere, match={"destination_port": own}) for own in sorted(_PORTS.own)]
        for port in ports:
            chains += self._port_chains({"destination_port": port}, self._view.mode(port), self._protocol(port))
        chains += self._port_chains(_ANY_PORT, self._view.config.mode, "")
        plain = [p for p in ports if self._view.mode(p) is Mode.DISABLE]
        declared = [p for p in ports if self._protocol(p)]
        return pieces.listener(
            "inbound", "0.0.0.0", _PORTS.inbound, chains, original_destination=True,
            inspect=[
                pieces.inspector("tls", not_at=plain),
                *([pieces.inspector("http", not_at=declared)]),
            ],
        )  # fmt: skip

    def tunnelled(self) -> list[Json]:
        """15008: CONNECT for the workload's own address, then the same chains as for plain bytes, with the tunnel's
        peer for identity (facts/hbone 4.4)."""
        subject = self._subject
        inside = "inbound_hbone"
        terminator = pieces.connect_terminator(
            "connect_terminate",
            domains=[join(host, 0)[:-1] + "*" for host in subject.local.addresses],
            cluster_name=inwards(self._parts, inside),
            filters=[remember_peer()],
        )
        chains: list[Json] = []
        for port in sorted(self._view.inbound_protocols):
            chains += self._inside({"destination_port": port}, self._protocol(port))
        chains += self._inside(_ANY_PORT, "")
        declared = [p for p in self._view.inbound_protocols if self._protocol(p)]
        return [
            pieces.listener(
                "connect_terminate", "0.0.0.0", _PORTS.hbone,
                [pieces.chain([terminator], transport=server_tls(
                    subject.identity, subject.local.trust_domain, subject.keylog
                ))],
            ),
            pieces.internal_listener(inside, chains, filters=[
                pieces.listener_filter("original_dst", "OriginalDst"), pieces.inspector("http", not_at=declared),
            ]),
        ]  # fmt: skip

    def _protocol(self, port: int) -> str:
        """`http`, `tcp`, or empty: to be found out."""
        declared = self._view.inbound_protocols.get(port, "")
        return "http" if declared in ("http", "http2", "grpc") else declared

    def _port_chains(self, match: Json, mode: Mode, protocol: str) -> list[Json]:
        made: list[Json] = []
        if mode is not Mode.DISABLE:
            tls = {**match, "transport_protocol": "tls"}
            http_protocols = {"http": _ISTIO, "tcp": (), "": _ISTIO_HTTP}[protocol]
            tcp_protocols = {"http": (), "tcp": _ISTIO, "": _ISTIO_TCP}[protocol]
            for filters, alpn, protocols in (
                (self._http(self._by_certificate, secured=True), ALPN_HTTP, http_protocols),
                (self._tcp(self._by_certificate), ALPN_TCP, tcp_protocols),
            ):
                if protocols:
                    made.append(
                        pieces.chain(
                            filters, match={**tls, "application_protocols": list(protocols)},
                            transport=self._server_tls(alpn),
                        )
                    )  # fmt: skip
        if mode is not Mode.STRICT:
            if mode is not Mode.DISABLE:  # the application's own TLS, which is not ours to open
                made.append(
                    pieces.chain(self._tcp(self._by_certificate), match={**match, "transport_protocol": "tls"})
                )
            plain = {**match, "transport_protocol": "raw_buffer"} if mode is not Mode.DISABLE else match
            made += self._bytes(plain, protocol, self._by_certificate)
        return made

    def _inside(self, match: Json, protocol: str) -> list[Json]:
        return self._bytes(match, protocol, self._by_tunnel)

    def _bytes(self, match: Json, protocol: str, authorization: Authorization) -> list[Json]:
        if protocol == "http":
            return [pieces.chain(self._http(authorization), match=match)]
        chains = [pieces.chain(self._tcp(authorization), match=match)]
        if not protocol:
            found = [*http.HTTP1_PROTOCOLS, *http.HTTP2_PROTOCOLS]
            chains.append(pieces.chain(self._http(authorization), match={**match, "application_protocols": found}))
        return chains

    def _http(self, authorization: Authorization, *, secured: bool = False) -> list[Json]:
        route: Json = {
            "name": "default", "match": {"prefix": "/"},
            "route": {
                "cluster": "inbound", "timeout": "0s",
                # only what the application surely never saw is sent again
                "retry_policy": {"retry_on": "reset-before-request", "num_retries": 2},
            },
        }  # fmt: skip
        return [
            http.manager(
                "inbound", [virtual_host("inbound", ["*"], [route])], filters=authorization.http_filters(),
                paths=self._view.config.path_normalization, forward_certificate=secured,
            )
        ]  # fmt: skip

    def _tcp(self, authorization: Authorization) -> list[Json]:
        return [*authorization.network_filters("inbound"), pieces.tcp_proxy("inbound")]

    def _server_tls(self, alpn: Sequence[str]) -> Json:
        """Istio's own: a client certificate of the trust domain, TLS 1.2 or newer."""
        subject = self._subject
        peers = [pieces.of_trust_domain(subject.local.trust_domain)]
        common = pieces.tls(subject.identity, peers=peers, alpn=alpn, keylog=subject.keylog, lowest="TLSv1_2")
        return pieces.server_tls(common)
