"""TLS 1.3 opened with its key log: application bytes, chosen ALPN, certificates both ways, each byte with its
packets. Pure.

Source: RFC 8446 §5.2 (record protection), §7.1-7.3 (key schedule from a traffic secret on), §4.6.3 (KeyUpdate);
draft-ietf-tls-keylogfile for the file. scapy decrypts too, but takes 1.6 ms a packet (measured) and keeps its
state in globals.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, HashAlgorithm
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from testbed.observe import tlsrecords
from testbed.observe.streams import ByteStream, Connection
from testbed.observe.tlsrecords import ALERT, APPLICATION_DATA, CHANGE_CIPHER_SPEC, HANDSHAKE, Hello, Record

ENCRYPTED_EXTENSIONS, CERTIFICATE, FINISHED, KEY_UPDATE = 8, 11, 20, 24
ALPN_EXTENSION = 16
HANDSHAKE_SECRETS = ("CLIENT_HANDSHAKE_TRAFFIC_SECRET", "SERVER_HANDSHAKE_TRAFFIC_SECRET")
TRAFFIC_SECRETS = ("CLIENT_TRAFFIC_SECRET_0", "SERVER_TRAFFIC_SECRET_0")

KeyLog = Mapping[tuple[bytes, str], bytes]
"""(client random, label) -> secret."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Suite:
    hash: type[HashAlgorithm]
    aead: type
    key_bytes: int


