"""What happens to certificates during a trial: renewals, a CA that is gone for a while, a new root, a wrong clock.

A clock is moved by moving that of the CA: whoever compares two clocks sees their difference only. The clocks of
programs stay as they are, for a kernel's time namespaces do not shift the one that certificates are compared with.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path

from testbed import deploy, stages
from testbed.deploy import Deployment
from testbed.errors import PeerError, UsageError
from testbed.model.event import Event, Kind
from testbed.model.placement import Proxy
from testbed.pki import CERTIFICATE_FILE, CertificateAuthority, entrust, not_after, write_identity
from testbed.runtime.enter import owner_for
from testbed.runtime.keeper import handles

Told = tuple[tuple[str, str, float], ...]
LIFE_LEFT = "least_life_left"
LOOK_EVERY_S = 0.1
BACK_WITHIN_S = 30.0


def carry_out(deployment: Deployment, event: Event) -> tuple[tuple[str, ...], Told]:
    """Whose certificates, and what is to be told; instants are seconds from now. Raises PeerError, UsageError."""
    chosen = stages.proxies_of(deployment.placement, event.on) if event.on else deployment.placement.proxies
    struck = [proxy for proxy in chosen if deployment.given[proxy.name]]
    names = tuple(proxy.name for proxy in struck)
    if not struck:
        return (), ()
    if event.kind is Kind.RENEW:
        return names, _renewed(deployment, struck, event.for_s)
    if event.kind is Kind.NO_CA:
        return names, _without_ca(deployment, event.for_s)
    if event.kind is Kind.NEW_ROOT:
        return names, _new_root(deployment, struck, event.for_s)
    if event.kind is Kind.CLOCK:
        return names, _clock_moved(deployment, struck, event)
    raise UsageError(f"{event.kind} is no event of certificates")


def give(
    deployment: Deployment, struck: Sequence[Proxy], authority: CertificateAuthority, *, bundle: bytes, now: float
) -> None:
    """New certificates for all of these, who are told."""
    for proxy in struck:
        uid = owner_for(deployment.uids[proxy.name])
        for identity, folder in zip(deployment.given[proxy.name], _folders(deployment, proxy), strict=True):
            leaf = authority.issue(identity, now=now, lifetime_s=deployment.leaf_lifetime_s)
            write_identity(folder, leaf, bundle, uid)
            if deployment.renewer is not None:
                entrust(folder, owner_for(deploy.CA_UID), uid)
    for process in (deployment.proxies[proxy.name] for proxy in struck):
        if handles(process.pid, signal.SIGHUP):  # it would end one that does not; that watches its files
            process.signal(signal.SIGHUP)


def _folders(deployment: Deployment, proxy: Proxy) -> list[Path]:
    home = deployment.folder(proxy.name) / deploy.IDENTITIES
    return [home / deploy.file_name(identity) for identity in deployment.given[proxy.name]]


def _files(deployment: Deployment, struck: Sequence[Proxy]) -> list[Path]:
    return [folder / CERTIFICATE_FILE for proxy in struck for folder in _folders(deployment, proxy)]


def _renewed(deployment: Deployment, struck: Sequence[Proxy], for_s: float) -> Told:
    """What is in the folders is looked at all the while: whether the CA keeps up is a matter of the machine."""
    ends = dict.fromkeys(_files(deployment, struck), 0.0)
    counts = dict.fromkeys(ends, -1)  # the first look is none
    least_s, over_s = float("inf"), time.monotonic() + for_s
    while time.monotonic() < over_s:
        for file, before in ends.items():
            if (end := _end(file, before)) != before:
                ends[file], counts[file] = end, counts[file] + 1
        least_s = min(least_s, min(ends.values()) - time.time())
        time.sleep(LOOK_EVERY_S)
    return ("renewals", "", float(min(counts.values()))), (LIFE_LEFT, "s", least_s)


def _end(file: Path, before: float) -> float:
    try:
        return not_after(file)
    except FileNotFoundError:
        return before  # between two generations


def _without_ca(deployment: Deployment, for_s: float) -> Told:
    if deployment.renewer is None:
        raise UsageError("there is no CA to be gone; give the cell a leaf_lifetime_s")
    began_s, now = time.monotonic(), time.time()
    # Beside a renewal that is under way these would be mixed; it is gone first.
    deployment.renewer.signal(signal.SIGKILL)
    if deployment.renewer.wait(BACK_WITHIN_S) is None:
        raise PeerError("the CA does not end, not even by SIGKILL")
    everybody = [proxy for proxy in deployment.placement.proxies if deployment.given[proxy.name]]
    give(deployment, everybody, deployment.authority, bundle=deployment.authority.bundle, now=now)
    files = _files(deployment, everybody)
    time.sleep(for_s)
    ended = min(map(not_after, files))
    back_s, back = time.monotonic() - began_s, time.time()
    deploy.start_renewing(deployment)  # the first half of a life is over, so it begins with a renewal
    deadline_s = time.monotonic() + BACK_WITHIN_S
    while min(_end(file, 0.0) for file in files) <= back:
        if time.monotonic() > deadline_s:
            raise PeerError(f"the CA is back and has renewed nothing within {BACK_WITHIN_S:g} s; its log: ca.log")
        time.sleep(LOOK_EVERY_S)
    return (
        ("certificates_ended", "s", ended - now), ("ca_back", "s", back_s),
        ("all_renewed", "s", time.monotonic() - began_s),
    )  # fmt: skip


def _new_root(deployment: Deployment, struck: Sequence[Proxy], for_s: float) -> Told:
    began_s, old = time.monotonic(), deployment.authority
    new = CertificateAuthority(now=time.time(), trust_domain=old.trust_domain)
    both = old.bundle + new.bundle
    give(deployment, struck, old, bundle=both, now=time.time())
    time.sleep(for_s)
    leaves_s = time.monotonic() - began_s
    give(deployment, struck, new, bundle=both, now=time.time())
    time.sleep(for_s)
    forgotten_s = time.monotonic() - began_s
    give(deployment, struck, new, bundle=new.bundle, now=time.time())
    deployment.authority = new
    deploy.tell_renewer(deployment)
    return ("new_leaves", "s", leaves_s), ("old_root_forgotten", "s", forgotten_s)


def _clock_moved(deployment: Deployment, struck: Sequence[Proxy], event: Event) -> Told:
    began_s, authority = time.monotonic(), deployment.authority
    try:
        give(deployment, struck, authority, bundle=authority.bundle, now=time.time() + event.by_s)
        time.sleep(event.for_s)
    finally:
        right_s = time.monotonic() - began_s
        give(deployment, struck, authority, bundle=authority.bundle, now=time.time())
    return (("clock_right", "s", right_s),)
