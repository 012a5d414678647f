"""Attempts to get through, made inside a sandbox and told as they went: what boundary experiments rest on.

    python -m testbed.verify.probe [--attempts FILE] [--out FILE]      (else stdin, stdout; both JSON)

Input is a list of attempts, output a list of `{"name", "kind", "tries": [...]}`; `attempt` has the fields of both.
Nothing is asserted here; a refusal is a result like any other. It shares no code with the planes it tries: TLS is the
standard library's, HTTP/2 is h2's. A network error becomes a short `error` (`refused`, `reset`, `closed`, `timeout`,
`tls: …`), never a traceback.
"""

from __future__ import annotations

import argparse
import http.client
import io
import json
import os
import socket
import ssl
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

from testbed.errors import UsageError
from testbed.verify.attempt import Attempt, Try, parse_attempts

MAX_ANSWER_BYTES = 1024 * 1024

def make(attempt: Attempt) -> list[Try]:
    """All tries, one after another; those of one connection follow each other on it."""
    tries: list[Try] = []
    for number in range(attempt.connections):
        share = attempt.times // attempt.connections + (number < attempt.times % attempt.connections)
        tries += _on_one_connection(attempt, share)
    return tries


def _on_one_connection(attempt: Attempt, times: int) -> list[Try]:
    """A try that fails ends its connection; the next opens one of its own."""
    tries: list[Try] = []
    channel: _Channel | None = None
    for _ in range(times):
        outcome = Try()
        began_s = time.monotonic()
        try:
            if channel is None:
                channel = _CHANNELS[attempt.kind](attempt)
                channel.open(outcome)
            else:
                channel.tell_known(outcome)
            channel.exchange(outcome)
        except (OSError, EOFError, http.client.HTTPException, h2.exceptions.ProtocolError, ValueError) as error:
            outcome.error = outcome.error or _kind(error)
        outcome.took_ms = round((time.monotonic() - began_s) * 1000, 3)
        if channel is not None and (outcome.error or channel.spent):
            channel.close()
            channel = None
        tries.append(outcome)
    if channel is not None:
        channel.close()
    return tries


