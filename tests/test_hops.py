"""Requests found again in packets, place by place: sums that hold, and what was not seen staying unknown."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed import planespec, proof, topofile
from testbed.errors import UsageError
from testbed.hops.messages import http1_messages
from testbed.hops.route import APP, PROXY, WIRE, Way, ways
from testbed.hops.sightings import Sighting, sightings, whole_at
from testbed.hops.waterfall import BACK, Request, Waterfall, all_falls, at_percentile, fall, typical
from testbed.load.plan import request_id, with_id
from testbed.load.schedule import check
from testbed.model.experiment import Load
from testbed.observe.pcapng import Interface, Packet, Recording
from tests import recorded
from tests.recorded import TO_CLIENT, TO_SERVER, Laid, Tunnels, frame

SYN, SYN_ACK, DATA = 2, 18, 24
CLIENT, SERVER = ("10.1.1.2", 40000), ("10.1.2.4", 8080)
ASKED = b"GET / HTTP/1.1\r\nhost: h\r\nx-request-id: one\r\n\r\n"
ANSWERED = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nbody"
T0 = 1_700_000_000_000_000_000


@dataclass
class Story:
    """Packets of one connection at many places, each when the story says."""

    places: tuple[str, ...]
    packets: list[tuple[int, int, bytes]] = field(default_factory=list)

    def opened(self, *places: str, server: tuple[str, int] = SERVER) -> Story:
        for place in places or self.places:
            self.put(place, 0, frame(CLIENT, server, 99, SYN, b""))
            self.put(place, 1, frame(server, CLIENT, 499, SYN_ACK, b"", acknowledged=100))
        return self

    def asks(self, place: str, at_ns: int, data: bytes = ASKED, start: int = 0) -> Story:
        return self.put(place, at_ns, frame(CLIENT, SERVER, 100 + start, DATA, data, acknowledged=500))

    def answers(self, place: str, at_ns: int, data: bytes = ANSWERED) -> Story:
        return self.put(place, at_ns, frame(SERVER, CLIENT, 500, DATA, data, acknowledged=100 + len(ASKED)))

    def put(self, place: str, at_ns: int, data: bytes) -> Story:
        self.packets.append((T0 + at_ns, self.places.index(place), data))
        return self

    def recording(self, key_log: str = "") -> Recording:
        rows = sorted(self.packets, key=lambda row: row[0])
        return Recording(
            interfaces=tuple(Interface(name=name) for name in self.places),
            packets=tuple(
                Packet(number=n, interface=place, time_ns=time_ns, data=data, wire_length=len(data))
                for n, (time_ns, place, data) in enumerate(rows, 1)
            ),
            key_log=key_log,
            drops={},
        )

    def seen(self) -> list[Sighting]:
        return sightings(self.recording()).get("one", [])


def way_of(plane: str, topology: str = "two-zones", target: str = "server") -> Way:
    (way,) = all_ways(plane, topology, target)
    return way


def all_ways(plane: str, topology: str = "two-zones", target: str = "server") -> list[Way]:
    made = topofile.load(topofile.find(topology))
    placement = planespec.place(plane, made)
    claims = proof.concerned(placement.claims, made, proof.errand(made, target, ""), "client")
    return [way for name in made.service(target).endpoints for way in ways(made, placement, claims, name)]


def request(done_ns: int, *, sent_ns: int = 10, id_: str = "one") -> Request:
    return Request(id=id_, intended_ns=T0, sent_ns=T0 + sent_ns, done_ns=T0 + done_ns)


WAY = way_of("none")
NAMES = WAY.interfaces
STEPS = len(NAMES)


def told(*, without: tuple[str, ...] = ()) -> Story:
    """Passing each place takes 100 ns, the application 5,000."""
    story = Story(NAMES).opened()
    for number, place in enumerate(NAMES):
        if place not in without:
            story.asks(place, 1000 + 100 * number)
            story.answers(place, 1000 + 100 * (2 * STEPS - 2 - number) + 5000)
    return story


DONE_NS = 1000 + 100 * (2 * STEPS - 2) + 5000 + 777


def durations(found: Waterfall) -> dict[str, int | None]:
    return {part.label: part.duration_ns for part in found.parts}


class TestMessages:
    def test_interim_answers_belong_to_the_answer_behind_them(self) -> None:
        """100 Continue is no answer to a request."""
        data = b"HTTP/1.1 100 Continue\r\n\r\n" + ANSWERED
        assert [(start, stop) for start, stop, _ in http1_messages(data, answers=True)] == [(25, len(data))]

    def test_a_chunked_body_ends_behind_its_trailers(self) -> None:
        """What follows is the next answer."""
        one = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx: y\r\n\r\n"
        data = one + one
        assert [stop for _, stop, _ in http1_messages(data, answers=True)] == [len(one), 2 * len(one)]

    @pytest.mark.parametrize("missing", [1, 4, 20])
    def test_what_is_not_whole_is_no_message(self, missing: int) -> None:
        """When it will have been whole is not known."""
        assert list(http1_messages(ANSWERED[:-missing], answers=True)) == []

    def test_bytes_of_another_protocol_are_no_messages(self) -> None:
        """A database's, say."""
        assert list(http1_messages(b"\x00\x01\r\n\r\n" + ASKED, answers=False)) == []

    @given(st.lists(st.tuples(st.binary(max_size=40), st.booleans()), max_size=6))
    def test_messages_in_a_row_are_told_apart(self, bodies: list[tuple[bytes, bool]]) -> None:
        """Whatever their bodies hold: an empty line, or something that looks like a head."""
        data, ends = b"", []
        for body, chunked in bodies:
            framing = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % len(body)
            inside = b"%x\r\n%s\r\n" % (len(body), body) if body else b""
            data += b"POST / HTTP/1.1\r\n" + framing + b"\r\n\r\n" + (inside + b"0\r\n\r\n" if chunked else body)
            ends.append(len(data))

        assert [stop for _, stop, _ in http1_messages(data, answers=False)] == ends


