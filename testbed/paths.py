"""Path proof: which proxies a request must cross, and what each of them says that it counted.

Where a call should go is said by the plane's own claims (`Claim.call`) and captures; what went there by each proxy's
metrics, read before and after the load and held against what the target's applications counted. Proxies that read HTTP
count requests, the others the bytes of answers. A plane whose redirect matches nothing has lovely latencies: this is
what finds it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from testbed.fidelity import PathReading
from testbed.lab import Lab, http_get
from testbed.model.experiment import Load
from testbed.model.placement import Placement, Proxy
from testbed.model.topology import Topology

METRICS = ((15020, "/metrics"), (15000, "/stats?usedonly&filter=downstream_(rq_completed|cx_tx_bytes_total)"))
"""Where a proxy tells: ours, and a real Envoy's admin."""
_LINE = re.compile(r'^(istio_requests_total|istio_tcp_sent_bytes_total)\{([^}]*)\} (\S+)$', re.MULTILINE)
_ENVOY = re.compile(r"^(?:http|tcp)\.(\S+?)\.downstream_(rq_completed|cx_tx_bytes_total): (\d+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Since a proxy began."""

    requests: float = 0.0
    answer_bytes: float = 0.0
    """Of connections that it does not read, from server to client, added up over both ends where it is at both."""
    envoy: bool = False


def parse(text: str) -> Counted:
    """A proxy's metrics as Prometheus text, or a real Envoy's statistics."""
    requests = answer_bytes = 0.0
    for name, _, value in _LINE.findall(text):
        if name == "istio_requests_total":
            requests += float(value)
        else:
            answer_bytes += float(value)
    return Counted(requests=requests, answer_bytes=answer_bytes)


def parse_envoy(text: str) -> Counted:
    """Of all its listeners but the admin's own."""
    requests = answer_bytes = 0.0
    for prefix, name, value in _ENVOY.findall(text):
        if prefix.startswith("admin"):
            continue
        if name == "rq_completed":
            requests += float(value)
        else:
            answer_bytes += float(value)
    return Counted(requests=requests, answer_bytes=answer_bytes, envoy=True)


def expected(placement: Placement, topology: Topology, client: str, target: str) -> dict[str, int]:
    """Proxies that a call from the client to the service may cross, and at how many of its ends every call does (0:
    only some calls, to some of the endpoints)."""
    service = topology.service(target.partition(":")[0])
    ways = []
    for endpoint in service.endpoints:
        stops = dict.fromkeys((client, endpoint))
        for claim in placement.claims:
            if claim.service == service.name and (claim.call[0], claim.call[-1]) == (client, endpoint):
                stops |= dict.fromkeys(claim.call)
        ways.append(Counter(p.name for stop in stops for p in placement.proxies if stops_at(p, stop)))
    every = set().union(*ways)
    return {name: min(way[name] for way in ways) for name in sorted(every)}


def stops_at(proxy: Proxy, stop: str) -> bool:
    """Whether a call that stops there (a workload, a waypoint, a node) is in this proxy's hands."""
    return stop in proxy.enters if proxy.enters else stop in (proxy.sandbox, proxy.name)


def scrape(lab: Lab, placement: Placement) -> dict[str, Counted]:
    """What each proxy tells now; those that tell nothing are absent."""
    found = {}
    for proxy in placement.proxies:
        (port, path), read = (METRICS[1], parse_envoy) if proxy.role.startswith("envoy") else (METRICS[0], parse)
        status, body = http_get(lab, proxy.sandbox, "127.0.0.1", port, path)
        if status == 200:
            found[proxy.name] = read(body.decode(errors="replace"))
    return found


def readings(
    wanted: Mapping[str, int], before: Mapping[str, Counted], after: Mapping[str, Counted], placement: Placement,
    *, load: Load, seen: int | None, alone: bool = True,
) -> list[PathReading]:  # fmt: skip
    """`seen`: requests that the target's applications counted meanwhile; None where they do not say. `alone`: no other
    calls were made, such as by the target's applications in their turn."""
    found = []
    for proxy in placement.proxies:
        on_way = bool(wanted.get(proxy.name))
        if not on_way and (not alone or proxy.name in wanted):
            continue
        then, now = before.get(proxy.name), after.get(proxy.name)
        why_not = ""
        if then is None or now is None:
            why_not = "its metrics could not be read"
        elif now.requests < then.requests or now.answer_bytes < then.answer_bytes:
            why_not = "it began anew during the load"
        elif seen is None:
            why_not = "the target's applications do not count"
        if why_not:
            if on_way:
                found.append(_reading(proxy, on_way, None, 0.0, why_not=why_not))
            continue
        assert then is not None and now is not None and seen is not None
        requests, answer_bytes = now.requests - then.requests, now.answer_bytes - then.answer_bytes
        reads = reads_requests(proxy) and load.protocol != "tcp"
        if reads:
            # A real Envoy counts a request once at each of its listeners that it passes.
            found.append(_reading(proxy, on_way, requests, float(seen), exact=alone and not now.envoy))
        else:
            least = float(seen) * load.response_bytes * max(1, wanted.get(proxy.name, 1))
            found.append(_reading(proxy, on_way, answer_bytes, least, unit="bytes of answers", exact=False))
    return found


def reads_requests(proxy: Proxy) -> bool:
    return not proxy.role.removeprefix("envoy-").startswith("ztunnel")


def _reading(
    proxy: Proxy, on_way: bool, counted: float | None, of: float, *, unit: str = "requests", exact: bool = True,
    why_not: str = "",
) -> PathReading:  # fmt: skip
    return PathReading(
        proxy=proxy.name, expected=on_way, counted=counted, of=of, unit=unit, exact=exact, why_not=why_not
    )
