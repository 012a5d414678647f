"""The judge's readers: whatever a capture holds, they say what they saw or that they cannot, and go on."""

from __future__ import annotations

from testbed.observe import h2frames, pcapng, streams, tlsrecords


def file(data: bytes) -> None:
    try:
        recording = pcapng.parse(data)
    except ValueError:
        return
    assert sum(len(p.data) for p in recording.packets) <= len(data), "more packet bytes than the file has"
    traffic = streams.follow(recording.packets, recording.interfaces)
    for connection in traffic.connections:
        for stream in (connection.forward, connection.backward):
            assert 0 <= stream.whole_until() <= len(stream.data)
            tlsrecords.begins_tls(bytes(stream.data))


def tls(data: bytes) -> None:
    end = 0
    for record in tlsrecords.records(data):
        assert record.start == end < record.stop <= len(data)
        end = record.stop
    where, _ = tlsrecords.ending(data, len(data))
    assert where >= end
    tlsrecords.begins_tls(data)
    tlsrecords.middle_of_tls(data)
    try:
        tlsrecords.hellos(data)
    except ValueError:
        pass


def http2(data: bytes) -> None:
    """The first two bytes say how much of the rest is the client's, behind its preface."""
    size = int.from_bytes(data[:2])
    found = h2frames.converse(h2frames.PREFACE + data[2 : 2 + size], data[2 + size :])
    assert found.frames * 9 <= len(data)