class TestSightings:
    def test_a_request_split_among_packets_is_there_with_its_last(self) -> None:
        """In whatever order they come."""
        story = Story(("n:a",)).opened()
        story.asks("n:a", 300, ASKED[:10]).asks("n:a", 200, ASKED[10:], start=10).answers("n:a", 900)
        (one,) = story.seen()
        assert (one.asked_ns, one.answered_ns) == (T0 + 300, T0 + 900)

    def test_what_comes_again_counts_from_the_first_time(self) -> None:
        """A repetition behind the place tells nothing of it."""
        story = Story(("n:a",)).opened().asks("n:a", 200).asks("n:a", 700).answers("n:a", 900)
        assert story.seen()[0].asked_ns == T0 + 200

    def test_a_place_without_the_request_is_looked_up_by_its_bytes(self) -> None:
        """The second of two requests, where the first was lost: nothing can be read there, but its bytes are known."""
        second = ASKED.replace(b"one", b"two")
        story = Story(("n:a", "n:b")).opened()
        for place in ("n:a", "n:b"):
            story.asks(place, 600, second, start=len(ASKED)).answers(place, 900, ANSWERED + ANSWERED)
        story.asks("n:a", 200)
        found = sightings(story.recording())

        assert {s.interface for s in found["two"] if s.asked_ns == T0 + 600} == {"n:a", "n:b"}
        assert {s.interface: s.asked_ns for s in found["one"]} == {"n:a": T0 + 200, "n:b": None}

    def test_a_connection_that_began_before_the_capture_stands_for_itself(self) -> None:
        """Its bytes have other numbers; what is in it can be read all the same."""
        story = Story(("n:a", "n:b")).opened("n:a")
        for place, at in (("n:a", 200), ("n:b", 250)):
            story.asks(place, at).answers(place, at + 100)
        assert {s.interface: s.asked_ns for s in story.seen()} == {"n:a": T0 + 200, "n:b": T0 + 250}

    def test_a_redirected_connection_is_one_on_loopback(self) -> None:
        """Its answers come from the address that was asked for, its packets go to the proxy's."""
        proxy, story = ("127.0.0.1", 15001), Story(("client:lo",))
        story.put("client:lo", 0, frame(CLIENT, proxy, 99, SYN, b""))
        story.put("client:lo", 1, frame(SERVER, CLIENT, 499, SYN_ACK, b"", acknowledged=100))
        story.put("client:lo", 200, frame(CLIENT, proxy, 100, DATA, ASKED, acknowledged=500))
        story.put("client:lo", 900, frame(SERVER, CLIENT, 500, DATA, ANSWERED, acknowledged=100 + len(ASKED)))
        (one,) = story.seen()
        assert (one.server, one.asked_ns, one.answered_ns) == (proxy, T0 + 200, T0 + 900)

    def test_bytes_that_never_came_were_never_whole(self) -> None:
        """Half of them were there."""
        from testbed.observe.streams import ByteStream, Mark

        stream = ByteStream(data=bytes(10), marks=(Mark(0, 5, 1, 7),), longest_mark=5)
        assert whole_at(stream, [(0, 5)]) == 7
        assert whole_at(stream, [(0, 6)]) is None
        assert whole_at(stream, []) is None

    def test_a_request_inside_a_tunnel_is_found_at_every_place_of_it(self, tmp_path: Path) -> None:
        """HTTP/1.1 in CONNECT streams in TLS: opened once, with the proxies' keys."""
        bodies = [(ASKED.replace(b"one", b"n%d" % n), ANSWERED) for n in range(3)]
        wire, keys = tunnels(tmp_path, bodies)
        laid = Laid()
        points = [laid.point("node-a:x"), laid.point("node-b:x")]
        laid.exchange(wire, points=points)
        found = sightings(laid.recording(), keys)

        assert set(found) == {"n0", "n1", "n2"}
        for seen in found.values():
            assert [s.interface for s in seen] == ["node-a:x", "node-b:x"]
            assert all(s.asked_ns and s.answered_ns and s.asked_ns < s.answered_ns for s in seen)
            assert seen[1].asked_ns - seen[0].asked_ns == 10_000  # type: ignore[operator]

    def test_without_keys_nothing_is_said_of_a_tunnel(self, tmp_path: Path) -> None:
        """No guess by times."""
        wire, _ = tunnels(tmp_path, [(ASKED, ANSWERED)])
        laid = Laid()
        laid.exchange(wire, points=[laid.point("node-a:x")])
        assert sightings(laid.recording()) == {}


