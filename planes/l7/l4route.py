"""Which clusters a connection that is not HTTP may go to: `tcp` routes of a VirtualService. Pure.

As istiod writes them: the first rule one of whose matches holds for the service's address and port and, at a sidecar,
for the client; where none does the service itself. All of it is known before any connection, so chance alone is left.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable
from ipaddress import ip_address, ip_network
from itertools import accumulate

from planes.l7.view import Cluster
from testbed.model.traffic import WeightedDestination


class Weighted:
    """Clusters by weight. None in place of one: a destination that nobody knows, where a connection ends."""

    __slots__ = ("_marks", "options")

    def __init__(self, options: list[tuple[Cluster | None, int]]) -> None:
        self.options = options
        self._marks = list(accumulate(weight for _, weight in options))

    def choose(self, draw: Callable[[], float]) -> Cluster | None:
        if len(self.options) == 1:
            return self.options[0][0]
        return self.options[bisect_right(self._marks, draw() * self._marks[-1])][0]


def weighted(
    destinations: Iterable[WeightedDestination], cluster: Callable[[WeightedDestination], Cluster | None]
) -> Weighted:
    """A lone destination needs no weight; of several those without one get nothing."""
    found = list(destinations)
    if len(found) == 1:
        return Weighted([(cluster(found[0]), 1)])
    return Weighted([(cluster(d), d.weight) for d in found if d.weight] or [(None, 1)])


def in_subnets(address: str, subnets: Iterable[str]) -> bool:
    """No subnets: any address."""
    listed = tuple(subnets)
    return not listed or any(ip_address(address) in ip_network(subnet, strict=False) for subnet in listed)
