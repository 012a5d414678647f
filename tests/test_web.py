"""The web app, spoken to over loopback by plain sockets and the standard library's client."""

from __future__ import annotations

import http.client
import itertools
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from testbed.apps.http1 import MAX_HEAD_BYTES, BodyPart, Malformed, RequestEnd, RequestHead, RequestReader, parse_head
from tests.loopback import App, app, talk


@pytest.fixture(scope="module")
def web() -> Iterator[App]:
    with app("testbed.apps.web", "--name", "web-1") as started:
        yield started


def get(web: App, target: str, **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
    client = http.client.HTTPConnection("127.0.0.1", web.port, timeout=10)
    client.request("GET", target, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = client.getresponse()
    body = answer.read()
    client.close()
    return answer, body


def count(web: App) -> dict:
    return json.loads(get(web, "/-/count")[1])


def test_the_request_chooses_size_and_status(web: App) -> None:
    """Both come by query, or by header."""
    answer, body = get(web, "/any?size=70000&status=503")
    assert (answer.status, len(body)) == (503, 70000)

    answer, body = get(web, "/any", x_echo_size="3", x_echo_status="418")
    assert (answer.status, len(body)) == (418, 3)


def test_the_answer_says_who_answered_and_who_called(web: App) -> None:
    """A judge reads from the answer which workload it was and whom it saw."""
    with web.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        answer = http.client.HTTPResponse(connection)
        answer.begin()

        assert answer.getheader("x-workload") == "web-1"
        assert answer.getheader("x-peer-address") == "127.0.0.1"
        assert answer.getheader("x-peer-port") == str(connection.getsockname()[1])


def test_a_remembered_answer_still_tells_each_peer_its_own_port(web: App) -> None:
    """What is remembered by a head's bytes holds nothing of the connection that taught it."""
    request = b"GET /?size=9 HTTP/1.1\r\nHost: web\r\n\r\n"
    for _ in range(3):
        with web.connect() as connection:
            connection.sendall(request)
            answer = http.client.HTTPResponse(connection)
            answer.begin()

            assert answer.read() == b"x" * 9
            assert answer.getheader("x-peer-port") == str(connection.getsockname()[1])


def test_a_new_request_id_changes_no_answer_and_hides_no_difference(web: App) -> None:
    """Heads that differ in the id alone share an answer; any other difference is one, and each request counts."""
    before = count(web)["requests"]
    for number, size in enumerate((7, 7, 8, 7)):
        head = f"GET /?size={size} HTTP/1.1\r\nhost: web\r\nx-request-id: {number:08d}\r\naccept: */*\r\n\r\n"
        with web.connect() as connection:
            connection.sendall(head.encode())
            answer = http.client.HTTPResponse(connection)
            answer.begin()

            assert answer.read() == b"x" * size
    assert count(web)["requests"] - before == 5  # the question before is one of them


def test_pipelined_requests_are_answered_in_order(web: App) -> None:
    """A slow first request holds back the answers of those behind it."""
    targets = [b"/?status=201&delay_ms=60", b"/?status=202", b"/?status=203&delay_ms=5", b"/?status=206&size=100000"]
    received = talk(web.port, b"".join(b"GET " + t + b" HTTP/1.1\r\nHost: web\r\n\r\n" for t in targets))

    statuses = [line.split()[1] for line in received.split(b"\r\n") if line.startswith(b"HTTP/1.1 ")]
    assert statuses == [b"201", b"202", b"203", b"206"]
    assert received.endswith(b"x" * 100000)


def test_a_delay_is_waited_for(web: App) -> None:
    """The answer does not come before the delay asked for (1 ms: the timer's tick)."""
    began_s = time.monotonic()
    get(web, "/?delay_ms=150")

    assert time.monotonic() - began_s >= 0.149


def test_head_announces_the_size_and_sends_no_body(web: App) -> None:
    """The second request's answer follows at once on the first one's head."""
    received = talk(
        web.port, b"HEAD /?size=50 HTTP/1.1\r\nHost: w\r\n\r\nHEAD /?size=90000 HTTP/1.1\r\nHost: w\r\n\r\n"
    )

    assert received.count(b"HTTP/1.1 200") == 2
    assert b"content-length: 50\r\n" in received and b"content-length: 90000\r\n" in received
    assert b"xx" not in received


@pytest.mark.parametrize("status", [204, 304])
def test_statuses_without_a_body_have_none(web: App, status: int) -> None:
    """RFC 9110 §6.4.1: whatever size was asked for."""
    received = talk(web.port, f"GET /?size=20&status={status} HTTP/1.1\r\nHost: w\r\n\r\n".encode())

    assert received.startswith(f"HTTP/1.1 {status}".encode())
    assert received.endswith(b"\r\n\r\n")


def test_a_chunked_body_is_counted_not_kept(web: App) -> None:
    """The number of bytes of the body, without the chunks' own framing and the trailers."""
    body = b"5\r\nhello\r\n1f;note=x\r\n" + b"y" * 31 + b"\r\n0\r\nTrailer: t\r\n\r\n"
    received = talk(web.port, b"POST / HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\n\r\n" + body)

    assert b"x-body-bytes: 36\r\n" in received


def test_expect_100_is_answered_before_the_body_comes(web: App) -> None:
    """A client that waits for the interim answer gets it, then the final one."""
    with web.connect() as connection:
        connection.settimeout(10)
        connection.sendall(b"PUT / HTTP/1.1\r\nHost: w\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"body")
        assert b"x-body-bytes: 4\r\n" in connection.recv(1000)


def test_http_1_0_closes_unless_asked_to_stay(web: App) -> None:
    """The old version's default is one request a connection."""
    assert b"connection: close" in talk(web.port, b"GET / HTTP/1.0\r\n\r\n", shut=False)


def test_malformed_bytes_get_400_and_the_end(web: App) -> None:
    """What no longer can be read as HTTP ends the connection, and is counted apart."""
    before = count(web)["malformed"]
    received = talk(web.port, b"\x16\x03\x01\x00\xc8 not http\r\n\r\nGET / HTTP/1.1\r\nHost: w\r\n\r\n", shut=False)

    assert received.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert received.count(b"HTTP/1.1 ") == 1
    assert count(web)["malformed"] == before + 1


def test_an_order_out_of_range_is_refused(web: App) -> None:
    """One request cannot make the app hold more than its bound."""
    assert get(web, "/?size=1e12")[0].status == 400
    assert get(web, "/?delay_ms=nan")[0].status == 400


def test_totals_count_requests_bytes_and_peers(web: App) -> None:
    """Counting is always on: remembered, slow and large answers alike."""
    before = count(web)
    for target in ("/?size=10", "/?size=10", "/?size=10&delay_ms=1", "/?size=100000"):
        get(web, target)
    after = count(web)

    assert after["requests"] - before["requests"] == 5  # with the first count itself
    assert after["response_body_bytes"] - before["response_body_bytes"] >= 100030
    assert after["requests_by_peer"]["127.0.0.1"] == after["requests"]


def test_only_marked_requests_are_logged_and_sigterm_leaves_the_log_whole(tmp_path: Path) -> None:
    """A measured window pays for counting alone; what is marked is on disk when the program has ended, with code 0."""
    log = tmp_path / "seen.jsonl"
    with app("testbed.apps.web", "--name", "w", "--log", str(log)) as web:
        for _ in range(3):
            get(web, "/plain")
        get(web, "/marked", x_canary="c-1", x_request_id="r-1")
        get(web, "/asked?log=1")
        assert web.end() == 0

    seen = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["path"] for line in seen] == ["/marked", "/asked"]
    assert (seen[0]["canary"], seen[0]["request_id"], seen[0]["peer"]) == ("c-1", "r-1", "127.0.0.1")


def test_the_log_is_on_disk_soon(tmp_path: Path) -> None:
    """A judge need not stop the app to read it."""
    log = tmp_path / "seen.jsonl"
    with app("testbed.apps.web", "--name", "w", "--log", str(log), "--log-requests", "all") as web:
        get(web, "/plain")
        for _ in range(100):
            if log.read_text():
                break
            time.sleep(0.05)

        assert json.loads(log.read_text())["path"] == "/plain"


def test_sigterm_lets_an_answer_in_progress_finish() -> None:
    """Graceful: the request that was being served is answered, with a closing connection."""
    with app("testbed.apps.web", "--name", "w") as web, web.connect() as connection:
        connection.settimeout(10)
        connection.sendall(b"GET /?delay_ms=500&size=4 HTTP/1.1\r\nHost: w\r\n\r\n")
        time.sleep(0.15)
        web.process.terminate()
        received = b""
        while part := connection.recv(1000):
            received += part

        assert b"connection: close" in received and received.endswith(b"xxxx")
        assert web.process.wait(10) == 0


def test_calls_are_made_in_order_with_the_marks_passed_on(tmp_path: Path) -> None:
    """A chain: the callees see the caller's canary and trace, and the answer waits for them."""
    log = tmp_path / "callee.jsonl"
    with app("testbed.apps.web", "--name", "callee", "--log", str(log)) as callee:
        call = f"http://127.0.0.1:{callee.port}"
        with app(
            "testbed.apps.web", "--name", "a", "--call", f"{call}/one", "--call", f"{call}/two?size=5000"
        ) as front:
            for number in range(2):
                assert get(front, "/", x_canary=f"c{number}", traceparent="00-1-2-01")[0].status == 200
        assert count(callee)["connections"] == 3  # one for each --call, kept, and this one
        callee.end()

    seen = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["path"], line["canary"]) for line in seen] == [
        ("/one", "c0"),
        ("/two", "c0"),
        ("/one", "c1"),
        ("/two", "c1"),
    ]