class _Channel(ABC):
    """A connection that can be used several times: open, then exchange."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.socket: socket.socket | None = None
        self.opened = Try()
        self.spent = False
        """The peer ends this connection by agreement; no error."""

    def open(self, outcome: Try) -> None:
        attempt = self.attempt
        self.socket = socket.create_connection((attempt.address, attempt.port), attempt.timeout_s)
        outcome.connected = True
        self.opened = outcome

    def tell_known(self, outcome: Try) -> None:
        known = self.opened
        outcome.connected, outcome.handshake, outcome.tls = known.connected, known.handshake, known.tls
        outcome.peer_identity = known.peer_identity

    @abstractmethod
    def exchange(self, outcome: Try) -> None:
        """Sends what the attempt asks for and notes what comes back."""

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()


class _Tcp(_Channel):
    def open(self, outcome: Try) -> None:
        super().open(outcome)
        assert self.socket is not None
        if self.attempt.banner:
            first = self.socket.recv(65536)
            outcome.bytes_received += len(first)
            if not first:
                raise EOFError

    def exchange(self, outcome: Try) -> None:
        assert self.socket is not None
        sent = (self.attempt.payload + self.attempt.canary).encode() or b"probe"
        self.socket.sendall(sent)
        back = b""
        while len(back) < len(sent):
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            back += data
            outcome.bytes_received += len(data)
        outcome.echoed = back == sent


class _Http(_Channel):
    def open(self, outcome: Try) -> None:
        super().open(outcome)
        self.http = http.client.HTTPConnection(self.attempt.address, self.attempt.port)
        self.http.sock = self.socket

    def exchange(self, outcome: Try) -> None:
        attempt = self.attempt
        headers = {**attempt.headers, **({"x-canary": attempt.canary} if attempt.canary else {})}
        body = attempt.canary.encode() if attempt.canary and attempt.method in ("POST", "PUT") else None
        named = {name.lower() for name in headers}
        self.http.putrequest(
            attempt.method, attempt.path, skip_host="host" in named, skip_accept_encoding="accept-encoding" in named
        )
        for name, value in (*headers.items(), *attempt.lines):
            self.http.putheader(name, value)
        framed = "content-length" in named or "transfer-encoding" in named
        if not framed and (body is not None or attempt.method in ("POST", "PUT", "PATCH")):
            self.http.putheader("Content-Length", str(len(body or b"")))
        self.http.endheaders(body)
        answer = self.http.getresponse()
        _tell_answer(outcome, answer, len(answer.read(MAX_ANSWER_BYTES)))
        self.spent = answer.will_close


def _tell_answer(outcome: Try, answer: http.client.HTTPResponse, size: int) -> None:
    outcome.status, outcome.bytes_received = answer.status, outcome.bytes_received + size
    outcome.answered_by, outcome.seen_as = answer.getheader("x-workload"), answer.getheader("x-peer-address")


class _Http2(_Channel):
    """Prior knowledge, a stream for each request: fields are HPACK's, so that no byte of a canary stands as it is."""

    def open(self, outcome: Try) -> None:
        super().open(outcome)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.h2.initiate_connection()

    def exchange(self, outcome: Try) -> None:
        assert self.socket is not None
        attempt, stream = self.attempt, self.h2.get_next_available_stream_id()
        authority = attempt.authority or f"{attempt.address}:{attempt.port}"
        head = [(":method", attempt.method), (":scheme", "http"), (":authority", authority), (":path", attempt.path)]
        head += [(name.lower(), value) for name, value in attempt.headers.items()]
        if attempt.canary:
            head.append(("x-canary", attempt.canary))
        body = attempt.canary.encode() if attempt.canary and attempt.method in ("POST", "PUT") else b""
        self.h2.send_headers(stream, head, end_stream=not body)
        if body:
            self.h2.send_data(stream, body, end_stream=True)
        ended = False
        while not ended:
            self.socket.sendall(self.h2.data_to_send())
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
            for event in self.h2.receive_data(data):
                if getattr(event, "stream_id", stream) == stream:
                    ended = self._tell(event, outcome) or ended

    def _tell(self, event: h2.events.Event, outcome: Try) -> bool:
        """Whether there is no more to come."""
        if isinstance(event, h2.events.ResponseReceived):
            fields = dict(event.headers)
            outcome.status = int(fields[":status"])
            outcome.answered_by, outcome.seen_as = fields.get("x-workload"), fields.get("x-peer-address")
        elif isinstance(event, h2.events.DataReceived):
            outcome.bytes_received += len(event.data)
            self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, h2.events.StreamReset):
            outcome.error = f"stream reset ({_h2_name(event.error_code)})"
        elif isinstance(event, h2.events.ConnectionTerminated):
            self.spent = True
            if event.error_code != h2.errors.ErrorCodes.NO_ERROR:
                outcome.error = f"goaway ({_h2_name(event.error_code)})"
        return bool(outcome.error) or isinstance(event, h2.events.StreamEnded)


class _Tls(_Channel):
    def open(self, outcome: Try) -> None:
        super().open(outcome)
        assert self.socket is not None
        attempt = self.attempt
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False  # SPIFFE identities are URIs; the caller judges `peer_identity`
        context.verify_mode = ssl.CERT_REQUIRED if attempt.ca else ssl.CERT_NONE
        if attempt.ca:
            context.load_verify_locations(attempt.ca)
        if attempt.cert and attempt.key:
            context.load_cert_chain(attempt.cert, attempt.key)
        if attempt.alpn:
            context.set_alpn_protocols(list(attempt.alpn))
        try:
            wrapped = context.wrap_socket(self.socket, server_hostname=attempt.server_name)
        except (OSError, EOFError) as error:
            outcome.handshake = "refused" if _by_peer(error) else "failed"
            raise
        self.socket = wrapped
        outcome.handshake = "done"
        cipher = wrapped.cipher()
        outcome.tls = f"{wrapped.version()} {cipher[0] if cipher else ''}".strip()
        certificate = wrapped.getpeercert(binary_form=True)
        outcome.peer_identity = spiffe_identity(certificate) if certificate else None

    def exchange(self, outcome: Try) -> None:
        """In TLS 1.3 a client is done before the server has judged its certificate: only a read tells (RFC 8446 §2)."""
        assert self.socket is not None
        self.socket.settimeout(min(0.5, self.attempt.timeout_s))
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            return  # silence: the handshake stands
        except OSError:
            outcome.handshake = "refused"
            raise
        outcome.bytes_received = len(data)
        if not data:
            outcome.handshake = "refused"
            raise EOFError


