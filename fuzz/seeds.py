"""Writes the seed corpora, from real bytes that the tests have: `python -m fuzz.seeds`. What was found is left alone.

A seed's file is named after what it is; a finding's begins with `found-`.
"""

from __future__ import annotations

import json
import random
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import hpack

from fuzz.targets import CORPUS, TARGETS
from planes.mesh import crl, dns, frames
from planes.mesh.hbone import HboneConnection
from testbed.pki import CertificateAuthority
from testbed.program import CHECKOUT

MOST_BYTES = 16_384
NOW_S = 1_700_000_000.0


def http1_server() -> Iterator[tuple[str, bytes]]:
    from tests.test_http1_chunks import BROKEN, WHOLE
    from tests.test_http1_fields import REFUSED, TARGETS
    from tests.test_l7_attack import SMUGGLING

    post = b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    for tables, head in (((REFUSED, TARGETS, SMUGGLING), b""), ((WHOLE, BROKEN), post)):
        for table in tables:
            for name, row in table.items():
                wire = row if isinstance(row, bytes) else row[0]
                yield name, head + wire
    yield "pipeline", b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n" * 3 + b"HEAD /b HTTP/1.0\r\n\r\n"
    yield "upgrade", b"GET /c HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00"
    yield "connect", b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nraw bytes"
    yield "continue", b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc"


def http1_client() -> Iterator[tuple[str, bytes]]:
    from tests.test_http1_fields import REFUSED_RESPONSES
    from tests.test_l7_attack import EVIL

    for name, row in (*REFUSED_RESPONSES.items(), *EVIL.items()):
        yield name, b"\4" + (row if isinstance(row, bytes) else row[0])
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    for number in range(8):
        yield f"whole {number}", bytes((number,)) + whole
    yield "chunked", b"\0HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx: y\r\n\r\n"
    yield "interim", b"\0HTTP/1.1 103 E\r\nlink: </a>\r\n\r\n" + whole
    yield "switched", b"\3HTTP/1.1 101 S\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n\x81\x00"
    yield "until the end", b"\4HTTP/1.1 200 OK\r\n\r\nbody"


def _h2(
    fields: list[tuple[bytes, bytes]], number: int, *, end: bool = True, encoder: hpack.Encoder | None = None
) -> bytes:
    block = (encoder or hpack.Encoder()).encode(fields)
    return frames.headers(number, block, end=end, max_frame_size=16384)


GET = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", b"a"), (b":path", b"/")]


def http2_server() -> Iterator[tuple[str, bytes]]:
    from tests.test_hbone import BREACHES
    from tests.test_http2 import MALFORMED

    for name, fields in MALFORMED.items():
        yield name, _h2(fields, 1) + _h2(GET, 3)
    for name, (wire, _) in BREACHES.items():
        yield name, wire
    encoder = hpack.Encoder()
    post = [(b":method", b"POST"), *GET[1:], (b"content-length", b"5"), (b"x", b"y" * 40)]
    yield "two requests", (
        _h2(post, 1, end=False, encoder=encoder) + frames.frame(frames.DATA, 1, 1, b"given")
        + _h2(post, 3, end=False, encoder=encoder) + frames.frame(frames.DATA, 0, 3, b"giv")
        + frames.frame(frames.DATA, 9, 3, b"\x03en\0\0\0") + frames.frame(frames.PING, 0, 0, b"12345678")
    )  # fmt: skip
    block = hpack.Encoder().encode([*GET, (b"cookie", b"a=b"), (b"cookie", b"c=d")])
    yield "continued", frames.headers(1, block, end=True, max_frame_size=7)
    yield "trailers", (
        _h2(post, 1, end=False) + frames.frame(frames.DATA, 0, 1, b"given") + _h2([(b"x-t", b"1")], 1)
    )  # fmt: skip
    upgrade = [(b":method", b"CONNECT"), (b":protocol", b"websocket"), *GET[1:]]
    yield "websocket", _h2(upgrade, 1, end=False) + frames.frame(frames.DATA, 0, 1, b"\x81\0")
    yield "settings", frames.settings([(1, 0), (3, 10), (4, 1), (5, 16384), (6, 100), (8, 1)]) + _h2(GET, 1)
    yield "reset and goaway", _h2(GET, 1, end=False) + frames.rst_stream(1, 8) + frames.goaway(0, 0)
    yield "windows", frames.settings([(4, 0)]) + _h2(GET, 1) + frames.window_update(1, 1) + frames.window_update(0, 9)