SUITES = {
    0x1301: Suite(hash=SHA256, aead=AESGCM, key_bytes=16),
    0x1302: Suite(hash=SHA384, aead=AESGCM, key_bytes=32),
    0x1303: Suite(hash=SHA256, aead=ChaCha20Poly1305, key_bytes=32),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A peer's leaf, as sent inside the handshake."""

    uris: tuple[str, ...]
    """URI SANs: here stands the SPIFFE identity."""
    issuer: str
    sha256: str
    packets: tuple[int, ...]
    chain: tuple[bytes, ...] = ()
    """DER of it and of all that were sent with it, in their order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plaintext:
    """What one direction said inside. `data` is application data only."""

    data: bytes = b""
    starts: tuple[int, ...] = ()
    """Offset in `data` where each record's content begins, ascending."""
    records: tuple[tuple[int, int], ...] = ()
    """Where that record lies in the TCP stream."""
    stream: ByteStream = field(default_factory=ByteStream)
    certificate: Certificate | None = None
    alpn: str | None = None
    """The server's choice (only in its direction)."""
    decrypted: int = 0
    """Records opened, of every kind."""
    problem: str = ""
    """Why opening stopped before the end; empty when it did not."""

    def _span(self, start: int, stop: int) -> tuple[int, int]:
        """Range in the TCP stream whose records hold bytes `start`..`stop`."""
        first = bisect_right(self.starts, start) - 1
        last = max(first, bisect_right(self.starts, stop - 1) - 1)
        return self.records[first][0], self.records[last][1]

    def carriers(self, start: int, stop: int) -> tuple[int, ...]:
        return self.stream.carriers(*self._span(start, stop)) if self.starts else ()

    def first_seen_ns(self, start: int, stop: int) -> int:
        return self.stream.first_seen_ns(*self._span(start, stop)) if self.starts else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsConnection:
    connection: Connection
    client_hello: Hello | None
    server_hello: Hello | None
    client: Plaintext
    server: Plaintext

    @property
    def version(self) -> str:
        """As negotiated; empty when no ServerHello was seen."""
        return self.server_hello.versions[0] if self.server_hello else ""

    @property
    def opened(self) -> bool:
        """Both directions were decrypted to their end."""
        return bool(self.client.decrypted and self.server.decrypted) and not self.problem

    @property
    def problem(self) -> str:
        return self.client.problem or self.server.problem


def parse_key_log(text: str) -> KeyLog:
    """Lines that are no key log lines (comments, half-written ends) are passed over, as Wireshark does."""
    secrets = {}
    for line in text.splitlines():
        parts = line.split()
        if len(parts) != 3 or line.startswith("#"):
            continue
        try:
            secrets[(bytes.fromhex(parts[1]), parts[0])] = bytes.fromhex(parts[2])
        except ValueError:
            continue
    return secrets


def expand_label(secret: bytes, label: str, length: int, suite: Suite) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446 §7.1)."""
    full = b"tls13 " + label.encode()
    info = length.to_bytes(2, "big") + bytes((len(full),)) + full + b"\x00"
    return HKDFExpand(algorithm=suite.hash(), length=length, info=info).derive(secret)


class _Epoch:
    """One traffic secret at work: key, nonce base, and the count of records."""

    def __init__(self, secret: bytes, suite: Suite) -> None:
        self.secret = secret
        self.suite = suite
        self._aead = suite.aead(expand_label(secret, "key", suite.key_bytes, suite))
        self._iv = int.from_bytes(expand_label(secret, "iv", 12, suite), "big")
        self._sequence = 0

    def open(self, record: Record) -> tuple[int, bytes]:
        """(content type, content); raises InvalidTag."""
        nonce = (self._iv ^ self._sequence).to_bytes(12, "big")
        inner = self._aead.decrypt(nonce, record.body, record.header).rstrip(b"\x00")  # padding, RFC 8446 §5.4
        self._sequence += 1
        return (inner[-1], inner[:-1]) if inner else (0, b"")

    def updated(self) -> _Epoch:
        return _Epoch(expand_label(self.secret, "traffic upd", self.suite.hash.digest_size, self.suite), self.suite)


def open_connection(connection: Connection, keys: KeyLog) -> TlsConnection | None:
    """None when the connection does not begin with TLS hellos. Without keys the hellos alone are filled in."""
    forward, backward = connection.forward, connection.backward
    if not tlsrecords.begins_tls(forward.data):
        return None
    try:
        client_hello = next(iter(tlsrecords.hellos(forward.data, forward.whole_until())), None)
        answers = tlsrecords.hellos(backward.data, backward.whole_until())
    except ValueError as error:
        lost = Plaintext(stream=forward, problem=str(error))
        return TlsConnection(connection=connection, client_hello=None, server_hello=None, client=lost, server=lost)
    server_hello = next((h for h in answers if not h.is_retry), None)
    sides = []
    for side, stream in enumerate((forward, backward)):
        sides.append(_open_side(stream, side, client_hello, server_hello, keys))
    return TlsConnection(
        connection=connection, client_hello=client_hello, server_hello=server_hello, client=sides[0], server=sides[1]
    )


def _open_side(
    stream: ByteStream, side: int, client_hello: Hello | None, server_hello: Hello | None, keys: KeyLog
) -> Plaintext:
    if client_hello is None or server_hello is None:
        return Plaintext(stream=stream, problem="the handshake is not whole in the capture")
    suite = SUITES.get(server_hello.ciphers[0])
    if suite is None or server_hello.versions[0] != "TLS 1.3":
        return Plaintext(stream=stream, problem=f"{server_hello.versions[0]} {server_hello.cipher} is not opened here")
    handshake = keys.get((client_hello.random, HANDSHAKE_SECRETS[side]))
    traffic = keys.get((client_hello.random, TRAFFIC_SECRETS[side]))
    if handshake is None or traffic is None:
        return Plaintext(stream=stream, problem="the key log has no secrets for this connection")
    return _Opener(stream, _Epoch(handshake, suite), _Epoch(traffic, suite)).run()


class _Opener:
    """Walks one direction's records: handshake epoch until Finished, then traffic epochs, a new one at each
    KeyUpdate."""

    def __init__(self, stream: ByteStream, handshake: _Epoch, traffic: _Epoch) -> None:
        self._stream = stream
        self._epoch = handshake
        self._traffic: _Epoch | None = traffic
        self._data = bytearray()
        self._starts: list[int] = []
        self._records: list[tuple[int, int]] = []
        self._handshake = b""
        self._handshake_from = 0
        self._certificate: Certificate | None = None
        self._alpn: str | None = None
        self._decrypted = 0

    def run(self) -> Plaintext:
        stream, problem, end = self._stream, "", 0
        for record in tlsrecords.records(stream.data, stream.whole_until()):
            end = record.stop
            if record.kind != APPLICATION_DATA:
                # The hellos and the meaningless change_cipher_spec of middlebox compatibility (RFC 8446 §D.4).
                if record.kind in (CHANGE_CIPHER_SPEC, ALERT) or not self._decrypted:
                    continue
                problem = f"an unprotected record of type {record.kind} at byte {record.start} after protection began"
                break
            try:
                kind, content = self._epoch.open(record)
            except InvalidTag:
                problem = f"the record at byte {record.start} does not open with the logged keys"
                break
            self._decrypted += 1
            if kind == APPLICATION_DATA:
                if content:
                    self._starts.append(len(self._data))
                    self._records.append((record.start, record.stop))
                    self._data += content
            elif kind == HANDSHAKE:
                self._take(content, record)
        if not problem and stream.gaps:
            problem = f"bytes {stream.gaps[0][0]}..{stream.gaps[0][1]} are missing from the capture"
        elif not problem and end < len(stream.data) and not self._cut_record(end):
            problem = f"what stands at byte {end} is not a TLS record"
        return Plaintext(
            data=bytes(self._data),
            starts=tuple(self._starts),
            records=tuple(self._records),
            stream=stream,
            certificate=self._certificate,
            alpn=self._alpn,
            decrypted=self._decrypted,
            problem=problem,
        )

    def _cut_record(self, at: int) -> bool:
        """The rest is the beginning of a record whose end came after the capture stopped."""
        data = self._stream.data
        return len(data) - at < 5 or (data[at] in (20, 21, 22, 23) and data[at + 1] == 3)

    def _take(self, content: bytes, record: Record) -> None:
        if not self._handshake:
            self._handshake_from = record.start
        self._handshake += content
        used = 0
        for kind, message, used_to in tlsrecords.messages(self._handshake):
            used = used_to
            if kind == ENCRYPTED_EXTENSIONS:
                self._alpn = chosen_alpn(message)
            elif kind == CERTIFICATE:
                packets = self._stream.carriers(self._handshake_from, record.stop)
                self._certificate = leaf(message, packets)
            elif kind == FINISHED and self._traffic is not None:
                self._epoch, self._traffic = self._traffic, None
            elif kind == KEY_UPDATE:
                self._epoch = self._epoch.updated()
        self._handshake = self._handshake[used:]
        if self._handshake and used:
            self._handshake_from = record.start


def chosen_alpn(message: bytes) -> str | None:
    """ALPN in an EncryptedExtensions message (RFC 7301 §3.1), None without that extension."""
    at = 6
    while at + 4 <= len(message):
        kind, length = int.from_bytes(message[at : at + 2], "big"), int.from_bytes(message[at + 2 : at + 4], "big")
        if kind == ALPN_EXTENSION and length > 3 and at + 6 < len(message):
            return message[at + 7 : at + 7 + message[at + 6]].decode("ascii", "replace")
        at += 4 + length
    return None


def leaf(message: bytes, packets: Iterable[int] = ()) -> Certificate | None:
    """First certificate of a TLS 1.3 Certificate message (RFC 8446 §4.4.2); None for an empty list (client without
    one)."""
    at = 5 + message[4] if len(message) > 4 else len(message)
    if at + 6 > len(message):
        return None
    chain = []
    at += 3  # the list's own length
    while at + 3 <= len(message):
        length = int.from_bytes(message[at : at + 3], "big")
        chain.append(message[at + 3 : at + 3 + length])
        at += 3 + length
        at += 2 + int.from_bytes(message[at : at + 2], "big")  # extensions of this one
    der = chain[0]
    try:
        parsed = x509.load_der_x509_certificate(der)
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = tuple(names.get_values_for_type(x509.UniformResourceIdentifier))
        issuer = parsed.issuer.rfc4514_string()
    except x509.ExtensionNotFound:
        uris, issuer = (), parsed.issuer.rfc4514_string()
    except (ValueError, x509.InvalidVersion, x509.DuplicateExtension, x509.UnsupportedGeneralNameType):
        uris, issuer = (), ""
    return Certificate(
        uris=uris,
        issuer=issuer,
        sha256=hashlib.sha256(der).hexdigest(),
        packets=tuple(packets),
        chain=tuple(chain),
    )
