"""Our verdicts beside a live Envoy's: policies made by hypothesis, judged by both for the same calls.

Every set of policies has loopback addresses of its own, where one Envoy listens: HTTP by certificate, HTTP by what a
tunnel would have said, and TCP; L7 policies on all three, and L4 policies on TCP. Only the filters are under test, so
an allowed request is answered on the spot.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from planes.envoy import binary, http, pieces, rbac
from planes.envoy.authorization import PEER_PRINCIPAL, Authorization, by_certificate, by_filter_state
from planes.envoy.pieces import TYPE, Json
from planes.envoy.routes import virtual_host
from testbed.bench.loopback import write_certificates
from testbed.model import l4policy
from testbed.model.httppath import normalize
from testbed.model.identity import Identity
from testbed.model.l4policy import Connection, L4Action, L4Match, L4Policy, Scope, ServiceAccountMatch, StringMatch
from testbed.model.l7policy import PolicySet
from testbed.model.policy import Action, AuthorizationPolicy, Condition, Operation, Rule, Source
from tests.envoy.test_interop import Bench, listening, wait_for
from tests.labs import needs_envoy

pytestmark = [pytest.mark.envoy, needs_envoy]
SETS = 24
HTTP_PORT, TUNNEL_PORT, TCP_PORT, L4_PORT = 8080, 8081, 9000, 9001
PEERS = {
    "web": Identity("cluster.local", "shop", "web"),
    "till": Identity("cluster.local", "shop-till", "till"),
    "far": Identity("elsewhere", "shop", "web"),
    None: None,
}
TRUST_DOMAIN = "cluster.local"
_numbers = itertools.count(1)


@dataclass
class Head:
    """A request as both are asked about it."""

    method: bytes = b"GET"
    authority: bytes = b"b.shop:8080"
    path: bytes = b"/"
    fields: list[tuple[bytes, bytes]] = field(default_factory=list)


HEADS = [
    Head(),
    Head(method=b"POST", path=b"/a/b?q=/admin", fields=[(b"x-user", b"jane"), (b"x-user", b"joe")]),
    Head(path=b"/admin/../a/x.html", authority=b"B.Shop"),
    Head(path=b"/admin", fields=[(b"x-forwarded-for", b"10.9.9.9, 10.0.1.2")]),
    Head(method=b"PUT", authority=b"c.shop", path=b"/a//b", fields=[(b"x-user", b"")]),
]


# -- policies


def some(*values: str) -> st.SearchStrategy[tuple[str, ...]]:
    """Mostly nothing, so that more than one field in a rule still matches now and then."""
    return st.one_of(st.just(()), st.just(()), st.lists(st.sampled_from(values), min_size=1, max_size=2).map(tuple))


PRINCIPALS = ("cluster.local/ns/shop/sa/web", "*", "*/sa/web", "cluster.local/ns/shop*", "*/till", "elsewhere/*")
NAMESPACES = ("shop", "shop*", "*", "*till", "s*p")
ACCOUNTS = ("web", "shop/web", "shop-till/till")
DOMAINS = ("cluster.local", "*", "cluster*", "*where")
NETWORKS = ("127.0.0.0/8", "10.0.0.0/8", "10.0.1.2", "127.0.0.1")
PATHS = ("/", "/a*", "*.html", "/admin", "*", "/a/{*}", "/a/{**}")
HOSTS = ("b.shop", "b.shop:8080", "*.shop", "C.*", "*", "b.shop*")
PORTS = (str(HTTP_PORT), str(TCP_PORT), "9")
SOURCES = st.builds(
    Source, principals=some(*PRINCIPALS), not_principals=some(*PRINCIPALS[:1], *PRINCIPALS[2:]),
    namespaces=some(*NAMESPACES), not_namespaces=some(*NAMESPACES), service_accounts=some(*ACCOUNTS),
    not_service_accounts=some(*ACCOUNTS), ip_blocks=some(*NETWORKS), not_ip_blocks=some(*NETWORKS[1:]),
    remote_ip_blocks=some(*NETWORKS), not_remote_ip_blocks=some(*NETWORKS), trust_domains=some(*DOMAINS),
    not_trust_domains=some(*DOMAINS), request_principals=some("*"), not_request_principals=some("*"),
)  # fmt: skip
OPERATIONS = st.builds(
    Operation, hosts=some(*HOSTS), not_hosts=some(*HOSTS), ports=some(*PORTS), not_ports=some(*PORTS),
    methods=some("GET", "P*", "*"), not_methods=some("GET", "*T"), paths=some(*PATHS), not_paths=some(*PATHS),
)  # fmt: skip
CONDITION_VALUES = {
    "source.ip": NETWORKS, "source.namespace": NAMESPACES, "source.principal": PRINCIPALS, "remote.ip": NETWORKS,
    "destination.ip": NETWORKS, "destination.port": PORTS, "connection.sni": ("a.example", "*.example", "*", "b*"),
    "request.headers[x-user]": ("jane", "j*", "*", "jane,joe", "*joe"), "request.headers[:method]": ("GET", "P*"),
    "request.auth.claims[iss]": ("*",),
}  # fmt: skip
CONDITIONS = st.sampled_from(sorted(CONDITION_VALUES)).flatmap(
    lambda key: st.builds(
        Condition, key=st.just(key), values=some(*CONDITION_VALUES[key]), not_values=some(*CONDITION_VALUES[key])
    )
)
RULES = st.builds(
    Rule, sources=st.lists(SOURCES, max_size=2).map(tuple), operations=st.lists(OPERATIONS, max_size=2).map(tuple),
    conditions=st.lists(CONDITIONS, max_size=1).map(tuple),
)  # fmt: skip
ONE = st.builds(
    AuthorizationPolicy, name=st.just("p"), namespace=st.just("shop"),
    action=st.sampled_from([Action.ALLOW, Action.DENY]), rules=st.lists(RULES, max_size=2).map(tuple),
)  # fmt: skip


def named(policies: list) -> list:
    return [replace(p, name=f"p{number}") for number, p in enumerate(policies)]


L4_NAMES = st.lists(st.sampled_from([StringMatch.parse(p) for p in PRINCIPALS]), max_size=2).map(tuple)
L4_NAMESPACES = st.lists(st.sampled_from([StringMatch.parse(n) for n in NAMESPACES[:4]]), max_size=2).map(tuple)
L4_ACCOUNTS = st.lists(st.sampled_from([ServiceAccountMatch("shop", "web")]), max_size=1).map(tuple)
L4_PORTS = st.lists(st.sampled_from([L4_PORT, 9]), max_size=2).map(tuple)
L4_NETWORKS = st.lists(st.sampled_from(["127.0.0.0/8", "10.0.0.0/8"]), max_size=1).map(tuple)
L4_MATCHES = st.builds(
    L4Match, principals=L4_NAMES, not_principals=L4_NAMES, namespaces=L4_NAMESPACES, not_namespaces=L4_NAMESPACES,
    service_accounts=L4_ACCOUNTS, not_service_accounts=L4_ACCOUNTS, source_ips=L4_NETWORKS, not_source_ips=L4_NETWORKS,
    destination_ips=L4_NETWORKS, not_destination_ips=L4_NETWORKS, destination_ports=L4_PORTS,
    not_destination_ports=L4_PORTS,
)  # fmt: skip
L4_RULES = st.lists(st.lists(L4_MATCHES, max_size=2).map(tuple), max_size=2).map(tuple)
L4_ONE = st.builds(
    L4Policy, name=st.just("p"), namespace=st.just("shop"), scope=st.just(Scope.NAMESPACE),
    action=st.sampled_from(list(L4Action)), rules=st.lists(L4_RULES, max_size=2).map(tuple), dry_run=st.booleans(),
)  # fmt: skip
POLICY_SETS = st.lists(
    st.tuples(st.lists(ONE, min_size=1, max_size=2).map(named), st.lists(L4_ONE, min_size=1, max_size=2).map(named)),
    min_size=SETS, max_size=SETS,
)  # fmt: skip


# -- Envoy


def listeners(address: str, policies: list[AuthorizationPolicy], l4: list[L4Policy], folder: Path) -> list[Json]:
    who = pieces.Identity(
        uri="", certificate=str(folder / "web.pem"), key=str(folder / "web.key"), roots=str(folder / "roots.pem")
    )
    transport = pieces.server_tls(pieces.tls(who, peers=[{"prefix": "spiffe://"}], alpn=["http/1.1"]))
    certified = Authorization(policies=policies, trust_domain=TRUST_DOMAIN, name=by_certificate)
    tunnelled = Authorization(policies=policies, trust_domain=TRUST_DOMAIN, name=by_filter_state)
    remembered = {
        "name": "remember", "typed_config": {
            "@type": f"{TYPE}.extensions.filters.http.set_filter_state.v3.Config",
            "on_request_headers": [pieces.filter_state(PEER_PRINCIPAL, "envoy.string", "%DOWNSTREAM_PEER_URI_SAN%")],
        },
    }  # fmt: skip
    answer = [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}]

    def manager(filters: list[Json]) -> list[Json]:
        return [http.manager("verdicts", [virtual_host("all", ["*"], answer)], filters=filters)]

    echo = {
        "name": "echo", "typed_config": {"@type": f"{TYPE}.extensions.filters.network.echo.v3.Echo"},
    }  # fmt: skip
    by_port = {
        HTTP_PORT: manager(certified.http_filters()),
        TUNNEL_PORT: manager([remembered, *tunnelled.http_filters()]),
        TCP_PORT: [*certified.network_filters("tcp"), echo],
        L4_PORT: [*rbac.network_filters(l4, "l4"), echo],
    }
    return [
        pieces.listener(
            f"{address}:{port}", address, port,
            [
                pieces.chain(filters, match={"transport_protocol": "tls"}, transport=transport),
                pieces.chain(filters, match={"transport_protocol": "raw_buffer"}),
            ],
            inspect=[pieces.inspector("tls")],
        )
        for port, filters in by_port.items()
    ]  # fmt: skip


@contextlib.contextmanager
def envoy(made: list[Json], folder: Path, first: str, last: str) -> Iterator[None]:
    config = pieces.bootstrap(node="verdicts", listeners=made, clusters=[])
    config["admin"]["address"]["socket_address"]["address"] = first  # type: ignore[index]
    file = folder / "envoy.json"
    file.write_text(json.dumps(config))
    argv = [str(binary.required()), "-c", str(file), "--disable-hot-restart", "--concurrency", "1", "-l", "error"]
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen(argv, stdout=log, stderr=log)
    try:
        wait_for(lambda: listening(last, L4_PORT) or process.poll() is not None, "Envoy listens")
        assert process.poll() is None, (folder / "envoy.log").read_text()[-3000:]
        yield
    finally:
        Bench._end(process)


class Caller:
    def __init__(self, folder: Path) -> None:
        self._contexts = {name: self._context(folder, name) for name in PEERS if name is not None}

    @staticmethod
    def _context(folder: Path, name: str) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        made.check_hostname, made.verify_mode = False, ssl.CERT_NONE
        made.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
        return made

    def connect(self, address: str, port: int, name: str | None, sni: str) -> socket.socket:
        sock = socket.create_connection((address, port), timeout=20)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._contexts[name].wrap_socket(sock, server_hostname=sni or None) if name is not None else sock

    def statuses(self, address: str, port: int, name: str | None, sni: str) -> list[int]:
        with self.connect(address, port, name, sni) as sock:
            return [self._ask(sock, head) for head in HEADS]

    @staticmethod
    def _ask(sock: socket.socket, head: Head) -> int:
        lines = [b"%b %b HTTP/1.1" % (head.method, head.path), b"host: " + head.authority]
        lines += [n + b": " + v for n, v in head.fields]
        sock.sendall(b"\r\n".join(lines) + b"\r\n\r\n")
        held = b""
        while b"\r\n\r\n" not in held:
            held += sock.recv(65536) or b"\r\n\r\n"
        length = next((int(part[15:]) for part in held.split(b"\r\n") if part.startswith(b"content-length:")), 0)
        while len(held.partition(b"\r\n\r\n")[2]) < length:
            held += sock.recv(65536)
        return int(held.split(b" ")[1]) if held.startswith(b"HTTP/") else 0

    def echoes(self, address: str, port: int, name: str | None, sni: str) -> bool:
        # more than a byte: Envoy waits for as many as a TLS record's head has before it calls them plain
        with self.connect(address, port, name, sni) as sock, contextlib.suppress(ConnectionError, ssl.SSLError):
            sock.sendall(b"hello there")
            return sock.recv(1) == b"h"
        return False


# -- both


def heads_as_judged() -> list[Head]:
    return [Head(h.method, h.authority, normalize(h.path), h.fields) for h in HEADS]


def test_envoy_gives_our_verdicts(tmp_path: Path) -> None:
    """For every policy, peer and call: allowed by both or denied by both, at L7, at L7 over TCP, and at L4."""
    write_certificates(tmp_path, {name: str(identity) for name, identity in PEERS.items() if name and identity})
    caller = Caller(tmp_path)
    seen: dict[bool, int] = {True: 0, False: 0}
    differ: list[tuple] = []  # told at the end: hypothesis would spend minutes on writing out the whole example

    @settings(
        max_examples=3, deadline=None, phases=[Phase.explicit, Phase.generate], database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )  # fmt: skip
    @given(sets=POLICY_SETS)
    def both_judge(sets: list) -> None:
        net = f"127.{130 + os.getpid() % 100}.{200 + next(_numbers) % 50}"
        at = {f"{net}.{n + 1}": policies for n, policies in enumerate(sets)}
        made = [one for address, (l7, l4) in at.items() for one in listeners(address, l7, l4, tmp_path)]
        with envoy(made, tmp_path, f"{net}.250", list(at)[-1]):
            for address, (l7, l4) in at.items():
                compare(caller, address, l7, l4, seen, differ)

    both_judge()
    assert not differ, f"{len(differ)} differ; the first (peer, SNI, where, ours, Envoy's, policies): {differ[0]}"
    assert min(seen.values()) > 100, f"the calls tell little: {seen}"


def compare(
    caller: Caller, address: str, l7: list[AuthorizationPolicy], l4: list[L4Policy], seen: dict[bool, int],
    differ: list[tuple],
) -> None:  # fmt: skip
    policies = PolicySet(l7, trust_domain=TRUST_DOMAIN)
    for (name, identity), sni in itertools.product(PEERS.items(), ("", "a.example")):
        if name is None and sni:
            continue
        facts = Connection(
            source_ip="127.0.0.1", destination_ip=address, destination_port=0, identity=identity, sni=sni
        )
        verdicts: dict[int, tuple[list[bool], list[bool], list]] = {}
        for port in (HTTP_PORT, TUNNEL_PORT):
            judge = policies.judge(replace(facts, destination_port=port))
            theirs = [status == 200 for status in caller.statuses(address, port, name, sni)]
            verdicts[port] = [judge.decide(h).allowed for h in heads_as_judged()], theirs, l7
        over_tcp = policies.decide_tcp(replace(facts, destination_port=TCP_PORT)).allowed
        verdicts[TCP_PORT] = [over_tcp], [caller.echoes(address, TCP_PORT, name, sni)], l7
        at_l4 = l4policy.decide(l4, replace(facts, destination_port=L4_PORT)).allowed
        verdicts[L4_PORT] = [at_l4], [caller.echoes(address, L4_PORT, name, sni)], l4
        for port, (ours, theirs, held) in verdicts.items():
            if ours != theirs:
                differ.append((name, sni, port, ours, theirs, held))
            for verdict in ours:
                seen[verdict] += 1