def http2_client() -> Iterator[tuple[str, bytes]]:
    ok = [(b":status", b"200"), (b"content-length", b"2")]
    body = frames.frame(frames.DATA, 1, 1, b"ok")
    yield "answer", _h2(ok, 1, end=False) + body + _h2([(b":status", b"204")], 3)
    yield "interim", _h2([(b":status", b"103")], 1, end=False) + _h2(ok, 1, end=False) + body
    yield "trailers only", _h2([(b":status", b"200"), (b"grpc-status", b"12")], 5)
    yield "trailers", _h2(ok, 1, end=False) + frames.frame(frames.DATA, 0, 1, b"ok") + _h2([(b"x", b"1")], 1)
    yield "tunnel", _h2([(b":status", b"200")], 7, end=False) + frames.frame(frames.DATA, 0, 7, b"raw")
    yield "goaway", frames.goaway(3, 0) + _h2(ok, 1, end=False) + body
    yield "refused", frames.rst_stream(5, 7) + frames.rst_stream(1, 8)
    yield "to HEAD", _h2(ok, 3, end=False) + frames.frame(frames.DATA, 1, 3)
    yield "settings", frames.settings([(1, 0), (3, 1), (4, 2), (8, 1)]) + frames.frame(frames.PING, 1, 0, b"12345678")
    for name, fields in {
        "no status": [(b"x", b"y")], "101": [(b":status", b"101")], "upper": [(b":status", b"200"), (b"X", b"y")],
        "connection": [(b":status", b"200"), (b"connection", b"close")],
        "length twice": [*ok, (b"content-length", b"3")],
    }.items():  # fmt: skip
        yield name, _h2(fields, 1)


def blocks() -> Iterator[tuple[str, bytes]]:
    from tests.test_http2 import MALFORMED

    encoder, wire = hpack.Encoder(), b""
    for _, fields in list(MALFORMED.items())[:6]:
        block = encoder.encode(fields)
        wire += bytes((len(block),)) + block
    yield "tables", wire
    for name, block in {
        "huffman": hpack.Encoder().encode(GET, huffman=True), "plain": hpack.Encoder().encode(GET, huffman=False),
        "size update": b"\x20\x3f\xe1\x1f\x82", "never indexed": b"\x10\x05x-key\x04hush",
        "long integer": b"\x7f\x80\x80\x80\x00", "broken": b"\xff\xff\xff\xff\xff", "index 0": b"\x80",
        "huffman padding": b"\x00\x85\xff\xff\xff\xff\xff\x01a",
    }.items():  # fmt: skip
        yield name, bytes((len(block),)) + block


def hbone_server() -> Iterator[tuple[str, bytes]]:
    from tests.test_hbone import BREACHES, CONNECT

    for name, (wire, _) in BREACHES.items():
        yield name, wire
    client = HboneConnection(client=True)
    client.take_output()
    first, second = client.open(CONNECT), client.open([*CONNECT, (b"traceparent", b"00-" + b"1" * 32 + b"-2-01")])
    client.send(first, b"through the tunnel")
    client.end(first)
    client.ping(b"12345678")
    client.reset(second)
    yield "tunnels", client.take_output()
    plain = frames.encode_fields(CONNECT)
    yield "continued", frames.headers(1, plain, end=False, max_frame_size=9) + frames.frame(0, 8, 1, b"\2ab\0\0")
    yield "with scheme", _h2([*CONNECT[:2], (b":scheme", b"https"), (b":path", b"/")], 1, end=False)
    yield "GET", _h2(GET, 1)
    yield "settings", frames.settings([(3, 1), (4, 2**31 - 1)]) + frames.goaway(0, 0) + frames.window_update(0, 1)


def hbone_client() -> Iterator[tuple[str, bytes]]:
    server = HboneConnection(client=False)
    opener = HboneConnection(client=True)
    for _ in range(2):
        opener.open([(b":method", b"CONNECT"), (b":authority", b"a:1")])
    server_events = server.receive(opener.take_output())
    server.take_output()
    (one, two) = [e.stream for e in server_events if hasattr(e, "fields")]
    server.respond(one, 200, ((b"baggage", b"k8s.namespace.name=default"),))
    server.send(one, b"back")
    server.end(one)
    server.respond(two, 401, end=True)
    server.goaway(graceful=True)
    yield "answers", server.take_output()
    yield "503", _h2([(b":status", b"503")], 1) + frames.rst_stream(3, 0)
    yield "interim", _h2([(b":status", b"100")], 1, end=False) + _h2([(b":status", b"200")], 1, end=False)
    yield "status of two digits", _h2([(b":status", b"20")], 1)
    yield "goaway", frames.goaway(1, 11, "calm") + frames.rst_stream(1, 8)


