"""Whose waypoint a workload or service of a topology file has: its own, its service account's, or its namespace's.

Istio's labels know workloads, services and namespaces; an account is a short way to say the same of all that runs under
it (Istio's first waypoints were for accounts). What names one waypoint shares it, and must describe it alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import yaml

from testbed.model.topology import WaypointRef, waypoint_sandboxes
from testbed.yamlpos import Item, suggestion

Problem = Callable[[yaml.Mark, str, str], None]
DEFAULT_NAMESPACE = "default"
DEFAULT_ACCOUNT = "default"


class Waypoints:
    """`refer(item)` tells whether the node that it names exists; `claim(name, kind, mark)` takes a sandbox's name."""

    def __init__(
        self, document: Item, problem: Problem, refer: Callable[[Item | None], bool],
        claim: Callable[[str, str, yaml.Mark], None],
    ) -> None:  # fmt: skip
        self._document, self._problem, self._refer, self._claim = document, problem, refer, claim
        self._seen: dict[tuple[str, str], WaypointRef] = {}
        self._namespaces = dict(document.items("namespaces"))
        self._check_accounts()

    def of_workload(self, name: str, item: Item) -> WaypointRef | None:
        account = item.get("serviceAccount", DEFAULT_ACCOUNT)
        return self._of("workload", name, item, [account])

    def of_service(self, name: str, item: Item, accounts: Collection[str]) -> WaypointRef | None:
        """`accounts` are those of the workloads behind it."""
        return self._of("service", name, item, sorted(set(accounts)))

    def _of(self, kind: str, name: str, item: Item, accounts: list[str]) -> WaypointRef | None:
        namespace, own = item.get("namespace", DEFAULT_NAMESPACE), item.child("waypoint")
        if own is not None:
            return self._own(kind, name, namespace, own)
        found = {account: self._of_account(kind, namespace, account) for account in accounts}
        named = {ref.name for ref in found.values() if ref is not None}
        if len(named) > 1 or (named and None in found.values()):
            listed = ", ".join(f"{account}: {ref.name if ref else 'none'}" for account, ref in found.items())
            what = f"service {name} stands for service accounts of different waypoints ({listed})"
            self._problem(item.mark, what, "give the service a waypoint of its own, or all accounts the same")
            return None
        if named:
            return next(iter(found.values()))
        whole = self._namespaces.get(namespace)
        return self._resolved(kind, namespace, whole.child("waypoint") if whole is not None else None, "waypoint")

    def _own(self, kind: str, name: str, namespace: str, own: Item) -> WaypointRef | None:
        if (handles := own.get("for", "service")) not in ("all", kind):
            what = f"waypoint {own.get('name', f'{name}-waypoint')} is for traffic to a {handles} ({kind} {name})"
            self._problem(own.mark, what, f"give it for: {kind} or for: all")
            return None
        return self._resolved(kind, namespace, own, f"{name}-waypoint")

    def _of_account(self, kind: str, namespace: str, account: str) -> WaypointRef | None:
        entry = dict(self._accounts(namespace)).get(account)
        wanted = entry.child("waypoint") if entry is not None else None
        return self._resolved(kind, namespace, wanted, f"{account}-waypoint")

    def _resolved(self, kind: str, namespace: str, wanted: Item | None, default_name: str) -> WaypointRef | None:
        """None as well where it is for other traffic than `kind`: then whoever is less specific may say something."""
        if wanted is None or not self._refer(wanted.child("node")) or wanted.get("for", "service") not in ("all", kind):
            return None
        waypoint = WaypointRef(
            name=wanted.get("name", default_name),
            node=wanted.get("node"),
            replicas=wanted.get("replicas", 1),
            handles=wanted.get("for", "service"),
        )
        return self._described(waypoint, namespace, wanted)

    def _described(self, waypoint: WaypointRef, namespace: str, item: Item) -> WaypointRef:
        seen = self._seen
        if (namespace, waypoint.name) not in seen:
            again = sum(name == waypoint.name for _, name in seen)
            seen[namespace, waypoint.name] = waypoint
            services = {(n, i.get("namespace", DEFAULT_NAMESPACE)) for n, i in self._document.items("services")}
            if (waypoint.name, namespace) in services:
                what = f"a service of namespace {namespace} has the waypoint's name ({waypoint.name!r})"
                self._problem(item.mark, what, "a waypoint is a service, too; rename one")
            for sandbox in waypoint_sandboxes(waypoint, namespace, first=not again):
                self._claim(sandbox, "waypoint", item.mark)
        elif seen[namespace, waypoint.name] != waypoint:
            what = (
                f"waypoint {waypoint.name} is described in two ways (node {waypoint.node}, replicas "
                f"{waypoint.replicas}, for {waypoint.handles})"
            )
            self._problem(item.mark, what, "give it the same node, replicas and for everywhere, or another name")
        return seen[namespace, waypoint.name]

    def _accounts(self, namespace: str) -> Iterator[tuple[str, Item]]:
        whole = self._namespaces.get(namespace)
        return iter(whole.items("serviceAccounts")) if whole is not None else iter(())

    def _check_accounts(self) -> None:
        """A waypoint that nobody would pass is a mistake."""
        for namespace, whole in self._namespaces.items():
            known = {
                i.get("serviceAccount", DEFAULT_ACCOUNT)
                for _, i in self._document.items("workloads")
                if i.get("namespace", DEFAULT_NAMESPACE) == namespace
            }
            for account, _ in self._accounts(namespace):
                if account not in known:
                    what = f"no workload of namespace {namespace} runs under that service account ({account!r})"
                    mark = whole.value["serviceAccounts"].keys[account]
                    self._problem(mark, what, suggestion(account, known))