def tunnels(folder: Path, bodies: list[tuple[bytes, bytes]]) -> tuple[recorded.Exchange, str]:
    names = ("spiffe://cluster.local/ns/default/sa/client", "spiffe://cluster.local/ns/default/sa/server")
    authority = recorded.Authority(folder)
    wire, keys = recorded.hbone(authority, folder, Tunnels(bodies=bodies), client=names[0], server=names[1])
    assert {way for way, _ in wire} == {TO_SERVER, TO_CLIENT}
    return wire, keys


class TestWaterfall:
    def test_hops_add_up_to_what_the_client_waited(self) -> None:
        """To the nanosecond, from the generator's own times; and at the client's edge to what packets show there."""
        found = fall([WAY], request(DONE_NS), told().seen())

        assert found.is_whole and found.remainder_ns == 0
        assert found.known_ns == DONE_NS == found.request.total_ns
        assert found.edge_ns == DONE_NS - 777 - 1000
        assert durations(found)["· application server"] == 5000
        assert durations(found)["→ link node-a--node-b"] == durations(found)["← link node-a--node-b"] == 100
        assert durations(found)["→ waiting to be sent"] == 10
        assert durations(found)["← load generator at client"] == 777

    @given(st.data())
    def test_any_times_add_up(self, data: st.DataObject) -> None:
        """Each hop is told as long as it was made, on the way there and back."""
        steps = data.draw(st.lists(st.integers(0, 10**7), min_size=2 * STEPS + 1, max_size=2 * STEPS + 1))
        there, back = 1000, []
        story = Story(NAMES).opened()
        for place, step in zip(NAMES, steps[:STEPS], strict=True):
            story.asks(place, there := there + step)
        at = there
        for place, step in zip(reversed(NAMES), steps[STEPS:], strict=False):
            story.answers(place, at := at + step)
            back.append(step)
        found = fall([WAY], request(at + steps[-1]), story.seen())

        assert found.remainder_ns == 0
        assert [part.duration_ns for part in found.parts][2 : STEPS + 1] == steps[1:STEPS]
        assert [part.duration_ns for part in found.parts][STEPS + 1 : -1] == back

    @pytest.mark.parametrize("lost", NAMES)
    def test_a_place_that_saw_nothing_makes_its_hops_unknown(self, lost: str) -> None:
        """Not zero, and not the neighbours' gain: what they took is the remainder."""
        whole = fall([WAY], request(DONE_NS), told().seen())
        found = fall([WAY], request(DONE_NS), told(without=(lost,)).seen())
        unknown = [part.label for part in found.parts if part.duration_ns is None]

        number = NAMES.index(lost)
        assert len(unknown) == (3 if number == STEPS - 1 else 4)  # behind the last one is the application alone
        assert found.remainder_ns == sum(durations(whole)[label] or 0 for label in unknown) > 0
        known = {label: ns for label, ns in durations(found).items() if ns is not None}
        assert known == {label: durations(whole)[label] for label in known}

    def test_a_request_that_no_place_saw_is_all_remainder(self) -> None:
        """But for what its sender says of itself."""
        (found,) = all_falls([WAY], [request(DONE_NS)], {})
        assert found.known_ns == 10 and found.remainder_ns == DONE_NS - 10
        assert {part.duration_ns for part in found.parts[1:]} == {None}

    def test_what_was_lost_on_a_link_waits_on_that_link(self) -> None:
        """Before it the first sending counts, behind it the repetition is the first."""
        story = Story(NAMES).opened()
        for number, place in enumerate(NAMES[:3]):
            story.asks(place, 1000 + 100 * number).asks(place, 9_000_000 + 100 * number)
        for number, place in enumerate(NAMES[3:]):
            story.asks(place, 9_000_400 + 100 * number)
        for number, place in enumerate(reversed(NAMES)):
            story.answers(place, 9_010_000 + 100 * number)
        found = fall([WAY], request(9_020_000), story.seen())

        assert found.is_whole and found.remainder_ns == 0
        assert durations(found)["→ link node-a--node-b"] == 9_000_400 - 1200
        assert sum(ns or 0 for ns in durations(found).values()) == 9_020_000

    def test_times_that_contradict_each_other_are_unknown(self) -> None:
        """No hop ends before it begins; the sum says that something is wrong."""
        story = told(without=(NAMES[2],))
        story.asks(NAMES[2], 500).answers(NAMES[2], 1000 + 100 * (2 * STEPS - 4) + 5000)
        found = fall([WAY], request(DONE_NS), story.seen())

        assert [part.label for part in found.parts if part.duration_ns is None] == [f"→ {WAY.hops[1].name}"]
        assert found.remainder_ns != 0

    def test_a_device_that_is_crossed_twice_is_told_by_whom_the_leg_goes_to(self) -> None:
        """A waypoint's veth carries the request in, and out again."""
        way = way_of("ambient")
        seen, at = [], T0 + 1000
        for place in way.places:
            there, at = at, at + 100
            seen.append(
                Sighting(interface=place.interface, client=CLIENT, server=(min(place.towards), 15008),
                         asked_ns=there, answered_ns=T0 + 10_000 - (there - T0))
            )  # fmt: skip
        found = fall([way], request(10_000), reversed(seen))

        assert len(way.interfaces) < len(way.places)
        assert found.is_whole and found.remainder_ns == 0
        assert {ns for label, ns in durations(found).items() if "veth" in label or "waypoint" in label} == {100}

    def test_of_two_ways_the_one_that_was_taken_is_told(self) -> None:
        """Requests of a service go to this endpoint or that."""
        other = Way(places=tuple(WAY.places[:1]), hops=(), client="client", server="elsewhere")
        assert fall([other, WAY], request(DONE_NS), told().seen()).is_whole
        assert "· application server" in durations(fall([other, WAY], request(DONE_NS), told().seen()))

    def test_medians_leave_out_what_is_unknown_and_count_it(self) -> None:
        """Of three requests the link's time is known of two."""
        lost = NAMES[3]
        falls = [fall([WAY], request(DONE_NS), told(without=w).seen()) for w in ((), (), (lost,))]
        by_label = {one.label: one for one in typical(falls)}
        assert (by_label[f"→ {WAY.hops[2].name}"].known, by_label[f"→ {WAY.hops[2].name}"].requests) == (2, 3)
        assert by_label[f"→ {WAY.hops[2].name}"].median_ns == 100
        assert by_label["→ veth of client"].known == 3

    def test_the_request_at_a_percentile_is_one_that_was(self) -> None:
        """The nearest to it, whatever is known of it."""
        falls = all_falls([WAY], [request(n * 1000, id_=str(n)) for n in range(1, 102)], {})
        assert at_percentile(falls, 50).request.id == "51"  # type: ignore[union-attr]
        assert at_percentile(falls, 99).request.id == "100"  # type: ignore[union-attr]
        assert at_percentile([], 50) is None


