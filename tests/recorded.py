"""Real TLS and HTTP/2 exchanges without a socket, laid out as packets of a capture: what the fast tests read and
judge."""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h2.config
import h2.connection
import h2.events
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from testbed.observe.pcapng import Interface, Packet, Recording

TO_SERVER, TO_CLIENT = "→", "←"
Exchange = list[tuple[str, bytes]]
CLIENT = ("10.0.1.2", 40000)
SERVER = ("10.0.2.2", 15008)


class Authority:
    """A CA that gives SPIFFE leaves as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test root")])
        now = datetime.datetime.now(datetime.UTC)
        self._from, self._to = now - datetime.timedelta(hours=1), now + datetime.timedelta(days=1)
        certificate = self._sign(self._name, self._key, x509.BasicConstraints(ca=True, path_length=None))
        self.root = folder / "root.pem"
        self.root.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType
    ) -> x509.Certificate:
        builder = x509.CertificateBuilder(
            issuer_name=self._name,
            subject_name=subject,
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=self._from,
            not_valid_after=self._to,
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=True)
        return builder.sign(self._key, hashes.SHA256())

    def leaf(self, uri: str, *more: str) -> Path:
        """PEM file with key and certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(u) for u in (uri, *more)])
        certificate = self._sign(x509.Name([]), key, names)
        path = self.folder / f"{uri.rsplit('/', 1)[1]}.pem"
        path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
            + certificate.public_bytes(serialization.Encoding.PEM)
        )
        return path

    def context(self, side: int, leaf: Path, key_log: Path | None = None) -> ssl.SSLContext:
        context = ssl.SSLContext(side)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(leaf)
        context.load_verify_locations(self.root)
        context.set_alpn_protocols(["h2"])
        if key_log is not None:
            context.keylog_filename = str(key_log)
        return context


class Pair:
    """Client and server TLS joined by memory; `wire` fills with what crossed."""

    def __init__(self, client: ssl.SSLContext, server: ssl.SSLContext, name: str | None = None) -> None:
        self.wire: Exchange = []
        self._client_in, self._client_out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._server_in, self._server_out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(self._client_in, self._client_out, server_side=False, server_hostname=name)
        self.server = server.wrap_bio(self._server_in, self._server_out, server_side=True)
        for end in (self.client, self.server) * 3:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
            self.flush()

    def flush(self) -> None:
        for way, out, into in (
            (TO_SERVER, self._client_out, self._server_in),
            (TO_CLIENT, self._server_out, self._client_in),
        ):
            if data := out.read():
                self.wire.append((way, data))
                into.write(data)

    def say(self, way: str, data: bytes) -> bytes:
        """Send application bytes one way; what the other end reads."""
        sender, receiver = (self.client, self.server) if way == TO_SERVER else (self.server, self.client)
        heard = b""
        for at in range(0, len(data), 16384):
            sender.write(data[at : at + 16384])
            self.flush()
        while len(heard) < len(data):
            try:
                heard += receiver.read(65536)
            except ssl.SSLWantReadError:
                break
        return heard


def h2_pair() -> tuple[h2.connection.H2Connection, h2.connection.H2Connection]:
    return tuple(
        h2.connection.H2Connection(h2.config.H2Configuration(client_side=side, header_encoding=None))
        for side in (True, False)
    )


