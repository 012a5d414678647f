"""Requests followed over a capture: each with everywhere it was seen, in clear or inside a tunnel. Pure.

Nothing in here knows a claim; `judge` holds the ways against what was claimed.
"""

from __future__ import annotations

from dataclasses import dataclass

from testbed.verify.evidence import FORWARD, Canary, Evidence, Sighting, in_clear, opened


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossing:
    """One request at one segment."""

    segment: str
    form: str
    """`clear` or `mtls`."""
    packets: tuple[int, ...]
    time_ns: int
    traceparent: str = ""
    """Of the tunnel it was in."""
    client_identity: str = ""
    server_identity: str = ""
    client: str = ""
    """Addresses of its connection; empty for a packet outside every stream."""
    server: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Journey:
    """One request and everywhere it was seen, by time."""

    canary: bytes
    request: str
    crossings: tuple[Crossing, ...]


def journeys(evidence: Evidence, canary: Canary) -> list[Journey]:
    """Requests in the order in which they were first seen. Requests without a name are numbered per segment, in
    order."""
    requests: dict[str, list[Crossing]] = {}
    for listening in evidence.listenings:
        seen = [("clear", s) for s in in_clear(listening, canary.token)]
        seen += [("mtls", s) for s in opened(listening, canary.token)]
        seen = [pair for pair in seen if pair[1].direction == FORWARD and canary.owns(pair[1])]
        seen = sorted(seen, key=lambda pair: pair[1].time_ns)
        for ordinal, (form, sighting) in enumerate(seen, 1):
            crossing = _crossing(listening.segment.name, form, sighting)
            requests.setdefault(sighting.request or f"#{ordinal}", []).append(crossing)
    found = [
        Journey(canary=canary.token, request=name, crossings=tuple(sorted(crossings, key=lambda c: c.time_ns)))
        for name, crossings in requests.items()
    ]
    return sorted(found, key=lambda j: j.crossings[0].time_ns)


def _crossing(segment: str, form: str, sighting: Sighting) -> Crossing:
    tls = sighting.heard.tls if sighting.heard else None
    client, server = (tls.client.certificate, tls.server.certificate) if tls else (None, None)
    return Crossing(
        segment=segment,
        form=form,
        packets=sighting.packets,
        time_ns=sighting.time_ns,
        traceparent=(sighting.exchange.header("traceparent") or "") if sighting.exchange else "",
        client_identity=", ".join(client.uris) if client else "",
        server_identity=", ".join(server.uris) if server else "",
        client=sighting.heard.connection.client[0] if sighting.heard else "",
        server=sighting.heard.connection.server[0] if sighting.heard else "",
    )
