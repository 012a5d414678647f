"""What the control plane writes for proxies: ViewError or ValueError for bad ones, and no surprise at a connection."""

from __future__ import annotations

import json

from planes.l7.view import L7View
from planes.mesh.view import MeshView, ViewError
from testbed.model.l4policy import Connection, decide


def _json(data: bytes) -> object:
    """None where no proxy would come as far as the view."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def mesh(data: bytes) -> None:
    raw = _json(data)
    try:
        view = MeshView.parse(raw)  # type: ignore[arg-type]
    except ViewError:
        return
    for w in view.workloads:
        connection = Connection(
            source_ip="10.0.0.1", destination_ip=w.addresses[0] if w.addresses else "", destination_port=80,
            identity=w.identity,
        )  # fmt: skip
        decide(view.policies_for(w), connection)
        view.services_of(w)
        if w.waypoint is not None:
            view.destination(w.waypoint)
        for address in w.addresses:
            view.service_at(w.network, address, w.namespace)
    for s in view.services:
        view.endpoints(s)
        view.service_named(s.hostname, s.namespace)
        for network, vip in s.vips:
            assert view.service_at(network, vip, s.namespace) is not None or s.private


def l7(data: bytes) -> None:
    raw = _json(data)
    try:
        view = L7View.parse(raw)
    except ValueError:
        return
    view.mode(80)
