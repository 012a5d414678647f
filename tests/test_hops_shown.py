"""Waterfalls as rows of a run, read back, in text and in pictures: what is unknown says so everywhere."""

from __future__ import annotations

import math
import re
from dataclasses import asdict

import pytest

from testbed import cells
from testbed.hops import drawn, readback
from testbed.hops.readback import Bar
from testbed.hops.route import APP, CLIENT, PROXY, WIRE
from testbed.hops.shown import track, with_hops
from testbed.hops.traced import Clock, between, read_clock, requests_of, rows_of
from testbed.hops.waterfall import AT, BACK, THERE, Part, Request, Waterfall
from testbed.model.experiment import Axis, Cell, Experiment, Load, Measurement, RequestRow
from testbed.table import Table
from testbed.typeset import as_markdown, as_text

LOAD = Load(request_ids=True)
CELLS = (Cell(name="captured", load=LOAD, traced=True), Cell(name="not captured", load=LOAD))


def waterfall(total_ns: int, *, lost: bool = False) -> Waterfall:
    """A proxy on the way; with `lost`, nobody knows how long the answer took over the link."""
    steps: list[tuple[str, str, str, int | None]] = [
        (CLIENT, "load generator at client", THERE, 100),
        (PROXY, "ztunnel of client", THERE, 200),
        (WIRE, "link a--b", THERE, 1000),
        (APP, "application server", AT, total_ns - 2600),
        (WIRE, "link a--b", BACK, None if lost else 1000),
        (PROXY, "ztunnel of client", BACK, 100),
        (CLIENT, "load generator at client", BACK, 200),
    ]
    parts, at = [], 0
    for kind, name, direction, took in steps:
        parts.append(Part(kind=kind, name=name, direction=direction, start_ns=at, duration_ns=took))
        at += 1000 if took is None else took
    asked = Request(id="x", intended_ns=0, sent_ns=0, done_ns=total_ns)
    return Waterfall(request=asked, parts=tuple(parts), edge_ns=total_ns - 300)


def trials(plane: str = "ambient-l4", *, rounds: int = 6, lost: bool = False, valid: bool = True) -> list[Measurement]:
    made = []
    for number in range(1, rounds + 1):
        falls = [waterfall(ns + number * 1000, lost=lost) for ns in range(4_000_000, 4_101_000, 1000)]
        labels = {"round": number, "block": 1, "plane": plane, "valid": valid, "reason": "" if valid else "busy"}
        for component, metric, unit, value in rows_of(falls):
            made.append(
                Measurement(component=component, metric=metric, unit=unit, value=value, cell="captured",
                            trial=f"r{number}-{plane}, captured", **labels)
            )  # fmt: skip
        for cell, value in (("captured", 4.2), ("not captured", 4.0)):
            made.append(
                Measurement(component="client", metric="latency_p50", unit="ms", value=value + number / 100, cell=cell,
                            trial=f"r{number}-{plane}, {cell}", **labels)
            )  # fmt: skip
    return made


def text_of(made: list[Measurement]) -> str:
    table = with_hops(Table(blocks=(), notes=("a note of before",)), made, [asdict(cell) for cell in CELLS])
    return as_text(table, width=110)


class TestReadBack:
    def test_hops_come_back_in_their_order_with_both_ways(self) -> None:
        """From the rows alone, as a report is built again."""
        hops = readback.read(trials(), "ambient-l4")
        assert hops is not None and hops.rounds == 6
        assert [row.name for row in hops.rows] == [
            "load generator at client", "ztunnel of client", "link a--b", "application server",
        ]  # fmt: skip
        link = hops.rows[2]
        assert {way: one.value for way, one in link.median.items() if one} == {THERE: 1.0, BACK: 1.0}
        assert hops.rows[3].median.keys() == {AT}

    def test_bars_of_one_request_follow_each_other(self) -> None:
        """Each begins where the one before ended; together they are the whole."""
        hops = readback.read(trials(), "ambient-l4")
        assert hops is not None
        bars = [bar for row in hops.rows for bar in row.bars[50].values()]
        bars.sort(key=lambda bar: bar.start_us or 0.0)
        ends = [0.0, *((bar.start_us or 0.0) + (bar.length_us or 0.0) for bar in bars)]
        assert [bar.start_us for bar in bars] == pytest.approx(ends[:-1])
        assert ends[-1] == pytest.approx(hops.shown[50]["total"])
        assert hops.shown[50]["total"] < hops.shown[99]["total"]
        assert hops.shown[50]["remainder"] == hops.shown[99]["remainder"] == 0.0

    def test_what_is_unknown_stays_unknown(self) -> None:
        """Its neighbours are placed from both ends of the request; what it took is the remainder."""
        hops = readback.read(trials(lost=True), "ambient-l4")
        assert hops is not None
        link, proxy = hops.rows[2], hops.rows[1]
        assert link.median[BACK] is None and link.unknown[BACK] == 1.0
        assert link.bars[50][BACK].length_us is None
        total = hops.shown[50]["total"]
        assert proxy.bars[50][BACK].start_us == pytest.approx(total - 0.3)
        assert hops.shown[50]["remainder"] == pytest.approx(1.0)

    def test_trials_that_do_not_count_are_not_read(self) -> None:
        """The plane is known, its hops are not."""
        made = trials(valid=False)
        assert readback.planes(made) == ["ambient-l4"] and readback.read(made, "ambient-l4") is None


