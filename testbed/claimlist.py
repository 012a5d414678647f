"""The claims that this testbed exists to test, as data: who said it, and what a run must show to decide it.

Sources are five public documents about Istio's two kinds of data plane; `experiments` name the claims they speak to and
`claims` judges them. A claim without a judge yet has no evidence, and says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

SOURCES = {
    "T": "Tetrate's take on ambient mesh, 2022",
    "C": "CyberTechTalk, sidecar vs ambient, 2023",
    "J": "Jimmy Song, what is ambient mesh, 2022",
    "D": "Day Two Cloud 173 with Christian Posta, 2022",
    "S": "Solo.io on the ambient beta, 2024",
    "Istio 1.7": "Istio 1.7 notes on performance testing",
}


def said_by(keys: Iterable[str]) -> str:
    """Who is behind the letters, in the order of SOURCES."""
    wanted = set(keys)
    return "; ".join(f"{key}: {name}" for key, name in SOURCES.items() if key in wanted)


@dataclass(frozen=True, slots=True)
class Claim:
    id: str
    text: str
    sources: tuple[str, ...]
    """Keys of SOURCES."""
    decided_by: str
    """What a run must show to call it confirmed or refuted."""


CLAIMS = {
    claim.id: claim
    for claim in (
        Claim(
            "two-l4-one-l7",
            "two L4 hops and one L7 hop cost less than L7 at both ends (latency, CPU)",
            ("D", "T"),
            "added p50/p99 and CPU per request: sidecar vs ambient+waypoint, co-located",
        ),
        Claim(
            "ambient-slower",
            'ambient performs worse than sidecars "by nearly every metric"',
            ("T",),
            "the same table, all metrics",
        ),
        Claim(
            "hop-vs-l7",
            "trading an Envoy for a network hop pays inside a zone, not across sites",
            ("T",),
            "sweep of link RTT and waypoint placement; the break-even RTT with its interval",
        ),
        Claim(
            "ninety-percent",
            "ambient could cost 90 % less than sidecars",
            ("S",),
            "CPU and memory, L4 only and with waypoints, against pods per node",
        ),
        Claim(
            "per-pod-vs-per-node",
            "100 replicas need 100 sidecars but one agent per node",
            ("D", "C"),
            "proxies, memory (PSS) and idle CPU against pods and nodes; fitted slope",
        ),
        Claim(
            "replicas-gain-most",
            "large footprints of few services gain most: one waypoint serves many instances",
            ("T",),
            "memory and CPU against replicas per service; services per namespace",
        ),
        Claim(
            "scoped-sidecars-are-small",
            "with config scoping (Sidecar resource) sidecars use very little",
            ("T",),
            "memory and config bytes per sidecar, with and without scoping",
        ),
        Claim(
            "fewer-config-streams",
            "fewer proxies, fewer control-plane connections and less configuration",
            ("D",),
            "streams and bytes pushed for: start, add pod, add service, change policy",
        ),
        Claim(
            "upgrade-restarts-pods",
            "sidecars cannot be upgraded without restarting workloads; ambient can",
            ("D", "S", "C"),
            "failed requests and reset connections under load during upgrade of each",
        ),
        Claim(
            "join-without-restart",
            "a workload joins ambient without restart or injection",
            ("S", "C", "D"),
            "add a live workload with open connections; count restarts and failures",
        ),
        Claim(
            "shared-l4-shared-fate",
            "one node agent's restart or crash touches every pod of the node",
            ("T", "J"),
            "kill and upgrade each component under load: who fails, how long",
        ),
        Claim(
            "blast-radius-identities",
            "a compromised ztunnel exposes the identities of its node; a sidecar one",
            ("T", "J", "D"),
            "attacker code in each component: identities it can really use, calls it can really make",
        ),
        Claim(
            "app-compromise-keys",
            "a compromised app can reach its sidecar's key material; in ambient it cannot",
            ("D",),
            "attacker code in the app's sandbox: keys, tokens, admin ports, CSRs tried",
        ),
        Claim(
            "noisy-l7-shared",
            "sharing an L7 proxy per node brings noisy neighbours and collisions",
            ("D",),
            "victim's p99 beside an aggressor: per-node L7 plane vs waypoint vs sidecar",
        ),
        Claim(
            "noisy-l4-is-tolerable",
            "an L4 agent under a noisy neighbour behaves like any L4 component",
            ("D",),
            "the same against ztunnel; victim's p99 ratio with interval",
        ),
        Claim(
            "plugin-crash-contained",
            "a plug-in that kills an L7 proxy kills all its tenants; a waypoint has one",
            ("D", "S"),
            "crash filter in node proxy, waypoint, sidecar: services lost",
        ),
        Claim(
            "l4-suffices-for-mtls",
            "mTLS needs ztunnel only",
            ("S", "C"),
            "packets: no clear payload and TLS 1.3 with SPIFFE identities on every wire segment of the calls made",
        ),
        Claim(
            "hbone-carries-metadata",
            "L4 layer reaches the waypoint by HTTP/2 CONNECT with metadata",
            ("D", "J"),
            "decrypted frames: CONNECT, authority, baggage",
        ),
        Claim(
            "l4-is-a-subset",
            "L7 proxies do all L4 and L7 rows of the table; L4 proxies the L4 column only",
            ("T",),
            "every row of the table of features, run against every plane",
        ),
        Claim(
            "same-api-same-verdict",
            "all policy APIs remain; modes can be switched as you wish",
            ("S",),
            "one policy file, same verdicts in sidecar and waypoint mode, cell by cell",
        ),
        Claim(
            "interop",
            "sidecar and ambient workloads talk to each other",
            ("D", "S", "J"),
            "hybrid: both directions, mTLS proven on the wire, policies enforced where they should be",
        ),
        Claim(
            "gradual",
            "L4 first, then L7 for one service, with no change to the app",
            ("D", "J", "C"),
            "add a waypoint under load; requests lost, connections moved, time to enforcement",
        ),
        Claim(
            "pod-ip-bypass",
            "direct pod-IP requests do not behave as service requests",
            ("J",),
            "with a waypoint: which policies are enforced on which path",
        ),
        Claim(
            "not-by-loadbalancer",
            "outside traffic needs an ingress gateway outside ambient",
            ("J",),
            "north-south call with and without gateway, what is enforced",
        ),
        Claim(
            "forced-through-proxy",
            "in sidecar mode traffic is forced through the proxy",
            ("C",),
            "bypass attempts: proxy UID, other protocols, direct ports, IPv6",
        ),
        Claim(
            "less-observability",
            "requests are observed less in ambient",
            ("C",),
            "which of access log, RED metrics, traces exist per plane (table rows)",
        ),
        Claim(
            "weaker-stance",
            "the security stance is weakened",
            ("C", "T"),
            "sum of the security rows: identities exposed, plaintext seen, policies bypassed, per component",
        ),
        Claim(
            "double-encryption",
            "application TLS inside mesh TLS and changed connection lifetimes break or slow apps",
            ("T",),
            "app-level TLS through each plane: works? cost? idle and long-lived connections",
        ),
        Claim(
            "waypoint-per-account",
            "a waypoint serves one service account (today: service or namespace); several may live in one namespace",
            ("D",),
            "granularity options, isolation between two waypoints of one namespace",
        ),
        Claim(
            "l7-attack-surface",
            "L7 code is where the vulnerabilities are; holding identities in L4 code only is safer",
            ("T", "J"),
            "malformed input corpus against each listener: what parses what before authentication, what falls over",
        ),
        Claim(
            "arrival-pattern",
            "how load arrives changes the answer as much as the mesh does",
            ("Istio 1.7",),
            "same cell, synchronised / uniform / Poisson, open and closed loop",
        ),
    )
}