class _Mtls(_Tls):
    """HTTP/1.1 inside TLS: what a client's sidecar sends, made without one."""

    def exchange(self, outcome: Try) -> None:
        assert self.socket is not None
        attempt = self.attempt
        http_connection = http.client.HTTPConnection(attempt.address, attempt.port)
        http_connection.sock = self.socket
        headers = {**attempt.headers, **({"x-canary": attempt.canary} if attempt.canary else {})}
        try:
            http_connection.request(attempt.method, attempt.path, headers=headers)
            answer = http_connection.getresponse()
        except (OSError, http.client.RemoteDisconnected):
            # In TLS 1.3 the verdict on our certificate comes after our handshake is done (RFC 8446 §2).
            outcome.handshake = "refused"
            raise
        _tell_answer(outcome, answer, len(answer.read(MAX_ANSWER_BYTES)))
        self.spent = answer.will_close


def _by_peer(error: BaseException) -> bool:
    if isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError | ConnectionError | EOFError):
        return True
    return isinstance(error, ssl.SSLError) and "ALERT" in (error.reason or "")


def spiffe_identity(certificate_der: bytes) -> str | None:
    from cryptography import x509

    certificate = x509.load_der_x509_certificate(certificate_der)
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    return next(iter(names.get_values_for_type(x509.UniformResourceIdentifier)), None)


