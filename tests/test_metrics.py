from __future__ import annotations

import re

from planes.mesh import baggage
from planes.mesh.baggage import Baggage
from planes.mesh.metrics import Meter, Metrics, Peer, Reporter
from planes.mesh.route import Flag
from tests.meshviews import behind, service, view, workload

MESH = view(
    [
        workload("client", "10.0.0.1", workloadName="client", canonicalName="client", canonicalRevision="v1",
                 clusterId="K", locality={"region": "r", "zone": "z1"}),
        workload("server", "10.0.0.2", workloadName="server", canonicalName="server", **behind("s")),
    ],
    [service("s", "10.96.0.1")],
)  # fmt: skip
CLIENT, SERVER = MESH.workloads


def opened(metrics: Metrics) -> Meter:
    return metrics.open(
        Reporter.SOURCE, Peer(workload=CLIENT, principal="spiffe://td/ns/default/sa/c"), Peer(workload=SERVER),
        MESH.services[0], mtls=True,
    )  # fmt: skip


def samples(metrics: Metrics, name: str) -> list[tuple[dict[str, str], int]]:
    """An independent reading of the exposition text."""
    found = []
    for text in metrics.render().splitlines():
        if (m := re.fullmatch(name + r"\{(.*)\} (\d+)", text)) is not None:
            found.append((dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', m[1])), int(m[2])))
    return found


def test_bytes_show_while_the_connection_lives_and_after() -> None:
    """A scrape sees the integers of live meters; closing neither loses nor doubles them."""
    metrics = Metrics()
    meter, other = opened(metrics), opened(metrics)
    meter.received_bytes += 100
    meter.sent_bytes += 7
    other.received_bytes += 1
    before = samples(metrics, "istio_tcp_received_bytes_total")
    meter.close()
    meter.close()

    assert [value for _, value in before] == [101]
    assert samples(metrics, "istio_tcp_received_bytes_total") == before
    assert [v for _, v in samples(metrics, "istio_tcp_sent_bytes_total")] == [7]
    assert [v for _, v in samples(metrics, "istio_tcp_connections_opened_total")] == [2]
    assert [v for _, v in samples(metrics, "istio_tcp_connections_closed_total")] == [1]


def test_the_labels_are_istios() -> None:
    """All of them always, `unknown` where nothing is known."""
    metrics = Metrics()
    opened(metrics)
    ((labels, _),) = samples(metrics, "istio_tcp_connections_opened_total")

    assert labels == {
        "reporter": "source", "source_workload": "client", "source_canonical_service": "client",
        "source_canonical_revision": "v1", "source_workload_namespace": "default",
        "source_principal": "spiffe://td/ns/default/sa/c", "source_app": "client", "source_version": "v1",
        "source_cluster": "K", "source_region": "r", "source_zone": "z1",
        "destination_service": "s.default.svc.cluster.local", "destination_service_namespace": "default",
        "destination_service_name": "s", "destination_workload": "server", "destination_canonical_service": "server",
        "destination_canonical_revision": "unknown", "destination_workload_namespace": "default",
        "destination_principal": "unknown", "destination_app": "server", "destination_version": "unknown",
        "destination_cluster": "unknown", "destination_region": "unknown", "destination_zone": "unknown",
        "request_protocol": "tcp", "response_flags": "-", "connection_security_policy": "mutual_tls",
    }  # fmt: skip


def test_the_flag_labels_the_closing() -> None:
    """A denied connection was opened like any other and closed with DENY."""
    metrics = Metrics()
    opened(metrics).close(Flag.DENY)
    closed = {labels["response_flags"]: v for labels, v in samples(metrics, "istio_tcp_connections_closed_total")}

    assert closed == {"DENY": 1}
    assert samples(metrics, "istio_tcp_connections_opened_total")[0][0]["response_flags"] == "-"


def test_an_unknown_peer_is_labelled_by_its_baggage() -> None:
    """With what it wants to be called, escaped: it cannot forge a label or a line."""
    metrics = Metrics()
    stranger = Peer(baggage=Baggage(workload='x",reporter="source', namespace="a\nb\\"))
    metrics.open(Reporter.DESTINATION, stranger, Peer(), None, mtls=False)
    ((labels, value),) = samples(metrics, "istio_tcp_connections_opened_total")

    assert value == 1
    assert labels["source_workload"] == 'x\\",reporter=\\"source'
    assert labels["source_workload_namespace"] == "a\\nb\\\\"
    assert (labels["reporter"], labels["connection_security_policy"]) == ("destination", "unknown")


def test_every_family_has_help_and_type_before_its_samples() -> None:
    """The text format wants them once, and all samples of a family together."""
    metrics = Metrics()
    opened(metrics)
    text = metrics.render()

    assert len(re.findall(r"# HELP (\w+) .+\n# TYPE \1 counter\n\1\{|# HELP (\w+) .+\n# TYPE \2 counter\n", text)) == 5
    assert text.endswith("\n")


def test_baggage_reads_back_what_it_writes() -> None:
    """Source labels travel in the CONNECT; absent fields are left out."""
    written = baggage.render(CLIENT)

    assert written == (
        "k8s.cluster.name=K,k8s.namespace.name=default,k8s.deployment.name=client,service.name=client,"
        "service.version=v1,cloud.region=r,cloud.availability_zone=z1"
    )
    assert baggage.parse(written) == Baggage(
        cluster="K", namespace="default", workload="client", canonical_name="client", canonical_revision="v1",
        region="r", zone="z1",
    )  # fmt: skip


def test_baggage_skips_what_it_does_not_know() -> None:
    """Another's baggage (tracing uses the same header) is no error."""
    assert baggage.parse("userId=7, k8s.pod.name=p ,broken,,k8s.cluster.name=") == Baggage(workload="p")
