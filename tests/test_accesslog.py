from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from planes.mesh.accesslog import Direction, Event, Record, line

WHOLE = Record(
    time_s=1_700_000_000.25, event=Event.COMPLETE, direction=Direction.OUTBOUND, source="10.0.1.2:4000",
    destination="10.0.2.2:15008", hbone_target="10.0.2.2:8080", source_workload="client", source_namespace="default",
    source_identity="spiffe://td/ns/default/sa/c", source_cluster="Kubernetes",
    destination_service="server.default.svc.cluster.local", destination_workload="server",
    destination_namespace="default", destination_identity="spiffe://td/ns/default/sa/s",
    destination_cluster="Kubernetes",
    bytes_sent=17, bytes_received=42, duration_ms=12.4,
)  # fmt: skip


def test_a_whole_line_has_ztunnels_keys_in_ztunnels_order() -> None:
    """Addresses and numbers are bare, text is quoted, the duration is whole milliseconds."""
    expected = (
        "2023-11-14T22:13:20.250000Z\tinfo\taccess\tconnection complete\t"
        'src.addr=10.0.1.2:4000 src.workload="client" src.namespace="default" '
        'src.identity="spiffe://td/ns/default/sa/c" src.cluster="Kubernetes" '
        'dst.addr=10.0.2.2:15008 dst.hbone_addr=10.0.2.2:8080 dst.service="server.default.svc.cluster.local" '
        'dst.workload="server" dst.namespace="default" dst.identity="spiffe://td/ns/default/sa/s" '
        'dst.cluster="Kubernetes" direction="outbound" bytes_sent=17 bytes_recv=42 duration="12ms"'
    )

    assert line(WHOLE) == expected


def test_what_is_not_known_is_left_out() -> None:
    """A passthrough to nowhere in the mesh has no destination keys but the address."""
    bare = Record(
        time_s=0, event=Event.COMPLETE, direction=Direction.INBOUND, source="1.1.1.1:1", destination="2.2.2.2:2"
    )

    assert line(bare).split("\t")[-1] == (
        'src.addr=1.1.1.1:1 dst.addr=2.2.2.2:2 direction="inbound" bytes_sent=0 bytes_recv=0 duration="0ms"'
    )


def test_the_level_says_how_it_went() -> None:
    """Complete is info, or error with its text; an early refusal warns; an opening is for debugging."""
    broken = replace(WHOLE, error="http status: 401")

    assert line(broken).split("\t")[1] == "error"
    assert line(broken).endswith('duration="12ms" error="http status: 401"')
    assert line(replace(WHOLE, event=Event.OPENED)).split("\t")[1] == "debug"
    assert "bytes_sent" not in line(replace(WHOLE, event=Event.OPENED))


def test_an_early_refusal_tells_addresses_direction_and_error_only() -> None:
    """Nothing else is certain at that point."""
    text = line(replace(WHOLE, event=Event.FAILED, error="unknown source"))

    assert text.split("\t")[1:] == [
        "warn", "access", "connection failed",
        'src.addr=10.0.1.2:4000 dst.addr=10.0.2.2:15008 direction="outbound" error="unknown source"',
    ]  # fmt: skip


@given(st.text(max_size=40))
def test_no_value_can_break_out_of_its_quotes(text: str) -> None:
    """A peer chooses some of these (baggage); one record stays one line and one key."""
    written = line(replace(WHOLE, error=text or "x"))
    value = written.split(" error=", 1)[1]

    assert len(written.splitlines()) == 1
    assert value[0] == value[-1] == '"'
    assert '"' not in value[1:-1].replace("\\\\", "").replace('\\"', "")