def fields() -> Iterator[tuple[str, bytes]]:
    told = b"\0k8s.cluster.name=c,k8s.namespace.name=default,k8s.pod.name=a,service.name=a,cloud.region=r"
    for text in (
        "10.0.0.5:8080", "[fd00::6]:8080", "web.example:80", "web.example", "10.0.0.5", "10.0.0.5:0", "10.0.0.5:65536",
        "10.0.0.5:15008", "fd00::6:80", "[fd00::6%eth0]:80", "010.0.0.5:80", "10.0.0.5:+80", "a b:80", ":80", "[]:80",
        "WEB.EXAMPLE:80", "[web.example]:80", "10.0.0.5:8080:8080", "10.0.0.6:80", "[::ffff:10.0.0.5]:8080", "",
    ):  # fmt: skip
        yield f"authority {text}", text.encode() + told


def hellos() -> Iterator[tuple[str, bytes]]:
    from tests.test_clienthello import BROKEN, REAL, refragmented

    yield "openssl", REAL
    yield "in fragments", refragmented(REAL, 100)
    for name, row in BROKEN.items():
        yield name, row if isinstance(row, bytes) else row[0]


def firsts() -> Iterator[tuple[str, bytes]]:
    from tests.test_detect import ANSWERS

    for number, data in enumerate(ANSWERS):
        if isinstance(data, bytes):
            yield f"{number} {data[:20]!r}", data


def dns_answers() -> Iterator[tuple[str, bytes]]:
    from tests import dnsserver

    name = "files.example.com"
    for kind in (dns.A, dns.AAAA):
        question = dns.query(7, name, kind)
        address = "10.0.0.1" if kind == dns.A else "fd00::1"
        rows = [(name, 60, address), (name, 5, "real.example"), ("real.example", 60, address)]
        for number in range(4):
            yield f"{kind} rows {number}", dnsserver.reply(question, rows[:number])
        yield f"{kind} alias", dnsserver.reply(question, rows[1:])
        yield f"{kind} no such name", dnsserver.reply(question, [], code=3)
        yield f"{kind} cut", dnsserver.reply(question, rows)[:-5]
    yield "the question", dns.query(7, name, dns.A)


def paths() -> Iterator[tuple[str, bytes]]:
    for text in (
        "/", "/a/b?q=../..", "/a//b", "/a/../b", "/a/%2e%2e/b", "/a%2Fb", "/a%5cb", "/a\\..\\b", "/%%32e", "/..", "/.",
        "*", "/a/./b/", "/%zz", "/a;b/../c", "/ä", "//host/a",
    ):  # fmt: skip
        yield text, text.encode() + b"\0/{*}/x{**}"


def views() -> Iterator[tuple[str, bytes]]:
    from tests.meshviews import behind, gateway, service, workload

    many = {
        "workloads": [
            workload("a", "10.0.0.1", **behind("web", {"80": 8081}), waypoint=gateway("/10.0.0.9"), node="n",
                     locality={"region": "r", "zone": "z"}, authorizationPolicies=["default/p"], capacity=2),
            workload("w", "10.0.0.9", "fd00::9", applicationTunnel={"protocol": "PROXY", "port": 15088}),
            workload("h", hostname="h.example", networkMode="HostNetwork", status="Unhealthy", nativeTunnel=True),
        ],
        "services": [
            service("web", "10.96.0.1", waypoint=gateway("default/w.example"),
                    cidrVips=[{"network": "", "cidr": "10.97.0.0/16"}],
                    loadBalancer={"mode": "Failover", "routingPreferences": ["Zone", "Region"],
                                  "healthPolicy": "AllowAll"},
                    ipFamilies="Dual", subjectAltNames=["spiffe://cluster.local/ns/default/sa/a", "web.example"]),
        ],
        "policies": [
            {"name": "p", "namespace": "default", "scope": "WorkloadSelector", "action": "Deny", "dryRun": False,
             "rules": [[[{"sourceIps": ["10.0.0.0/8"], "destinationPorts": [80], "principals": [{"Exact": "a"}]}]]]},
        ],
    }  # fmt: skip
    yield "many", json.dumps(many).encode()
    for key in ("workloads", "services", "policies"):
        yield f"{key} alone", json.dumps({key: many[key]}).encode()
    yield "unknown key", b'{"worklods": []}'
    yield "no object", b"[]"


