"""What a sidecar is given: its own identity, its workload's policies and modes, whose ports take no mutual TLS."""

from __future__ import annotations

import dataclasses

from planes import catalog
from planes.l7.settings import Settings
from planes.l7.view import L7View, PlainPort
from planes.sidecar.place import sidecars
from planes.ztunnel.place import mesh_view
from testbed import policyfile
from testbed.model.policy import Mode
from testbed.model.topology import Topology
from testbed.topofile import load

TWO_ZONES = load("two-zones")
MODES = """
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: vault, namespace: secure}
spec:
  selector: {matchLabels: {app: vault}}
  mtls: {mode: STRICT}
  portLevelMtls: {"8080": {mode: DISABLE}}
"""


def with_modes() -> Topology:
    workloads = tuple(
        dataclasses.replace(w, labels=(("app", "vault"),)) if w.name == "vault" else w for w in TWO_ZONES.workloads
    )
    return dataclasses.replace(TWO_ZONES, workloads=workloads, policies=policyfile.parse(MODES, "modes.yml"))


def placed(topology: Topology, **more: bool) -> dict[str, dict]:
    """Name of the workload -> options of its sidecar."""
    injected = {w.name for w in topology.workloads}
    placement = sidecars(topology, injected=injected, view=mesh_view(topology, captured=()), **more)
    return {p.sandbox: p.options for p in placement.proxies}


def test_a_sidecar_holds_one_identity() -> None:
    """That of the workload in whose sandbox it runs."""
    for proxy in catalog.sidecar.place(TWO_ZONES, {}).proxies:
        assert proxy.identities == (TWO_ZONES.workload(proxy.sandbox).identity(TWO_ZONES.trust_domain),)
        assert (proxy.serves, proxy.node) == ((proxy.sandbox,), TWO_ZONES.workload(proxy.sandbox).node)


def test_options_are_settings() -> None:
    """What the placement writes is what the program reads, key by key."""
    for options in placed(TWO_ZONES, listens_hbone=True).values():
        assert set(options) <= set(Settings.__dataclass_fields__)


def test_a_port_that_is_out_of_mutual_tls_is_told_to_every_client() -> None:
    """The workload knows its mode, its callers know not to try."""
    options = placed(with_modes())
    vault = L7View.parse(options["vault"]["l7"])
    client = L7View.parse(options["client"]["l7"])
    assert (vault.mode(8080), vault.mode(9999)) == (Mode.DISABLE, Mode.STRICT)
    assert client.config.plain_ports == (PlainPort(uid="Kubernetes//Pod/secure/vault", port=8080),)


def test_registry_only_is_said_to_all() -> None:
    """An option of the placement, ALLOW_ANY unless it is given."""
    for wanted in (True, False):
        options = placed(TWO_ZONES, outbound_any=wanted)
        assert {L7View.parse(o["l7"]).config.outbound_any for o in options.values()} == {wanted}