class TestText:
    def test_a_table_of_hops_and_its_bars(self) -> None:
        """Medians with their intervals, the shares, the request at p50, and what capturing costs."""
        text = text_of(trials())
        assert re.search(r"link a--b +1\.00 \[1\.00, 1\.00\] +1\.00 \[1\.00, 1\.00\]", text)
        assert re.search(r"not explained +0\.0% +0\.000", text)
        assert "█" in text and "▓" in text
        assert re.search(r"ambient-l4 +4\.0\d +4\.2\d +\+0\.200 \[", text)
        assert all(len(line) <= 110 for line in text.splitlines() if "│" in line or "·" in line)

    def test_unknown_is_written_out(self) -> None:
        """And never as a figure."""
        text = text_of(trials(lost=True))
        lines = [one for one in text.splitlines() if one.startswith("link a--b") and "unknown" in one]
        assert sum(line.count("unknown") for line in lines) == 3  # the median, and the requests at p50 and p99
        assert "unknown of up to 100.0% of a round's requests" in " ".join(text.split())
        assert "?" in text
        assert re.search(r"not explained\S* +0\.0% +1\.00 +1\.00\n", text)

    def test_a_plane_without_a_trial_that_counts_says_so(self) -> None:
        """No empty table."""
        assert "ambient-l4: no traced trial counts" in text_of(trials(valid=False))

    def test_a_run_without_traced_cells_keeps_its_table(self) -> None:
        """Also through the door by which every run's table comes."""
        plain = [m for m in trials() if not m.component.startswith("hop")]
        table = Table(blocks=(), notes=())
        assert with_hops(table, plain, []) is table

    def test_the_table_of_a_run_begins_with_its_hops(self) -> None:
        """The question is where the time goes."""
        experiment = Experiment(
            name="waterfall", question="?", topology="two-zones", planes=("ambient-l4",), client="client",
            target="server", load=LOAD, cells=CELLS, axis=Axis(name="capture", metrics=("latency_p50",)),
        )  # fmt: skip
        info = {"plan": {"experiment": {**asdict(experiment)}, "topology": {}}}
        built = cells.table_of(info, trials(), [])
        assert built.blocks[0].title.startswith("Where the time goes under ambient-l4")
        assert "link a--b" in as_markdown(built)

    def test_what_takes_any_time_has_a_sign(self) -> None:
        """A microsecond of a second, too; what is unknown has another one."""
        assert track({THERE: Bar(start_us=0.0, length_us=1.0)}, 1e6, 10) == "█·········"
        assert track({THERE: Bar(start_us=5.0, length_us=5.0)}, 10.0, 10) == "·····█████"
        assert track({BACK: Bar(start_us=None, length_us=None)}, 10.0, 10) == "·········?"
        assert track({BACK: Bar(start_us=9.9, length_us=0.2)}, 10.0, 10) == "·········▓"
        assert track({THERE: Bar(start_us=None, length_us=None)}, math.nan, 4) == "?···"


class TestPicture:
    def test_a_figure_a_plane_and_percentile(self) -> None:
        """Every hop has its line, each of its ways a bar with its figure."""
        page = drawn.page([*trials(), *trials("none")])
        assert page.count("<figure>") == 1 + 2 * 2
        one = page[page.index("ambient-l4: the request at p50") :].partition("</figure>")[0]
        assert one.count("<rect") == 7 and "→ link a--b: 1.00 us" in one
        assert "0.000 us (0.0%) not explained" in page

    def test_unknown_is_a_question_mark_and_no_bar(self) -> None:
        """And the title says how much of the time that is."""
        page = drawn.page(trials(lost=True))
        one = page[page.index("ambient-l4: the request at p50") :].partition("</figure>")[0]
        assert one.count("<rect") == 6 and ">?<" in one and "← unknown" in one
        assert "1.00 us (0.0%) not explained" in page

    def test_names_are_escaped(self) -> None:
        """They come from a file."""
        made = [m for m in trials("<b>") if m.component]
        assert "<b>" not in drawn.page(made)

    def test_nothing_of_a_run_without_traced_cells(self) -> None:
        """Not even a heading."""
        assert drawn.page([m for m in trials() if not m.component.startswith("hop")]) == ""


class TestClock:
    def test_a_stretch_is_off_by_its_readings_and_its_drift(self) -> None:
        """A clock that was set meanwhile is seen."""
        found = between(Clock(offset_ns=1000, off_ns=40), Clock(offset_ns=1200, off_ns=60))
        assert (found.offset_ns, found.off_ns) == (1100, 160)

    def test_the_clock_here_can_be_read(self) -> None:
        """Both clocks are one machine's; a reading lies between two others."""
        assert read_clock().off_ns >= 0

    def test_failed_requests_have_no_waterfall(self) -> None:
        """They have no end to explain."""
        good, bad = (
            RequestRow(intended_s=1.0, sent_s=1.5, first_byte_s=2.0, last_byte_s=2.25, status=200, bytes=4,
                       connection=3, error=error)
            for error in ("", "timeout")
        )  # fmt: skip
        (one,) = requests_of([good, bad], 7)
        assert one == Request(id="mb-3-1000000000", intended_ns=10**9 + 7, sent_ns=15 * 10**8 + 7, done_ns=2250000007)
