"""DNS messages: what is asked, what an answer means, and what is no answer."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planes.mesh import dns
from planes.mesh.names import Answer
from tests import dnsserver

NAME = "files.example.com"


def answered(*rows: dnsserver.Row, kind: int = dns.A, code: int = 0) -> Answer | None:
    return dns.answer(dnsserver.reply(dns.query(7, NAME, kind), rows, code=code), 7, NAME, kind)


def test_a_question_says_name_and_kind() -> None:
    """Read by the other half; recursion is asked for."""
    message = dns.query(7, NAME, dns.AAAA)

    assert dnsserver.asked(message) == (NAME, 28)
    assert struct.unpack_from(">6H", message) == (7, 0x0100, 1, 0, 0, 0)


@pytest.mark.parametrize("name", ["", "a..b", "x" * 64 + ".example", ".".join(["long"] * 60), "münchen.example"])
def test_what_dns_cannot_hold_is_not_asked(name: str) -> None:
    """A label has 63 bytes, a name 253, of ASCII."""
    with pytest.raises(ValueError, match="host name"):
        dns.query(1, name, dns.A)


def test_addresses_come_with_the_shortest_lifetime() -> None:
    """Of all records that were needed."""
    assert answered((NAME, 60, "10.0.0.1"), (NAME, 30, "10.0.0.2")) == Answer(
        addresses=("10.0.0.1", "10.0.0.2"), ttl_s=30
    )
    assert answered((NAME, 60, "fd00::1"), kind=dns.AAAA) == Answer(addresses=("fd00::1",), ttl_s=60)


def test_aliases_are_followed() -> None:
    """Their lifetimes count, too; records of other names do not, and a circle ends."""
    rows = [(NAME, 5, "real.example"), ("real.example", 60, "10.0.0.1"), ("other.example", 1, "10.0.0.9")]
    assert answered(*rows) == Answer(addresses=("10.0.0.1",), ttl_s=5)

    circle = answered((NAME, 5, "real.example"), ("real.example", 5, NAME))
    assert circle is not None and circle.addresses == ()


def test_names_are_compared_without_case() -> None:
    """RFC 1035 2.3.3; some clients write case by chance and some servers change it."""
    message = dnsserver.reply(dns.query(7, NAME, dns.A), [(NAME.upper(), 60, "10.0.0.1")])

    assert dns.answer(message, 7, NAME.title(), dns.A) == Answer(addresses=("10.0.0.1",), ttl_s=60)


def test_a_compressed_name_is_read() -> None:
    """As every real server writes it: the owner is a pointer to the question."""
    question = dns.query(7, NAME, dns.A)
    head = struct.pack(">6H", 7, 0x8180, 1, 1, 0, 0)
    message = head + question[12:] + b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + bytes((10, 0, 0, 1))

    assert dns.answer(message, 7, NAME, dns.A) == Answer(addresses=("10.0.0.1",), ttl_s=60)


def test_pointers_that_lead_forwards_are_refused() -> None:
    """Nor can they make a circle."""
    question = dns.query(7, NAME, dns.A)
    head = struct.pack(">6H", 7, 0x8180, 1, 1, 0, 0)
    at = len(question)
    message = head + question[12:] + bytes((0xC0, at)) + struct.pack(">HHIH", 1, 1, 60, 4) + bytes(4)

    with pytest.raises(ValueError, match="forwards"):
        dns.answer(message, 7, NAME, dns.A)


@pytest.mark.parametrize(("code", "says"), [(3, "NXDOMAIN"), (2, "SERVFAIL"), (9, "code 9")])
def test_a_refusal_says_which(code: int, says: str) -> None:
    """No addresses, and the reason for the log."""
    got = answered(code=code)

    assert got is not None and got.addresses == () and says in got.reason


def test_what_does_not_answer_the_question_is_passed_over() -> None:
    """Another number, another name, another kind, or a question: it may be anybody's."""
    reply = dnsserver.reply(dns.query(7, NAME, dns.A), [(NAME, 60, "10.0.0.1")])

    assert dns.answer(reply, 8, NAME, dns.A) is None
    assert dns.answer(reply, 7, "other.example", dns.A) is None
    assert dns.answer(reply, 7, NAME, dns.AAAA) is None
    assert dns.answer(dns.query(7, NAME, dns.A), 7, NAME, dns.A) is None
    assert dns.answer(b"", 7, NAME, dns.A) is None


@given(st.binary(max_size=80), st.integers(0, 60))
def test_whatever_comes_is_an_answer_or_a_value_error(junk: bytes, cut: int) -> None:
    """Also behind a good beginning."""
    reply = dnsserver.reply(dns.query(7, NAME, dns.A), [(NAME, 60, "10.0.0.1"), (NAME, 60, "real.example")])
    for message in (junk, reply[: 12 + cut] + junk, reply[:12] + dns.query(7, NAME, dns.A)[12:] + junk):
        try:
            got = dns.answer(message, 7, NAME, dns.A)
        except ValueError:
            continue
        assert got is None or isinstance(got, Answer)


def test_a_name_of_endless_pointers_is_refused() -> None:
    """Each leads backwards, so that it would end; a message of them would take seconds."""
    question = dns.query(7, NAME, dns.A)
    at, chain = len(question) + 12, b""
    for number in range(200):
        chain += struct.pack(">H", 0xC000 | (12 if number == 0 else at + 2 * (number - 1)))
    record = struct.pack(">HHIH", 99, 1, 0, len(chain)) + chain
    owner = struct.pack(">H", 0xC000 | (at + len(chain) - 2))
    message = question[:2] + b"\x81\x80\x00\x01\x00\x02" + question[8:]
    message += b"\xc0\x0c" + record + owner + struct.pack(">HHIH", 1, 1, 60, 4) + bytes((10, 0, 0, 1))
    with pytest.raises(ValueError, match="on and on"):
        dns.answer(message, 7, NAME, dns.A)
