"""Boundaries of a deployed plane, tried from where an attacker would stand: keys and plaintext here, calls in `calls`.

What happened is the finding, not what the plane says.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed import calls
from testbed.deploy import Deployment, file_name
from testbed.model.experiment import Finding, Result
from testbed.pki import KEY_FILE, holder


def try_all(deployment: Deployment, *, client: str, packets: Sequence[Finding]) -> list[Finding]:
    """Each boundary tried from where an attacker would stand; what happened is the finding, not what the plane says."""
    return [
        identities_held(deployment),
        plaintext_visible(deployment, packets),
        *calls.try_calls(deployment, client=client),
    ]


def identities_held(deployment: Deployment) -> Finding:
    """Identities whose private key can be read from inside each component's own mount namespace:
    what its capture gives away.
    """
    lab = deployment.lab
    held: dict[str, set[str]] = {}
    unseen = []
    for name, process in {**lab.apps, **deployment.proxies}.items():
        root = Path(f"/proc/{process.pid}/root")
        own_folder = deployment.folder(name) if name in deployment.proxies else lab.folder / "apps" / name
        if not (root / str(own_folder).lstrip("/")).is_dir():
            unseen.append(name)  # it ended, or we may not look: that no key is found then proves nothing
        keys = (root / str(lab.folder).lstrip("/")).rglob(KEY_FILE)
        held[name] = {holder(path).name for path in keys}
    placed = {proxy.name: {file_name(i) for i in proxy.identities} for proxy in deployment.placement.proxies}
    wrong = [name for name, keys in held.items() if keys != placed.get(name, set())]
    proxies = {name: len(keys) for name, keys in held.items() if name in placed}
    roles = {proxy.name: proxy.role for proxy in deployment.placement.proxies}
    listed = ", ".join(f"{name} {len(keys)}" for name, keys in sorted(held.items()))
    if unseen:
        listed += f"; not seen from inside: {', '.join(unseen)}"
    # A key that was found was found, whatever else could not be seen.
    leaked = [name for name, keys in held.items() if keys - placed.get(name, set())]
    if leaked or (wrong and not unseen):
        result = Result.BROKEN
    else:
        result = Result.NO_EVIDENCE if unseen or not held else Result.HOLDS
    return Finding(
        id="boundary.identities-held",
        plane=deployment.placement.plane,
        segment="components",
        statement="each proxy can reach the keys of the workloads it serves and of no other; applications reach none",
        result=result,
        evidence=f"private keys readable in each component's mount namespace: {listed}",
        value=_by_role(roles, proxies) or "0",
    )


def _by_role(roles: Mapping[str, str], held: Mapping[str, int]) -> str:
    """`5 sidecars: 1 each; ztunnels: 2 and 3`: a line of a table must bear a hundred sidecars."""
    counts: dict[str, list[int]] = defaultdict(list)
    for name, count in sorted(held.items()):
        counts[roles[name]].append(count)
    told = []
    for role, numbers in sorted(counts.items()):
        if len(numbers) == 1:
            told.append(f"{role}: {numbers[0]}")
        elif len(set(numbers)) == 1:
            told.append(f"{len(numbers)} {role}s: {numbers[0]} each")
        else:
            told.append(f"{len(numbers)} {role}s: {', '.join(map(str, sorted(numbers)))}")
    return "; ".join(told)


def plaintext_visible(deployment: Deployment, packets: Sequence[Finding]) -> Finding:
    """Where the canary could be read without keys, summed from the packet findings."""
    clear = [f for f in packets if f.id.endswith(("/readable", "/hidden"))]
    meant = {f.id.endswith("/readable") for f in clear}
    results = {f.result for f in clear}
    # A leak is a leak, however little is known of the other segments.
    result = (
        Result.BROKEN
        if Result.BROKEN in results
        else Result.NO_EVIDENCE
        if not clear or Result.NO_EVIDENCE in results
        else Result.HOLDS
    )
    readable = [f for f in clear if not f.value.startswith("0 of")]
    return Finding(
        id="boundary.plaintext-visible",
        plane=deployment.placement.plane,
        segment="wire",
        statement="no payload is readable on the wire"
        if True not in meant
        else "payload is readable at every wire segment, as is meant to be"
        if False not in meant
        else "payload is readable on the wire where it is meant to be, and nowhere else",
        result=result,
        evidence="; ".join(f"{f.segment}: {f.value}" for f in clear) or "no segment was judged",
        packets=clear[0].packets if clear else (),
        value=f"{len(readable)} of {len(clear)} segments",
    )
