"""Workloads that leave their node's ztunnel while a lab runs, and join it again: namespace, certificate, renewal.

A ztunnel has the keys of identities that are on its node, and of no others (facts/hbone 2.9). So the last workload of
an identity takes the certificate along, out of the proxy's memory (`planes.ztunnel.certificates`), its folder and the
CA's list; and a workload that joins finds it there before its first connection.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from testbed import deploy
from testbed.deploy import Deployment
from testbed.errors import UsageError
from testbed.model.identity import Identity
from testbed.model.placement import Proxy
from testbed.nodeagent import NodeAgent


def leave(deployment: Deployment, workload: str) -> None:
    """The ztunnel closes the workload's listeners; its capture stays, so that nothing goes round the mesh.

    Raises UsageError for a workload that is in no ztunnel now.
    """
    proxy, agent = _ztunnel_of(deployment, workload)
    if workload not in _inside(agent):
        raise UsageError(f"workload {workload} has left {proxy.name} already; it can join again")
    agent.remove(workload)
    identity = _identity(deployment, workload)
    if identity not in {_identity(deployment, name) for name in _inside(agent)}:
        _withdraw(deployment, proxy, identity)


def join(deployment: Deployment, workload: str) -> None:
    """Back again. Raises UsageError for a workload that is there."""
    proxy, agent = _ztunnel_of(deployment, workload)
    if workload in _inside(agent):
        raise UsageError(f"workload {workload} is in {proxy.name} already; it can leave first")
    identity = _identity(deployment, workload)
    if not _folder(deployment, proxy, identity).exists():
        deploy.hand_out(deployment, proxy, identity)
    agent.add(deploy.pod(deployment.lab, workload))


def _inside(agent: NodeAgent) -> set[str]:
    return {pod.uid for pod in agent.pods}


def _identity(deployment: Deployment, workload: str) -> Identity:
    topology = deployment.lab.topology
    return topology.workload(workload).identity(topology.trust_domain)


def _folder(deployment: Deployment, proxy: Proxy, identity: Identity) -> Path:
    return deployment.folder(proxy.name) / deploy.IDENTITIES / deploy.file_name(identity)


def _ztunnel_of(deployment: Deployment, workload: str) -> tuple[Proxy, NodeAgent]:
    entering = [proxy for proxy in deployment.placement.proxies if proxy.enters]
    for proxy, agent in zip(entering, deployment.agents, strict=True):
        if workload in proxy.enters:
            return proxy, agent
    known = ", ".join(name for proxy in entering for name in proxy.enters) or "none"
    raise UsageError(f"workload {workload} is in no ztunnel's care; those that are: {known}")


def _withdraw(deployment: Deployment, proxy: Proxy, identity: Identity) -> None:
    """The CA's list first: what it no longer knows it does not write again."""
    given = deployment.given[proxy.name]
    given.remove(identity)
    deploy.tell_renewer(deployment)
    deploy.write_config(deployment, proxy)
    folder = _folder(deployment, proxy, identity)
    gone = folder.with_name(f".gone.{folder.name}")
    folder.rename(gone)  # a renewal that is under way finds no folder, and puts nothing into another
    shutil.rmtree(gone)