class TestWays:
    @pytest.mark.parametrize(
        ("plane", "proxies"),
        [
            ("none", []),
            ("sidecar", ["sidecar of client", "sidecar of server"]),
            ("ambient-l4", ["ztunnel of client", "ztunnel of server"]),
            ("ambient", ["ztunnel of client", "waypoint", "ztunnel of server"]),
            ("node-l7", ["proxy of node-a", "proxy of node-b"]),
            ("envoy-sidecar", ["envoy-sidecar of client", "envoy-sidecar of server"]),
            ("envoy-ambient", ["envoy-ztunnel of client", "waypoint", "envoy-ztunnel of server"]),
        ],
    )
    def test_every_plane_has_its_proxies_between_its_places(self, plane: str, proxies: list[str]) -> None:
        """In the order in which a request meets them; each plane crosses the link once."""
        way = way_of(plane)
        assert [hop.name for hop in way.hops if hop.kind == PROXY] == proxies
        assert [hop.name for hop in way.hops if hop.kind == WIRE] == ["link node-a--node-b"]
        assert len({hop.name for hop in way.hops}) == len(way.hops) == len(way.places) - 1

    def test_a_waypoint_elsewhere_takes_the_request_over_the_link_on_its_second_leg(self) -> None:
        """Beside the client, say."""
        way = way_of("ambient:waypoint_node=node-a")
        kinds = [(hop.kind, place.leg) for hop, place in zip(way.hops, way.places[1:], strict=True)]
        assert (WIRE, 1) in kinds and (WIRE, 0) not in kinds

    def test_several_endpoints_are_several_ways(self) -> None:
        """Which one a request took is known from its packets."""
        assert len({way.server for way in all_ways("none", "shop", "frontend")}) > 1


class TestRequestIds:
    def test_a_request_bears_the_id_that_its_row_gives(self) -> None:
        """The row is read back from a file, as the same double."""
        asked = with_id(b"POST / HTTP/1.1\r\ncontent-length: 4\r\n\r\n\r\n\r\n", 3, 1234.56789)
        assert asked.endswith(b"\r\nx-request-id: mb-3-1234567890000\r\n\r\n\r\n\r\n")
        assert request_id(3, 1234.56789) == "mb-3-1234567890000"

    @pytest.mark.parametrize("fields", [{"kind": "closed"}, {"protocol": "http2"}])
    def test_a_load_that_cannot_bear_ids_is_refused(self, fields: dict) -> None:
        """A closed loop knows only afterwards when a request was meant to be sent."""
        with pytest.raises(UsageError, match="request ids take an open loop over http1"):
            check(Load(request_ids=True, **fields))


def test_the_application_lies_between_the_way_there_and_the_way_back() -> None:
    """So that a waterfall reads from the client to the server and home."""
    parts = fall([WAY], request(DONE_NS), told().seen()).parts
    middle = [part.kind for part in parts].index(APP)
    assert all(part.direction == BACK for part in parts[middle + 1 :])
    assert len(parts) == 2 * middle