class _StreamBytes:
    """What http.client wants of a socket, over bytes already received."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


class _Hbone(_Tls):
    def open(self, outcome: Try) -> None:
        super().open(outcome)
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self.heard = False
        self.h2.initiate_connection()
        self._flush(outcome)

    def _flush(self, outcome: Try) -> None:
        assert self.socket is not None
        try:
            self.socket.sendall(self.h2.data_to_send())
        except OSError:
            if not self.heard:
                outcome.handshake = "refused"
                self.socket.recv(1)  # the peer's alert, which says more than a broken pipe, may still lie here
            raise

    def exchange(self, outcome: Try) -> None:
        attempt = self.attempt
        stream = self.h2.get_next_available_stream_id()
        # Ordinary CONNECT has neither :scheme nor :path (RFC 9113 §8.5).
        pseudo = [(":method", "CONNECT"), (":authority", attempt.authority)]
        self.h2.send_headers(stream, pseudo + [(n.lower(), v) for n, v in attempt.connect_headers.items()])
        self._flush(outcome)
        deadline_s = time.monotonic() + attempt.timeout_s
        received = b""
        sent = self._inner_bytes()
        while True:
            for event in self._events(deadline_s, outcome):
                if getattr(event, "stream_id", None) not in (stream, None, 0):
                    continue
                if isinstance(event, h2.events.ResponseReceived):
                    outcome.connect_status = int(dict(event.headers)[":status"])
                    if outcome.connect_status != 200 or not sent:
                        self._give_up(stream, outcome)
                        return
                    self.h2.send_data(stream, sent)
                    self._flush(outcome)
                elif isinstance(event, h2.events.DataReceived):
                    received += event.data
                    self.h2.acknowledge_received_data(event.flow_controlled_length, stream)
                    outcome.bytes_received = len(received)
                    if self._whole(received, sent, outcome):
                        self._give_up(stream, outcome)
                        return
                elif isinstance(event, h2.events.StreamReset):
                    outcome.error = f"stream reset ({_h2_name(event.error_code)})"
                    return
                elif isinstance(event, h2.events.StreamEnded):
                    self._whole(received, sent, outcome)
                    outcome.error = "" if outcome.status or outcome.echoed else "closed"
                    return
                elif isinstance(event, h2.events.ConnectionTerminated):
                    outcome.error = f"goaway ({_h2_name(event.error_code)})"
                    return
            self._flush(outcome)

    def _events(self, deadline_s: float, outcome: Try) -> list[h2.events.Event]:
        assert self.socket is not None
        left_s = deadline_s - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self.socket.settimeout(left_s)
        try:
            data = self.socket.recv(65536)
            if not data:
                raise EOFError
        except TimeoutError:
            raise
        except (OSError, EOFError):
            # The peer has said nothing inside TLS yet: this end is its answer to our certificate.
            if not self.heard:
                outcome.handshake = "refused"
            raise
        self.heard = True
        return self.h2.receive_data(data)

    def _give_up(self, stream: int, outcome: Try) -> None:
        """Enough is known: the stream is cancelled, so that none stays open behind the probe."""
        try:
            self.h2.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
            self._flush(outcome)
        except (h2.exceptions.ProtocolError, OSError):
            pass  # the stream or the connection has ended by itself meanwhile

    def _inner_bytes(self) -> bytes:
        attempt = self.attempt
        if attempt.inner == "none":
            return b""
        if attempt.inner == "tcp":
            return (attempt.payload + attempt.canary).encode() or b"probe"
        headers = {**attempt.headers, **({"x-canary": attempt.canary} if attempt.canary else {})}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        first = f"{attempt.method} {attempt.path} HTTP/1.1\r\nhost: {attempt.authority}\r\n"
        return f"{first}{lines}connection: close\r\n\r\n".encode()

    def _whole(self, received: bytes, sent: bytes, outcome: Try) -> bool:
        """Whether the inner answer is complete; tells it when it is."""
        if self.attempt.inner == "tcp":
            outcome.echoed = received == sent
            return len(received) >= len(sent)
        if b"\r\n\r\n" not in received:
            return False
        answer = http.client.HTTPResponse(_StreamBytes(received), method=self.attempt.method)  # type: ignore[arg-type]
        answer.begin()
        try:
            body = answer.read()
        except http.client.IncompleteRead:
            return False
        outcome.status = answer.status
        outcome.answered_by, outcome.seen_as = answer.getheader("x-workload"), answer.getheader("x-peer-address")
        outcome.bytes_received = len(body)
        return True


_CHANNELS: dict[str, type[_Channel]] = {
    "tcp": _Tcp, "http": _Http, "http2": _Http2, "tls": _Tls, "mtls": _Mtls, "hbone": _Hbone,
}  # fmt: skip


def _h2_name(code: int) -> str:
    try:
        return h2.errors.ErrorCodes(code).name
    except ValueError:
        return str(code)


def _kind(error: BaseException) -> str:
    """The same few words for the same cause."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"tls: we refuse the peer's certificate ({error.verify_message})"
    if isinstance(error, ssl.SSLEOFError):
        return "closed"
    if isinstance(error, ssl.SSLError):
        return f"tls: {(error.reason or 'error').lower()}"
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    # http.client's RemoteDisconnected is both a ConnectionResetError and a clean end; the clean end is what happened.
    if isinstance(error, EOFError | http.client.RemoteDisconnected):
        return "closed"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "reset"
    if isinstance(error, OSError) and error.errno:
        return f"{type(error).__name__} {os.strerror(error.errno)}"
    return f"{type(error).__name__}: {error}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m testbed.verify.probe", description="try, and tell what happened")
    parser.add_argument("--attempts", type=Path, help="JSON list of attempts (default: standard input)")
    parser.add_argument("--out", type=Path, help="where the results go, whole or not at all (default: standard output)")
    args = parser.parse_args(argv)
    try:
        attempts = parse_attempts(args.attempts.read_text() if args.attempts else sys.stdin.read())
    except UsageError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    results = [{"name": a.name, "kind": a.kind, "tries": [asdict(t) for t in make(a)]} for a in attempts]
    text = json.dumps(results, indent=1)
    if args.out:
        partial = args.out.with_name(args.out.name + ".part")
        partial.write_text(text)
        os.replace(partial, args.out)
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
