"""Which endpoint of a cluster takes a request. Chance is an argument, counts of open requests are the only state.

As Envoy where it is told: least request by the power of two choices, round robin in turn (by weight where capacities
differ), a ketama-like ring for consistent hashes (of another hash function, so keys fall elsewhere than with Envoy).
Locality is what the LOCAL view says of the service (`trafficDistribution`, `internalTrafficPolicy`): endpoints are
tiers, and the first tier that has one left takes all.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Sequence
from hashlib import blake2b
from itertools import accumulate, groupby

from planes.l7.match import joined, parameter
from planes.l7.message import Request
from planes.mesh.route import locality_rank
from planes.mesh.view import Endpoint, Mode, ServiceView, WorkloadView
from testbed.model.traffic import Balance, HashOn, LoadBalancing

Draw = Callable[[], float]
SELECTIONS = 5
"""Of a retry that wants another endpoint, before it takes any (Istio's hostSelectionRetryMaxAttempts)."""


class Host:
    """An endpoint as a balancer sees it."""

    __slots__ = ("active", "address", "ejected", "endpoint", "port", "share", "tier", "uid", "weight")

    def __init__(self, endpoint: Endpoint, port: int, tier: int = 0) -> None:
        workload = endpoint.workload
        self.endpoint = endpoint
        self.uid = workload.uid
        self.address = workload.addresses[0] if workload.addresses else workload.hostname
        self.port = port
        """Of the workload itself."""
        self.weight = workload.capacity
        self.tier = tier
        self.active = 0
        """Requests on it that are not over: the exchange counts up and down."""
        self.ejected = False
        self.share = 0.0

    def __repr__(self) -> str:
        return f"<Host {self.address}:{self.port}{' ejected' if self.ejected else ''}>"


def hosts(
    endpoints: Sequence[Endpoint], service: ServiceView, port: int, source: WorkloadView | None
) -> tuple[Host, ...]:
    """Those that have the service's `port`, in tiers as the service's load balancing ranks them for `source`."""
    mode, scopes = service.load_balancer.mode, service.load_balancer.preferences
    ranked = source is not None and mode is not Mode.STANDARD
    best = locality_rank(source, source, scopes) if ranked else 0  # type: ignore[arg-type]
    found = []
    for endpoint in endpoints:
        target = endpoint.ports.get(port) or service.ports.get(port, 0)
        if not target or not endpoint.workload.capacity:
            continue
        place = locality_rank(source, endpoint.workload, scopes) if ranked else 0  # type: ignore[arg-type]
        if mode is not Mode.STRICT or place == best:
            found.append(Host(endpoint, target, best - place))
    return tuple(sorted(found, key=lambda host: host.tier))


class Balancer:
    """Of one cluster as long as its endpoints stay; `ejection_changed` must be called after a host was ejected or let
    back in.
    """

    def __init__(
        self, members: Sequence[Host], policy: LoadBalancing | None = None, *, panic_share: float = 0.0
    ) -> None:
        self.members = tuple(members)
        self._hash_on = policy.hash_on if policy is not None else None
        simple = (policy.simple if policy is not None else None) or Balance.LEAST_REQUEST
        self.passthrough = simple is Balance.PASSTHROUGH
        """The original destination is to be dialled instead of a pick."""
        self._panic_share = panic_share
        # over all members, ejected ones passed by: a host that goes moves nobody's keys but its own
        self._ring = _Ring(self.members, self._hash_on.ring_size) if self._hash_on is not None else None
        self._turn = -1
        self._live: list[Host] = []
        self._marks: list[int] = []
        self._even = True
        ways = {Balance.ROUND_ROBIN: self._round_robin, Balance.RANDOM: self._random}
        self._way: Callable[[Draw], Host] = ways.get(simple, self._least_request)
        self.ejection_changed()

    def ejection_changed(self) -> None:
        """Takes the first tier with a host that is not ejected; in a panic (too few left) ejections do not count."""
        healthy = [h for h in self.members if not h.ejected]
        if len(healthy) < self._panic_share * len(self.members):
            healthy = list(self.members)
        self._live = next((list(tier) for _, tier in groupby(healthy, key=lambda host: host.tier)), [])
        self._marks = list(accumulate(h.weight for h in self._live))
        self._even = len({h.weight for h in self._live}) < 2

    def pick(self, request: Request, draw: Draw, *, source_ip: str = "", tried: Collection[Host] = ()) -> Host | None:
        """None where there is no endpoint. `tried` are hosts a retry had rather avoid."""
        live = self._live
        if len(live) < 2:
            return live[0] if live else None
        key = hash_key(self._hash_on, request, source_ip) if self._hash_on is not None else None
        if key is not None and self._ring is not None:
            return self._ring.host(key, ([h for h in live if h not in tried] or live) if tried else live)
        way = self._way if self._hash_on is None else self._random
        host = way(draw)
        if tried:
            for _ in range(SELECTIONS):
                if host not in tried:
                    break
                host = way(draw)
        return host

    def _random(self, draw: Draw) -> Host:
        if self._even:
            return self._live[int(draw() * len(self._live))]
        return self._live[bisect_right(self._marks, draw() * self._marks[-1])]

    def _least_request(self, draw: Draw) -> Host:
        live = self._live
        if self._even:
            count = len(live)
            first, second = live[int(draw() * count)], live[int(draw() * count)]
            return second if second.active < first.active else first
        # weights differ: each by what it may take over what it holds
        marks = list(accumulate(h.weight / (h.active + 1) for h in live))
        return live[min(bisect_right(marks, draw() * marks[-1]), len(live) - 1)]

    def _round_robin(self, draw: Draw) -> Host:
        live = self._live
        if self._even:
            self._turn = (self._turn + 1) % len(live)
            return live[self._turn]
        best = live[0]
        for host in live:  # the smooth kind: each gains its weight, the richest pays for all
            host.share += host.weight
            if host.share > best.share:
                best = host
        best.share -= self._marks[-1]
        return best


class _Ring:
    """Points of every host on a circle; a key takes the next one."""

    __slots__ = ("_hosts", "_points")

    def __init__(self, members: Sequence[Host], minimum: int) -> None:
        total = sum(h.weight for h in members)
        pairs = []
        for host in members:
            copies = max(1, -(-minimum * host.weight // total))
            pairs += [(_digest(b"%s:%d_%d" % (host.address.encode(), host.port, i)), host) for i in range(copies)]
        pairs.sort(key=lambda pair: pair[0])
        self._points = [point for point, _ in pairs]
        self._hosts = [host for _, host in pairs]

    def host(self, key: bytes, among: Collection[Host]) -> Host | None:
        at = bisect_left(self._points, _digest(key))
        count = len(self._hosts)
        return next((h for step in range(count) if (h := self._hosts[(at + step) % count]) in among), None)


def _digest(key: bytes) -> int:
    return int.from_bytes(blake2b(key, digest_size=8).digest(), "big")


def hash_key(on: HashOn, request: Request, source_ip: str) -> bytes | None:
    """None where the request does not have it: then chance decides, as in Envoy."""
    if on.header:
        return joined(request.fields, on.header.encode())
    if on.cookie:
        return cookie(request, on.cookie.encode())
    if on.query:
        return parameter(request.path, on.query.encode())
    return source_ip.encode() if on.source_ip and source_ip else None


def cookie(request: Request, name: bytes) -> bytes | None:
    for key, value in request.fields:
        if key == b"cookie":
            for pair in value.split(b";"):
                held, equals, text = pair.strip().partition(b"=")
                if equals and held == name:
                    return text.strip(b'"')
    return None


def cookie_to_set(on: HashOn, request: Request, draw: Draw) -> tuple[bytes, bytes] | None:
    """(cookie's value, Set-Cookie field) for a client that has none yet and is to be given one; else None.

    Let the value be the hash key of this request, so that the next one falls on the same host.
    """
    if not on.cookie or on.cookie_ttl_s is None or cookie(request, on.cookie.encode()) is not None:
        return None
    value = b"%016x" % int(draw() * 2**53)
    field = on.cookie.encode() + b'="' + value + b'"'
    if on.cookie_ttl_s:
        field += b"; Max-Age=%d" % on.cookie_ttl_s
    if on.cookie_path:
        field += b"; Path=" + on.cookie_path.encode()
    return value, field + b"; HttpOnly"