def test_the_totals_are_told_at_once_and_without_calling_anyone() -> None:
    """An app that calls others, or takes its time, says what it counted like any other; its callee is not asked."""
    with app("testbed.apps.web", "--name", "callee") as callee:
        slow = ("--service-time-ms", "3000", "--call", f"http://127.0.0.1:{callee.port}/")
        with app("testbed.apps.web", "--name", "a", *slow) as front:
            assert count(front)["requests"] == 0
        assert count(callee)["requests"] == 0


def test_a_failed_call_makes_the_answer_502_and_says_whom() -> None:
    """The chain's front does not pretend."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with app("testbed.apps.web", "--name", "a", "--call", f"http://127.0.0.1:{port}/") as front:
            answer, _ = get(front, "/")

    assert answer.status == 502
    assert f"127.0.0.1:{port}" in (answer.getheader("x-call-error") or "")


# The reader alone: bytes in, events out.


def events(reader: RequestReader) -> list[object]:
    found = []
    while (event := reader.next_event()) is not None:
        found.append(event)
    return found


def shape(found: list[object]) -> list[object]:
    """Heads by path, ends, and body bytes summed between them, so that it does not matter where the bytes were cut."""
    shaped: list[object] = []
    size = 0
    for event in found:
        if isinstance(event, BodyPart):
            size += event.size_bytes
        elif isinstance(event, RequestEnd):
            shaped += [size, "end"]
        else:
            assert isinstance(event, RequestHead)
            size = 0
            shaped.append(event.path)
    return shaped


STREAM = (
    b"GET /a HTTP/1.1\r\nHost: w\r\n\r\n"
    b"POST /b HTTP/1.1\r\nHost: w\r\nContent-Length: 11\r\n\r\nhello\r\n\r\n!!"
    b"\r\nPOST /c HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: Chunked\r\n\r\n"
    b"3\r\nabc\r\nA \r\n0123456789\r\n0\r\nX: y\r\n\r\n"
    b"GET /d HTTP/1.1\r\nHost: w\r\n\r\n"
)


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_requests_read_the_same_wherever_the_bytes_are_cut(cuts: list[int]) -> None:
    """TCP has no messages: any cutting gives the same requests."""
    reader = RequestReader()
    found: list[object] = []
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in itertools.pairwise(edges):
        reader.receive(STREAM[start:end])
        found += events(reader)

    assert shape(found) == ["/a", 0, "end", "/b", 11, "end", "/c", 13, "end", "/d", 0, "end"]
    assert reader.between_requests


@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_read_or_malformed(data: bytes) -> None:
    """No input makes the reader fail in any other way, or run on for ever."""
    reader = RequestReader()
    reader.receive(data)
    try:
        events(reader)
    except Malformed as error:
        assert 400 <= error.status < 600


@pytest.mark.parametrize(
    "block",
    [
        b"GET / HTTP/1.1",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b",
        b"GET  / HTTP/1.1\r\nHost: a",
        b"GET / HTTP/2.0\r\nHost: a",
        b"GET / HTTP/1.1\r\nHost: a\r\nX : b",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\nY: c",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: b\x00",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +1",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked",
        b"GET / HTTP/1.1\r\nHost: a" + b"\r\nX: y" * 200,
    ],
)
def test_heads_that_two_readers_could_read_in_two_ways_are_malformed(block: bytes) -> None:
    """The shapes of request smuggling, and what else RFC 9112 forbids."""
    with pytest.raises(Malformed):
        parse_head(block)


@pytest.mark.parametrize(
    "body", [b"g\r\n", b"-1\r\n", b"\r\n", b"2\r\nabc\r\n", b"1" * 17 + b"\r\n", b"1;" + b"x" * 400]
)
def test_chunks_that_lie_are_malformed(body: bytes) -> None:
    """A chunk's size is hexadecimal, bounded, and kept."""
    reader = RequestReader()
    reader.receive(b"POST / HTTP/1.1\r\nHost: w\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
    with pytest.raises(Malformed):
        events(reader)


def test_a_head_without_end_is_refused_at_the_bound() -> None:
    """A peer cannot make the reader hold more than one head."""
    reader = RequestReader()
    reader.receive(b"GET / HTTP/1.1\r\nX: " + b"a" * MAX_HEAD_BYTES)
    with pytest.raises(Malformed) as caught:
        reader.next_event()

    assert caught.value.status == 431
