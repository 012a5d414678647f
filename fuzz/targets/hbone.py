"""HBONE: frames in both roles behind preface and SETTINGS, and what the fields of a CONNECT may say."""

from __future__ import annotations

import ipaddress

from fuzz.cuts import ways
from planes.mesh import baggage, frames
from planes.mesh.hbone import (
    ConnectionFailed,
    DataReceived,
    Event,
    HboneConnection,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)
from planes.mesh.route import inbound_target, parse_authority
from planes.mesh.view import MeshView

BLOCK_MAX_BYTES = 128 << 10
OUT_PER_BYTE = 16
CONNECT = [(b":method", b"CONNECT"), (b":authority", b"10.0.0.5:8080")]


def _said(events: list[Event], log: list) -> None:
    for event in events:
        match event:
            case RequestReceived(stream=stream, fields=fields, ended=ended):
                log.append(("request", stream.id, fields, ended))
            case ResponseReceived(stream=stream, status=status, ended=ended):
                log.append(("response", stream.id, status, ended))
            case DataReceived(stream=stream, data=data):
                if log and log[-1][:2] == ("data", stream.id):
                    log[-1] = ("data", stream.id, log[-1][2] + bytes(data))
                else:
                    log.append(("data", stream.id, bytes(data)))
            case StreamEnded(stream=stream):
                log.append(("ended", stream.id))
            case StreamReset(stream=stream, code=code):
                log.append(("reset", stream.id, code))
            case ConnectionFailed(code=code):
                log.append(("failed", code))
            case _:
                log.append((type(event).__name__,))


def _driven(connection: HboneConnection, pieces: list[bytes]) -> tuple:
    log: list = []
    came = 0
    for piece in pieces:
        events = connection.receive(piece)
        came += len(piece)
        _said(events, log)
        for event in events:
            if isinstance(event, RequestReceived):
                connection.respond(event.stream, 200)
                connection.send(event.stream, b"hello")
            elif isinstance(event, DataReceived):
                connection.release(event.stream, len(event.data))
        assert len(connection._buffer) <= connection.limits.max_frame_bytes + frames.HEADER_SIZE, "kept beyond a frame"
        assert len(connection._block or b"") <= BLOCK_MAX_BYTES, "a header block without end"
        assert len(connection.streams) <= 200, "more streams than advertised"
        assert len(connection._forgotten) <= 1_000, "resets without end are remembered"
        assert sum(map(len, connection.out)) <= OUT_PER_BYTE * came + 4096, "more is answered than was asked"
    return log, connection.failed, sorted(connection.streams)


def server(data: bytes) -> None:
    def made() -> HboneConnection:
        connection = HboneConnection(client=False)
        connection.receive(frames.PREFACE + frames.settings(()))
        connection.out.clear()
        return connection

    whole = _driven(made(), [data])
    for pieces in ways(data):
        _alike(_driven(made(), pieces), whole)


def client(data: bytes) -> None:
    """Streams 1 and 3 are open."""

    def made() -> HboneConnection:
        connection = HboneConnection(client=True)
        connection.receive(frames.settings(()))
        for _ in range(2):
            connection.open(CONNECT)
        connection.out.clear()
        return connection

    whole = _driven(made(), [data])
    for pieces in ways(data):
        _alike(_driven(made(), pieces), whole)


def _alike(cut: tuple, whole: tuple) -> None:
    """Between a request and the answer that we give to it stands what else was read in one piece: then streams that
    were reset before we answered are told from those after it."""
    assert cut == whole, "cuts matter"


_VIEW = MeshView.parse({
    "workloads": [
        {"uid": "c//v1/Pod/default/a", "name": "a", "namespace": "default", "serviceAccount": "a",
         "trustDomain": "cluster.local", "workloadIps": ["10.0.0.5"],
         "services": {"default/web.example": {"80": 8080}}},
        {"uid": "c//v1/Pod/default/b", "name": "b", "namespace": "default", "serviceAccount": "b",
         "trustDomain": "cluster.local", "workloadIps": ["10.0.0.6", "fd00::6"], "services": {},
         "applicationTunnel": {"protocol": "PROXY", "port": 15088}},
    ],
    "services": [{"name": "web", "namespace": "default", "hostname": "web.example", "vips": ["/10.96.0.1"],
                  "ports": {"80": 8080}}],
    "policies": [],
})  # fmt: skip


def fields(data: bytes) -> None:
    """Up to the first NUL an authority, behind it a baggage."""
    authority, _, told = data.partition(b"\0")
    text = authority.decode("latin-1")
    try:
        host, port, is_address = parse_authority(text)
    except ValueError:
        for name in ("a", "b"):
            assert inbound_target(_VIEW, _VIEW.local("default", name), text, "10.0.0.5").status == 400
    else:
        assert 0 < port < 65536 and host, "an authority of nothing"
        if is_address:
            ipaddress.ip_address(host)
        for name in ("a", "b"):
            found = inbound_target(_VIEW, _VIEW.local("default", name), text, "10.0.0.5")
            assert found.status in (200, 400, 503), f"status {found.status}"
            assert (found.status == 200) is (0 < found.port < 65536 and found.port not in (15001, 15006, 15008)), found
    baggage.parse(told.decode("latin-1"))