@dataclass
class Tunnels:
    """HBONE as a list of (authority, headers, request bytes, reply bytes), spoken by the `h2` library through `say`."""

    authority: str = "10.0.2.2:8080"
    bodies: Sequence[tuple[bytes, bytes]] = ()
    extra: Sequence[tuple[bytes, bytes]] = ((b"baggage", b"k8s.namespace.name=default"),)
    status: bytes = b"200"
    pieces: int = 1
    """DATA frames that each request is split into."""
    others: Mapping[int, str] = field(default_factory=dict)
    """Authorities of some of the streams, by number."""
    method: bytes = b"CONNECT"

    def speak(self, say: object) -> None:
        client, server = h2_pair()

        def swap() -> None:
            for _ in range(3):
                for way, a, b in ((TO_SERVER, client, server), (TO_CLIENT, server, client)):
                    if data := a.data_to_send():
                        for event in b.receive_data(say(way, data)):
                            if isinstance(event, h2.events.DataReceived):
                                b.acknowledge_received_data(event.flow_controlled_length, event.stream_id)

        client.initiate_connection()
        server.initiate_connection()
        swap()
        for number, (request, reply) in enumerate(self.bodies):
            stream = client.get_next_available_stream_id()
            trace = f"00-{number:032x}-{number:016x}-00".encode()
            authority = self.others.get(number, self.authority).encode()
            headers = [(b":method", self.method), (b":authority", authority)]
            if self.method != b"CONNECT":
                headers += [(b":scheme", b"https"), (b":path", b"/")]
            headers += self.extra
            client.send_headers(stream, [*headers, (b"traceparent", trace)])
            swap()
            server.send_headers(stream, [(b":status", self.status)], end_stream=self.status != b"200")
            swap()
            if self.status != b"200":
                continue
            step = -(-len(request) // self.pieces) or 1
            for at in range(0, len(request), step):
                client.send_data(stream, request[at : at + step])
                swap()
            client.end_stream(stream)
            server.send_data(stream, reply, end_stream=True)
            swap()


@dataclass
class Laid:
    """TCP packets of exchanges on capture points, in the order in which they were laid."""

    packets: list[Packet] = field(default_factory=list)
    interfaces: list[Interface] = field(default_factory=list)
    time_ns: int = 1_700_000_000_000_000_000

    def point(self, name: str) -> int:
        self.interfaces.append(Interface(name=name))
        return len(self.interfaces) - 1

    def add(self, interface: int, frame: bytes) -> int:
        self.time_ns += 10_000
        number = len(self.packets) + 1
        self.packets.append(
            Packet(number=number, interface=interface, time_ns=self.time_ns, data=frame, wire_length=len(frame))
        )
        return number

    def exchange(
        self,
        exchange: Exchange,
        *,
        points: Sequence[int] = (0,),
        client: tuple[str, int] = CLIENT,
        server: tuple[str, int] = SERVER,
        mss: int = 1400,
        shake: object = None,
        opening: bool = True,
    ) -> None:
        """`shake`: list of segments -> list of segments, to reorder, repeat or lose some."""
        segments = list(tcp(exchange, client, server, mss, opening=opening))
        for segment in shake(segments) if shake else segments:
            for point in points:
                self.add(point, segment)

    def recording(self, *, key_log: str = "", drops: int | None = 0) -> Recording:
        return Recording(
            interfaces=tuple(self.interfaces),
            packets=tuple(self.packets),
            key_log=key_log,
            drops={} if drops is None else dict.fromkeys(range(len(self.interfaces)), drops),
        )


def tcp(
    exchange: Exchange, client: tuple[str, int], server: tuple[str, int], mss: int, *, opening: bool = True
) -> list[bytes]:
    """Frames of a whole connection. The client's sequence numbers pass 2^32 on the way, as real ones do."""
    sent = {TO_SERVER: 0xFFFFFF00, TO_CLIENT: 1000}
    ends = {TO_SERVER: (client, server), TO_CLIENT: (server, client)}
    frames = []

    def put(way: str, flags: int, payload: bytes = b"") -> None:
        heard = sent[TO_CLIENT if way == TO_SERVER else TO_SERVER]
        frames.append(frame(*ends[way], sent[way], flags, payload, acknowledged=heard))
        sent[way] = (sent[way] + len(payload) + (1 if flags & 3 else 0)) & 0xFFFFFFFF

    put(TO_SERVER, 2) if opening else None
    put(TO_CLIENT, 18) if opening else None
    for way, data in exchange:
        for at in range(0, len(data), mss):
            put(way, 24, data[at : at + mss])
    put(TO_SERVER, 17)
    put(TO_CLIENT, 17)
    return frames


def frame(
    source: tuple[str, int],
    destination: tuple[str, int],
    sequence: int,
    flags: int,
    payload: bytes,
    *,
    acknowledged: int = 0,
) -> bytes:
    head = (source[1], destination[1], sequence, acknowledged, 0x50, flags, 65535, 0, 0)
    segment = struct.pack("!HHIIBBHHH", *head) + payload
    addresses = ipaddress.ip_address(source[0]).packed + ipaddress.ip_address(destination[0]).packed
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0x4000, 64, 6, 0) + addresses
    return bytes(12) + b"\x08\x00" + head + segment


def hbone(authority: Authority, folder: Path, tunnels: Tunnels, *, client: str, server: str) -> tuple[Exchange, str]:
    """(what crossed, its key log) of an HBONE connection between two identities; several in one certificate stand
    with spaces between."""
    key_log = folder / f"keys-{os.urandom(4).hex()}.txt"
    pair = Pair(
        authority.context(ssl.PROTOCOL_TLS_CLIENT, authority.leaf(*client.split()), key_log),
        authority.context(ssl.PROTOCOL_TLS_SERVER, authority.leaf(*server.split())),
    )
    tunnels.speak(pair.say)
    return pair.wire, key_log.read_text()