def l7_views() -> Iterator[tuple[str, bytes]]:
    from testbed.bench.l7config import Net, l7_config

    for role, name in (("sidecar", "server"), ("waypoint", "waypoint")):
        yield role, json.dumps(l7_config(Net.of("127.0.0"), role, name, target_port=8080)).encode()
    more = l7_config(Net.of("127.0.0"), "sidecar", "client", target_port=8080) | {
        "labels": [["app", "web"]], "plain_ports": [{"uid": "a", "port": 1}], "mode": "STRICT",
        "port_modes": [{"port": 80, "mode": "DISABLE"}], "outbound_any": False, "path_normalization": "NONE",
    }  # fmt: skip
    yield "more", json.dumps(more).encode()


def topologies() -> Iterator[tuple[str, bytes]]:
    for file in sorted((CHECKOUT / "topologies").glob("*.yml")):
        if "." not in file.stem:
            yield file.stem, file.read_bytes()
    yield "alias to itself", b"nodes: &a [*a]\n"
    yield "aliases of aliases", _bomb("nodes: ")


def _bomb(key: str) -> bytes:
    lines = ["x0: &a0 [a, a, a, a, a, a, a, a, a, a]"]
    lines += [f"x{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    return ("\n".join(lines) + f"\n{key}*a8\n").encode()


def resources() -> Iterator[tuple[str, bytes]]:
    for file in sorted((CHECKOUT / "topologies").glob("*.policies.yml")):
        yield file.stem, file.read_bytes()
    tests = CHECKOUT / "tests"
    source = "".join((tests / f"test_{name}.py").read_text() for name in ("policyfile", "trafficfile"))
    for number, text in enumerate(re.findall(r'"""\\?\n(apiVersion: .*?)"""', source, re.DOTALL)[:12]):
        yield f"resource {number}", text.encode()
    yield "alias to itself", (
        b"apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec: &a {x: *a}\n"
    )
    yield "aliases of aliases", (
        b"apiVersion: networking.istio.io/v1\nkind: Gateway\nmetadata: {name: g}\nspec:\n  "
        + _bomb("y: ").replace(b"\n", b"\n  ")
    )


def captures() -> Iterator[tuple[str, bytes]]:
    from testbed.observe import pcapng
    from testbed.observe.pcapng import Interface, Packet, Recording
    from tests.test_pcapng import recording

    def written(held: Recording) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            pcapng.write(Path(folder) / "a.pcapng", held)
            return (Path(folder) / "a.pcapng").read_bytes()

    whole = written(recording(key_log="CLIENT_RANDOM " + "ab" * 32 + " " + "cd" * 48 + "\n"))
    yield "interfaces, secrets, losses", whole
    yield "cut", whole[:-7]
    yield "two sections", written(recording()) + whole
    draw = random.Random(1)
    addresses = bytes((10, 0, 0, 1, 10, 0, 0, 2))
    packets, sequence = [], 1000
    for number, (flags, payload) in enumerate(
        ((2, b""), (16, b""), (24, b"GET / HTTP/1.1\r\n"), (24, b"host: a\r\n\r\n"), (17, b""))
    ):
        tcp = bytes((0x9C, 0x40, 0, 80)) + sequence.to_bytes(4) + bytes(4) + bytes((0x50, flags, 255, 255)) + bytes(4)
        total = 20 + len(tcp) + len(payload)
        ip = bytes((0x45, 0)) + total.to_bytes(2) + bytes(4) + bytes((64, 6, 0, 0)) + addresses
        data = draw.randbytes(12) + b"\x08\x00" + ip + tcp + payload
        packets.append(Packet(number + 1, 0, 1_000_000_000 + number, data, len(data)))
        sequence += len(payload) + (flags == 2)
    yield "a connection", written(
        Recording(interfaces=(Interface(name="a:b"),), packets=tuple(packets), drops={0: 0})
    )


def tls_records() -> Iterator[tuple[str, bytes]]:
    from tests.test_clienthello import REAL

    yield "hello", REAL
    yield "hello and what follows", REAL + b"\x14\x03\x03\x00\x01\x01" + b"\x17\x03\x03\x00\x10" + bytes(16)
    answer = (
        b"\x02\x00\x00\x2e\x03\x03" + bytes(range(32)) + b"\x00\x13\x02\x00\x00\x06\x00\x2b\x00\x02\x03\x04"
    )
    yield "server hello", b"\x16\x03\x03" + len(answer).to_bytes(2) + answer
    yield "middle", b"\x17\x03\x03\x00\x10" + bytes(16)


def h2_captured() -> Iterator[tuple[str, bytes]]:
    ask = frames.settings(()) + _h2([(b":method", b"CONNECT"), (b":authority", b"a:1")], 1, end=False)
    ask += frames.frame(frames.DATA, 9, 1, b"\x01hi\0") + frames.rst_stream(1, 8)
    told = frames.settings([(3, 9)]) + _h2([(b":status", b"200")], 1, end=False) + frames.frame(0, 1, 1, b"x")
    yield "a tunnel", len(ask).to_bytes(2) + ask + told + frames.goaway(1, 0)
    block = hpack.Encoder().encode(GET)
    parts = frames.headers(1, block, end=True, max_frame_size=5)
    yield "continued", len(parts).to_bytes(2) + parts
    yield "push", b"\0\0" + frames.frame(frames.PUSH_PROMISE, 4, 1, b"\0\0\0\2" + block)


def _leaf() -> tuple[CertificateAuthority, bytes]:
    import ssl

    from testbed.model.identity import Identity

    made = CertificateAuthority(now=NOW_S, trust_domain="cluster.local")
    leaf = made.issue(Identity("cluster.local", "default", "server"), now=NOW_S)
    return made, ssl.PEM_cert_to_DER_cert(leaf.cert_pem.decode())


def certificates() -> Iterator[tuple[str, bytes]]:
    _, der = _leaf()
    entry = len(der).to_bytes(3) + der + b"\0\0"
    for name, body in {"one": entry, "two": entry * 2, "none": b""}.items():
        yield name, b"\0" + len(body).to_bytes(3) + body
    yield "alpn", b"\0\x09\0\x10\0\x05\0\x03\x02h2"
    yield "too short", b"\0\0"


def lists() -> Iterator[tuple[str, bytes]]:
    authority, der = _leaf()
    listed = authority.revocation_list([5, 7], now=NOW_S)
    yield "pem", listed
    yield "certificate", der
    assert len(crl.revoked(listed)) == 2
    import binascii

    yield "der", binascii.a2b_base64(b"".join(listed.split(b"\n")[1:-2]))
    yield "no end", listed[:-30]


def names() -> Iterator[tuple[str, bytes]]:
    for text in (
        "spiffe://cluster.local/ns/default/sa/a", "spiffe://cluster.local", "spiffe:///ns/a/sa/b", "http://x/ns/a/sa/b",
        "spiffe://cluster.local/ns/default/sa/a/b", "spiffe://cluster.local/ns//sa/a", "cluster.local/ns/a/sa/b", "",
    ):  # fmt: skip
        yield f"name {text}", text.encode()


def proxied() -> Iterator[tuple[str, bytes]]:
    body = bytes((10, 0, 0, 1)) + bytes(12) + bytes((10, 0, 0, 2)) + bytes(12) + b"\x9c\x40\0\x50"
    for number in range(4):
        yield f"families {number}", bytes((number,)) + body + b"spiffe://cluster.local/ns/default/sa/a"
    yield "no identity", b"\0" + body


SOURCES = {
    "http1-server": http1_server, "http1-client": http1_client, "http2-server": http2_server,
    "http2-client": http2_client, "hpack": blocks, "hbone-server": hbone_server, "hbone-client": hbone_client,
    "hbone-fields": fields, "clienthello": hellos, "detect": firsts, "proxyprotocol": proxied, "dns": dns_answers,
    "path": paths, "view": views, "l7-view": l7_views, "topology": topologies, "policies": resources,
    "pcapng": captures, "tls-records": tls_records, "h2-captured": h2_captured, "certificate": certificates,
    "crl": lists, "spiffe": names,
}  # fmt: skip


def main() -> None:
    for name in TARGETS:
        folder = CORPUS / name
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.iterdir():
            if not old.name.startswith("found-"):
                old.unlink()
        used: set[str] = set()
        for title, data in SOURCES[name]():
            slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")[:40] or "empty"
            while slug in used:
                slug += "-x"
            used.add(slug)
            if len(data) <= MOST_BYTES:
                (folder / slug).write_bytes(data)
        print(name, len(list(folder.iterdir())))


if __name__ == "__main__":
    main()
