"""Claims weighed against packets -> findings. Pure over `evidence`, and shares no code with the proxies it judges.

Per claim and segment: is a canary readable; TLS version and suite; ALPN and SNI; identities both ways; HBONE framing;
and, with the keys, that exactly the expected requests were inside. What passes a proxy with an address of its own is
two claims, told apart by addresses where both legs cross one link. Three rules keep it honest. Absence proves nothing
unless traffic was there and no packet was lost, so drops, gaps and empty segments give `no-evidence`. A claim of
cleartext must be *found* readable, else the check itself is broken. And a leak is a leak, however bad the rest of the
capture is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from testbed.model.experiment import Finding, Result
from testbed.model.placement import Claim, Encryption
from testbed.verify.doubt import Verdict, once, repeated_requests, unless_incomplete, why_unsearched
from testbed.verify.evidence import (
    BACKWARD,
    FORWARD,
    Canary,
    Evidence,
    Heard,
    Listening,
    Sighting,
    in_clear,
    opened,
)
from testbed.verify.journeys import Journey, journeys
from testbed.verify.segments import WIRE, Layout, Segment
from testbed.verify.trust import is_vouched_for
from testbed.verify.wording import more, names, packets_of, some, starts

HBONE_PORT = 15008
HBONE_SUITES = ("TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384")
"""What both ztunnel and its peers offer (facts/hbone 1.2); ChaCha20 is not among them."""
COUNTING = ("delivered", "readable")
"""Checks that can fail by seeing too little."""
MAX_PACKETS = 100
"""Packet numbers listed in one finding; its text says how many there were."""


def judge(
    *, plane: str, claims: Sequence[Claim], canaries: Sequence[Canary], evidence: Evidence, layout: Layout
) -> list[Finding]:
    """Every claim on every segment it concerns; then, per canary, the way its requests took."""
    bench = _Bench(plane, claims, canaries, evidence, layout)
    findings: list[Finding] = []
    for claim in claims:
        segments = layout.crossed(claim.source, claim.destination, claim.segment)
        if not segments:
            findings.append(bench.nothing(claim))
        for segment in segments:
            findings += bench.weigh(claim, segment)
        findings += bench.leaks_elsewhere(claim, segments)
    findings += [bench.way(canary) for canary in canaries]
    return findings


class _Bench:
    def __init__(
        self, plane: str, claims: Sequence[Claim], canaries: Sequence[Canary], evidence: Evidence, layout: Layout
    ) -> None:
        self.plane, self.claims, self.canaries = plane, claims, canaries
        self.evidence, self.layout = evidence, layout

    # -- one claim at one segment

    def weigh(self, claim: Claim, segment: Segment) -> list[Finding]:
        listening = self.evidence.at(segment)
        mtls = claim.encryption is Encryption.MTLS
        checks: list[tuple[str, str, Callable[[Claim, Listening], Verdict]]] = []
        if self._canaries(claim) and mtls:
            checks.append(("hidden", "no canary is readable without keys", self._hidden))
            checks.append(("delivered", "with keys, exactly the canaries sent are inside", self._delivered))
        elif self._canaries(claim):
            checks.append(("readable", "canaries are readable, as is meant to be here", self._readable))
        if mtls:
            checks.append(("tls", "every connection is TLS 1.3 with an AES-GCM suite", self._tls))
            if claim.alpn or claim.sni is not None:
                checks.append(("offer", "the ClientHello offers Istio's ALPN and names the service", self._offer))
            if claim.client_identity or claim.server_identity:
                checks.append(("identity", "certificates name both ends as claimed", self._identity))
        if mtls and claim.hbone:
            checks.append(("alpn", "ALPN is h2", self._alpn))
            checks.append(("hbone", "every stream is a CONNECT as HBONE wants it", self._hbone))
        findings = []
        for name, statement, check in checks:
            if listening is None or not listening.packets:
                verdict: Verdict = (Result.NO_EVIDENCE, "no packets", f"nothing was captured at {segment.name}", ())
            else:
                verdict = unless_incomplete(check(claim, listening), listening, counts=name in COUNTING)
            findings.append(self._finding(claim, segment, name, statement, verdict))
        return findings

    def nothing(self, claim: Claim) -> Finding:
        seen = f"no capture point sees {claim.segment} traffic of {claim.source} and {claim.destination}"
        verdict = (Result.NO_EVIDENCE, "not captured", seen, ())
        return self._finding(claim, None, "captured", "the claim can be judged", verdict)

    def leaks_elsewhere(self, claim: Claim, expected: Sequence[Segment]) -> list[Finding]:
        """A canary in clear where its traffic had no business to be; silent when there is none."""
        if claim.encryption is not Encryption.MTLS or claim.segment != WIRE:
            return []
        findings = []
        for listening in self.evidence.listenings:
            if listening.segment.kind != WIRE or listening.segment in expected:
                continue
            verdict = self._hidden(claim, listening)
            if verdict[0] is Result.BROKEN:
                statement = "no canary is readable off its way"
                findings.append(self._finding(claim, listening.segment, "hidden", statement, verdict))
        return findings

    # -- checks

    def _hidden(self, claim: Claim, listening: Listening) -> Verdict:
        sightings = [s for c in self._canaries(claim) for s in self._leaks(c, listening)]
        expected = sum(c.count for c in self._canaries(claim))
        value = f"{len(sightings)} of {expected} readable"
        if sightings:
            places = sorted({s.heard.connection.name if s.heard else "outside TCP" for s in sightings})
            return Result.BROKEN, value, f"read in clear in {some(places)}", packets_of(sightings)
        heard = self._between(claim, listening)
        if not heard:
            return self._absent(claim, value)
        if why := why_unsearched(heard, listening):
            return Result.NO_EVIDENCE, value, why, ()
        carried = sum(len(h.connection.forward.data) for h in heard)
        needed = sum(c.count * len(c.token) for c in self._canaries(claim))
        if carried < needed:
            seen = f"only {carried} bytes crossed here, too few for {expected} requests: their absence proves nothing"
            return Result.NO_EVIDENCE, value, seen, ()
        return Result.HOLDS, value, f"searched {len(listening.packets)} packets, {names(heard)}", starts(heard)

    def _readable(self, claim: Claim, listening: Listening) -> Verdict:
        expected = sum(c.count for c in self._canaries(claim))
        sightings = [
            s
            for c in self._canaries(claim)
            for s in once(
                s
                for s in in_clear(listening, c.token)
                if s.direction in (FORWARD, "")
                and c.owns(s)
                and (claim.segment != WIRE or s.heard is None or self._matches(claim, s.heard))
            )
        ]
        value = f"{len(sightings)} of {expected} readable"
        if len(sightings) >= expected > 0:
            return Result.HOLDS, value, "found in clear", packets_of(sightings)
        if sightings:
            seen = "some are missing: the capture or the load was not complete"
            return Result.NO_EVIDENCE, value, seen, packets_of(sightings)
        heard = self._between(claim, listening)
        if listening.segment.kind == WIRE and not heard:
            return self._absent(claim, value)
        if lacking := [h for h in heard if not h.is_whole]:
            return Result.NO_EVIDENCE, value, f"bytes are missing in {names(lacking)}", ()
        return Result.BROKEN, value, "traffic is there and the canary is not: the check itself is broken", ()

    def _delivered(self, claim: Claim, listening: Listening) -> Verdict:
        expected = sum(c.count for c in self._canaries(claim))
        heard, reason = self._to_open(claim, listening)
        if reason:
            return Result.NO_EVIDENCE, f"? of {expected} inside", reason, ()
        ours = {id(h) for h in heard}
        forward, backward, repeated, wanted_back = [], [], [], 0
        for canary in self._canaries(claim):
            inside = [s for s in opened(listening, canary.token) if id(s.heard) in ours and canary.owns(s)]
            if claim.hbone:
                inside = [s for s in inside if self._in_tunnel(claim, s)]
            repeated += repeated_requests(s for s in inside if s.direction == FORWARD or canary.replies is not None)
            forward += [s for s in inside if s.direction == FORWARD]
            if canary.replies is not None:
                backward += [s for s in inside if s.direction == BACKWARD]
                wanted_back += canary.replies
        value = f"{len(forward)} of {expected} inside"
        seen = f"decrypted {names(heard)}"
        if repeated:
            return Result.BROKEN, value, f"{seen}; twice inside: {some(repeated)}", packets_of([*forward, *backward])
        cut = [h for h in heard if h.is_cut or (h.conversation is not None and h.conversation.problem)]
        too_many = len(forward) > expected or len(backward) > wanted_back  # is too many all the same
        if cut and not too_many:
            return Result.NO_EVIDENCE, value, f"{seen}; not to its end: {names(cut)}", ()
        if len(forward) == expected and len(backward) == wanted_back:
            return Result.HOLDS, value, seen, packets_of([*forward, *backward])
        if len(backward) != wanted_back:
            seen += f"; {len(backward)} of {wanted_back} in answers"
        return Result.BROKEN, value, seen, packets_of([*forward, *backward])

    def _tls(self, claim: Claim, listening: Listening) -> Verdict:
        heard = self._between(claim, listening)
        if not heard:
            return self._absent(claim, "no connection")
        plain = [h for h in heard if h.tls is None and not h.began_before]
        if plain:
            return Result.BROKEN, "not TLS", f"no TLS in {names(plain)}", starts(plain)
        shaken = [h for h in heard if h.tls is not None and h.tls.server_hello is not None]
        kinds = sorted({f"{h.tls.version} {h.tls.server_hello.cipher}" for h in shaken})
        wrong = [h for h in shaken if h.tls.version != "TLS 1.3" or h.tls.server_hello.cipher not in HBONE_SUITES]
        value = ", ".join(sorted({h.tls.version for h in shaken}))
        if wrong:
            return Result.BROKEN, value, f"{some(kinds)} in {names(wrong)}", starts(wrong)
        foreign = [h for h in heard if h.foreign]
        if certain := [h for h in foreign if h.is_certain]:
            return Result.BROKEN, "not only TLS", f"bytes outside every record in {names(certain)}", starts(certain)
        if foreign:
            seen = f"packets contradict each other in {names(foreign)}"
            return Result.NO_EVIDENCE, "not only TLS", seen, starts(foreign)
        if before := [h for h in heard if h.began_before]:
            seen = f"its beginning is not in the capture: {names(before)}"
            return Result.NO_EVIDENCE, "no handshake", seen, starts(before)
        if lacking := [h for h in heard if h not in shaken]:
            return Result.NO_EVIDENCE, "no ServerHello", f"handshake not whole in {names(lacking)}", starts(lacking)
        return Result.HOLDS, value, f"{some(kinds)} in {names(heard)}", starts(heard)

    def _alpn(self, claim: Claim, listening: Listening) -> Verdict:
        heard, reason = self._to_open(claim, listening)
        known = [h for h in heard if h.tls is not None and (h.tls.opened or h.tls.server.alpn)]
        chosen = sorted({h.tls.server.alpn or "none" for h in known})
        if wrong := [h for h in known if h.tls.server.alpn != "h2"]:
            return Result.BROKEN, ", ".join(chosen), f"chosen in {names(wrong)}", starts(wrong)
        if reason:
            return Result.NO_EVIDENCE, "?", reason, ()
        return Result.HOLDS, ", ".join(chosen), f"chosen in {names(heard)}", starts(heard)

    def _offer(self, claim: Claim, listening: Listening) -> Verdict:
        """What the client says before anything is encrypted: it takes no keys."""
        heard = self._between(claim, listening)
        if not heard:
            return self._absent(claim, "no connection")
        silent = [h for h in heard if h.tls is None or h.tls.client_hello is None]
        hellos = [(h, h.tls.client_hello) for h in heard if h not in silent]
        wrong = [
            h
            for h, hello in hellos
            if not any(_in_order(offer, hello.alpn) for offer in _offers(claim, h))
            or claim.sni not in (None, hello.server_name)
        ]
        told = sorted({f"{', '.join(x.alpn) or 'no ALPN'} for {x.server_name or 'no name'}" for _, x in hellos})
        value = "; ".join(sorted({", ".join(x.alpn) or "no ALPN" for _, x in hellos}))
        if wrong:
            wanted = f"{', '.join(claim.alpn) or 'any ALPN'} for {claim.sni or 'any name'}"
            if claim.alpn_http2:
                wanted += f", with HTTP/2 inside {', '.join(claim.alpn_http2)}"
            return Result.BROKEN, value, f"{some(told)}, claimed {wanted}, in {names(wrong)}", starts(wrong)
        if silent:
            return Result.NO_EVIDENCE, "no ClientHello", f"no ClientHello in {names(silent)}", starts(silent)
        return Result.HOLDS, value, f"{some(told)} in {names(heard)}", starts(heard)

    def _identity(self, claim: Claim, listening: Listening) -> Verdict:
        heard, reason = self._to_open(claim, listening)
        wrong, packets, said = [], set(), set()
        for h in heard:
            if h.tls is None:
                continue
            sides = ((claim.client_identity, h.tls.client), (claim.server_identity, h.tls.server))
            for role, (wanted, side) in zip(("client", "server"), sides, strict=True):
                certificate = side.certificate
                if certificate is None and not h.tls.opened:
                    continue  # not seen is not the same as not sent
                uris = certificate.uris if certificate else ()
                packets.update(certificate.packets if certificate else ())
                if certificate and self.evidence.roots and not is_vouched_for(certificate, self.evidence.roots):
                    wrong.append(f"{role} of {h.connection.name} bears what no authority of the mesh signed")
                said.add(f"{role} {', '.join(uris) or 'without identity'}")
                if wanted is not None and uris != (str(wanted),):
                    wrong.append(f"{role} of {h.connection.name} is {', '.join(uris) or 'nobody'}, claimed {wanted}")
        if wrong:
            return Result.BROKEN, "wrong identity", some(wrong), packets
        if reason:
            return Result.NO_EVIDENCE, "?", reason, ()
        return Result.HOLDS, "both as claimed", some(sorted(said)), packets

    def _hbone(self, claim: Claim, listening: Listening) -> Verdict:
        heard, reason = self._to_open(claim, listening)
        wanted = self._authorities(claim)
        wrong: list[str] = []
        packets: set[int] = set()
        seen_authorities, count = set(), 0
        for h in heard:
            if h.tls is None or not (h.tls.client.data or h.tls.opened):
                continue
            if h.connection.server[1] != HBONE_PORT:
                wrong.append(f"{h.connection.name} is not on port {HBONE_PORT}")
            whole = h.tls.opened and not h.is_cut
            if h.conversation is None or (h.conversation.problem and h.tls.opened):
                if h.tls.client.data and h.tls.opened:
                    why = h.conversation.problem if h.conversation else "it does not begin with the preface"
                    wrong.append(f"{h.connection.name} does not read as HTTP/2: {why}")
                continue
            if whole:  # else what opened the stream may be what is missing
                wrong += [f"{h.connection.name} has {breach}" for breach in h.conversation.breaches]
            for exchange in h.conversation.exchanges:
                count += 1
                packets.update(h.tls.client.carriers(*exchange.request_span))
                where = f"stream {exchange.stream} of {h.connection.name}"
                fields = exchange.names()
                if not exchange.is_connect:
                    wrong.append(f"{where} is {exchange.header(':method')}, not CONNECT")
                    continue
                authority = exchange.header(":authority")
                seen_authorities.add(authority)
                if claim.authority is not None and authority not in wanted:
                    wrong.append(f"{where} asks for {authority}, claimed {claim.authority}")
                wrong += [f"{where} has {name}" for name in (":scheme", ":path", ":protocol") if name in fields]
                if not exchange.header("baggage"):
                    wrong.append(f"{where} has no baggage")
                if exchange.status != 200 and (whole or exchange.status):
                    wrong.append(f"{where} was answered {exchange.status or 'not at all'}")
        cut = [h for h in heard if h.is_cut]
        if claim.authority is not None and count and claim.authority not in seen_authorities and not (reason or cut):
            wrong.append(f"no CONNECT asks for {claim.authority}")
        if wrong:
            return Result.BROKEN, "not as HBONE", some(wrong), packets or starts(heard)
        if reason:
            return Result.NO_EVIDENCE, "?", reason, ()
        if cut:
            return Result.NO_EVIDENCE, "?", f"the capture stops inside a record of {names(cut)}", ()
        if not count:
            return Result.NO_EVIDENCE, "no CONNECT", f"no stream in {names(heard)}", ()
        return Result.HOLDS, f"{count} CONNECT", f"to {some(sorted(seen_authorities))} in {names(heard)}", packets

    def way(self, canary: Canary) -> Finding:
        """Each request on each segment of each of its legs, one leg after the other: read in clear or inside a tunnel,
        whichever the keys allow."""
        expected = [(leg, s) for leg in canary.legs for s in self.layout.crossed(*leg, WIRE)]
        found = journeys(self.evidence, canary)
        whole = [j for j in found if self._is_whole(j, expected)]
        value = f"{len(whole)} of {canary.count} whole way"
        points = list(dict.fromkeys(s.label for _, s in expected))
        incomplete = [s.label for _, s in expected if not (x := self.evidence.at(s)) or not x.is_complete]
        identities = sorted(
            {f"{c.client_identity}→{c.server_identity}" for j in found for c in j.crossings if c.client_identity}
        )
        seen = f"over {some(points, 6)}" + (f" as {some(identities)}" if identities else " in clear")
        packets = sorted({n for j in whole for c in j.crossings for n in c.packets})
        if expected and len(whole) == len(found) == canary.count and not incomplete:
            result = Result.HOLDS
        elif len(found) > canary.count:
            result, seen = Result.BROKEN, f"{len(found)} requests seen where {canary.count} were sent"
        else:
            result = Result.NO_EVIDENCE
            if incomplete:
                seen = f"capture not complete at {some(incomplete)}; {seen}"
            elif not self.evidence.has_keys:
                seen = f"no keys: what is inside tunnels cannot be followed; {seen}"
        stops = (canary.source, *canary.via, canary.destination)
        told = f" through {', '.join(canary.via)}" if canary.via else ""
        return Finding(
            id=f"{self.plane}/{'>'.join(stops)}/way",
            plane=self.plane,
            segment=" → ".join(stops),
            statement=f"every request from {canary.source} to {canary.destination} is seen on each segment of its "
            f"way{told}",
            result=result,
            evidence=f"{self.evidence.file}: {seen}{more(packets)}",
            packets=tuple(packets[:MAX_PACKETS]),
            value=value,
        )

    def _is_whole(self, journey: Journey, expected: Sequence[tuple[tuple[str, str], Segment]]) -> bool:
        first_ns: dict[tuple[str, str], int] = {}
        for leg, segment in expected:
            times = [
                c.time_ns
                for c in journey.crossings
                if c.segment == segment.name and self._joins(leg, c.client, c.server)
            ]
            if not times:
                return False
            first_ns[leg] = min(first_ns.get(leg, times[0]), *times)
        return list(first_ns.values()) == sorted(first_ns.values())

    # -- what belongs to a claim

    def _canaries(self, claim: Claim) -> list[Canary]:
        return [c for c in self.canaries if (claim.source, claim.destination) in c.legs]

    def _matches(self, claim: Claim, heard: Heard) -> bool:
        return self._joins((claim.source, claim.destination), heard.connection.client[0], heard.connection.server[0])

    def _joins(self, leg: tuple[str, str], client: str, server: str) -> bool:
        source, destination = (self.layout.addresses[name] for name in leg)
        return client in source and server in destination

    def _authorities(self, claim: Claim) -> set[str | None]:
        """What may be asked for between the two: by any claim, for calls of several ports may share a connection."""
        return {c.authority for c in self.claims if (c.source, c.destination) == (claim.source, claim.destination)}

    def _in_tunnel(self, claim: Claim, sighting: Sighting) -> bool:
        """In the bytes of a tunnel to where it is claimed to go; the CONNECT's own fields are for the tunnel's end."""
        exchange = sighting.exchange
        if exchange is None or not exchange.is_connect or sighting.in_head:
            return False
        return claim.authority is None or exchange.header(":authority") in self._authorities(claim)

    def _between(self, claim: Claim, listening: Listening) -> list[Heard]:
        """Connections of the pair that carried bytes. Inside a sandbox redirection has changed addresses: there,
        all."""
        return [h for h in listening.heard if not h.is_empty and (claim.segment != WIRE or self._matches(claim, h))]

    def _leaks(self, canary: Canary, listening: Listening) -> list[Sighting]:
        """Sightings in clear, but for connections that are claimed to be in clear (another leg of the same request)."""
        clear = [c for c in self.claims if c.encryption is Encryption.CLEAR and c.segment == listening.segment.kind]
        clear = [c for c in clear if (c.source, c.destination) in canary.legs]
        found = [s for s in in_clear(listening, canary.token) if canary.owns(s)]
        return [s for s in found if s.heard is None or not any(self._matches(c, s.heard) for c in clear)]

    def _to_open(self, claim: Claim, listening: Listening) -> tuple[list[Heard], str]:
        """(connections, why they cannot be judged from inside); the reason is empty when all were opened to their
        end."""
        heard = self._between(claim, listening)
        if not heard:
            return [], f"no connection from {claim.source} to {claim.destination} here"
        if not_tls := [h for h in heard if h.tls is None]:
            return heard, f"not opened: {names(not_tls)} (no TLS handshake seen)"
        shut = [h for h in heard if not h.tls.opened]
        if shut and not self.evidence.has_keys:
            return heard, "no key log: nothing can be decrypted"
        if shut:
            return heard, f"{names(shut)} could not be decrypted: {shut[0].tls.problem or 'no encrypted record seen'}"
        return heard, ""

    def _absent(self, claim: Claim, value: str) -> Verdict:
        return Result.NO_EVIDENCE, value, f"no connection from {claim.source} to {claim.destination} here", ()

    def _finding(self, claim: Claim, segment: Segment | None, check: str, statement: str, verdict: Verdict) -> Finding:
        result, value, seen, packets = verdict
        numbers = sorted(set(packets))
        where = segment.name if segment else claim.segment
        return Finding(
            id=f"{self.plane}/{claim.source}>{claim.destination}/{where}/{check}",
            plane=self.plane,
            segment=f"{segment.label} ({where})" if segment else where,
            statement=f"{claim.source} → {claim.destination}: {statement}",
            result=result,
            evidence=f"{self.evidence.file}: {seen}{more(numbers)}",
            packets=tuple(numbers[:MAX_PACKETS]),
            value=value,
        )






def _offers(claim: Claim, heard: Heard) -> tuple[tuple[str, ...], ...]:
    """Which ALPN will do for this connection, by what is inside; what could not be opened may be either."""
    over_http2 = claim.alpn_http2 or claim.alpn
    if heard.conversation is not None:
        return (over_http2,)
    opened = heard.tls is not None and heard.tls.client.data
    return (claim.alpn,) if opened else (claim.alpn, over_http2)


def _in_order(wanted: Sequence[str], offered: Sequence[str]) -> bool:
    """Whether all of `wanted` stand in `offered` in that order; a real Istio may offer more between them."""
    rest = iter(offered)
    return all(name in rest for name in wanted)
