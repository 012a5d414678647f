"""The report: one offline page on which everything foreign is text."""

from __future__ import annotations

import dataclasses
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import pytest

from testbed import cli, drawing, plots, report, store
from testbed.errors import UsageError
from testbed.model.experiment import Finding, Result
from tests import synthetic

VOID = {"meta", "br", "wbr", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that tags nest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.stack == [], f"not closed: {self.stack}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(k, v or "") for k, v in attrs]
        if tag not in VOID:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(k, v or "") for k, v in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.stack and self.stack.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[store.Run, str]:
    run = synthetic.make_run(tmp_path_factory.mktemp("results"))
    return run, report.build(run.path).read_text()


def test_the_page_is_well_formed_and_asks_the_network_for_nothing(built: tuple[store.Run, str]) -> None:
    """No script, no address, no import: what it shows, it holds."""
    page = Page(built[1])

    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert not [a for a in page.attributes if a[0] in ("src", "href", "xlink:href", "action") or a[0].startswith("on")]
    assert not re.search(r"url\(|@import|https?://", built[1])


def test_the_page_tells_question_table_left_out_machine_and_command(built: tuple[store.Run, str]) -> None:
    """What a reader needs to doubt or repeat the run is on it."""
    text = Page(built[1]).text

    for wanted in (
        "What does a plane add, and what does it prove?",
        "4 of 5",
        "r5-ambient-l4 (ambient-l4): send lag p99 2.1 ms above 0.5 ms",
        "invented CPU",
        "./inv experiment.run synthetic --seed 3",
        "packets 12, 19, 23, 40, 41, 77",
    ):
        assert wanted in text
    assert "TLS secrets" not in text
    assert (built[0].path / "table.md").read_text().startswith("# synthetic ")


def test_padlocks_follow_packets_and_not_promises(built: tuple[store.Run, str]) -> None:
    """Cleartext links are open under none, encrypted ones closed under ambient, those without evidence a `?`."""
    none, ambient = (
        drawing.draw(store.as_json(synthetic.topology()), [f for f in built[0].findings() if f.plane == p], title=p)
        for p in ("none", "ambient-l4")
    )

    assert [none.count(f'class="lock {s}"') for s in ("open", "closed", "unknown")] == [2, 0, 1]
    assert [ambient.count(f'class="lock {s}"') for s in ("open", "closed", "unknown")] == [0, 2, 1]


@pytest.mark.parametrize(
    ("checks", "state"),
    [
        ({"hidden": Result.HOLDS}, "closed"),
        ({"tls": Result.HOLDS, "hidden": Result.BROKEN}, "open"),
        ({"readable": Result.HOLDS}, "open"),
        ({"readable": Result.NO_EVIDENCE}, "unknown"),
        ({"tls": Result.BROKEN}, "unknown"),
        ({"hbone": Result.HOLDS}, "unknown"),
        ({}, "unknown"),
    ],
)
def test_a_lock_is_what_the_judge_found(checks: dict[str, Result], state: str) -> None:
    """One cleartext proof opens it; only proved encryption closes it; anything else is a question mark."""
    found = [
        Finding(id=f"p/a>b/a/to-b/{c}", plane="p", segment="link a--b (a/to-b)", statement="", result=r, evidence="")
        for c, r in checks.items()
    ]

    assert drawing.lock(drawing.on_segment(found, link="a--b")) == state
    assert drawing.on_segment(found, link="a--c") == []


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    """Names, reasons, evidence and commands from files cannot become markup."""
    bad = "<script>alert(1)</script>\"'&"
    experiment = dataclasses.replace(synthetic.experiment((bad,)), question=bad)
    topology = synthetic.topology()
    nodes = (dataclasses.replace(topology.nodes[0], name=bad, zone=bad), *topology.nodes[1:])
    plan = store.Plan(
        topology=dataclasses.replace(topology, nodes=nodes), seed=1, block_order=((bad,),), runtime=bad, link_kind=bad,
        command=bad, machine={bad: bad}, planes={bad: {bad: bad}},
    )  # fmt: skip
    with store.Run.create(tmp_path, experiment, plan, started="2026-01-02T03:04:05Z") as run:
        run.append_trial([synthetic.row(bad, 1, "latency_p50", 1.0, valid=False, reason=bad)])
        run.append_trial([synthetic.row(bad, 2, "latency_p50", 1.0), synthetic.row(bad, 2, "memory_pss", 1.0, bad)])
        run.append_findings(
            [
                Finding(
                    id=f"boundary.{bad}",
                    plane=bad,
                    segment=bad,
                    statement=bad,
                    result=Result.BROKEN,
                    evidence=bad,
                    value=bad,
                )
            ]
        )
    html = report.build(run.path).read_text()

    assert "script" not in Page(html).tags
    assert "<script" not in html
    assert html.count("&lt;script&gt;") > 10


def test_captures_with_secrets_put_a_red_notice_on_the_page(tmp_path: Path) -> None:
    """Whoever passes the folder on must see that keys are inside."""
    run = synthetic.make_run(tmp_path)
    head = struct.pack("<IIIHHqI", 0x0A0D0D0A, 28, 0x1A2B3C4D, 1, 0, -1, 28)
    (run.path / "captures" / "p.pcapng").write_bytes(head + struct.pack("<IIIII", 10, 20, 0x544C534B, 0, 20))
    page = Page(report.build(run.path).read_text())

    assert "Captures hold TLS secrets: p.pcapng" in page.text
    assert ("class", "warning") in page.attributes


def test_spoilt_requests_are_named(tmp_path: Path) -> None:
    """The file and the mend, not a traceback of the library that reads it."""
    run = synthetic.make_run(tmp_path)
    spoilt = next(iter(run.request_files().values()))
    spoilt.write_bytes(b"x")

    with pytest.raises(UsageError, match=rf"{spoilt.name}: does not read as requests .*restore it"):
        report.build(run.path)


def test_requests_that_are_gone_are_missed_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the page, over the curves that lack them, on stderr and by the exit code; the tables have all they had."""
    run = synthetic.make_run(tmp_path)
    table_before = (report.build(run.path).parent / "table.md").read_text()
    gone = list(run.request_files().values())[:2]
    for path in gone:
        path.unlink()
    monkeypatch.setenv("MESHBED_RESULTS", str(tmp_path))

    assert cli.report_build(run.path.name) == 3
    said = capsys.readouterr().err
    page = Page((run.path / "report.html").read_text())
    assert ("role", "alert") in page.attributes
    assert "2 trials are missing" in page.text
    for text in (said, page.text):
        assert "2 files of requests are gone from the run" in text and gone[0].name in text
    assert (run.path / "table.md").read_text() == table_before


def test_a_run_without_a_single_trial_still_reports(tmp_path: Path) -> None:
    """Killed at once: the page says that nothing was measured and that the run is not finished."""
    plan = store.Plan(topology=synthetic.topology(), seed=1, block_order=(), runtime="netns", link_kind="wire")
    with store.Run.create(tmp_path, synthetic.experiment(("none",)), plan, started="2026-01-02T03:04:05Z") as run:
        pass
    text = Page(report.build(run.path).read_text()).text

    assert "Nothing was measured" in text and "not finished" in text


def test_bars_begin_at_zero_and_are_as_long_as_their_values() -> None:
    """Twice the value is twice the length; the axis has no hidden start."""
    svg = plots.bars(
        [plots.BarRow(label="a", parts={"x": 10.0}), plots.BarRow(label="b", parts={"x": 20.0})],
        names=["x"], unit="ms", title="t",
    )  # fmt: skip
    (x1, w1), (x2, w2) = re.findall(r'<rect class="s0" x="([\d.]+)" y="\d+" width="([\d.]+)"', svg)

    assert float(x1) == float(x2) == plots.LEFT
    assert float(w2) == pytest.approx(2 * float(w1), abs=0.2)


class TestDrawnProxies:
    """Where a plane's proxies stand in the picture of its topology."""

    def drawn(self, *proxies: dict[str, str]) -> str:
        return drawing.draw(store.as_json(synthetic.topology()), [], title="plane x", proxies=proxies)

    def test_a_waypoint_has_a_box_in_its_node(self) -> None:
        """It is a workload of its own, and has a wire of its own to be judged."""
        bare = self.drawn()
        page = self.drawn({"name": "waypoint.w", "role": "waypoint", "node": "node-c", "sandbox": "w"})

        assert page.count('class="workload own"') == 1 and ">w</text>" in page
        assert page.count('class="workload"') == bare.count('class="workload"') == 4

    def test_sidecars_and_ztunnels_are_words_beside_whom_they_serve(self) -> None:
        """They stand in another's sandbox."""
        page = self.drawn(
            {"name": "sidecar.cart", "role": "sidecar", "node": "node-b", "sandbox": "cart"},
            {"name": "ztunnel.node-a", "role": "ztunnel", "node": "node-a", "sandbox": "node-a"},
        )

        assert page.count(">sidecar</text>") == page.count(">ztunnel</text>") == 1
        assert "workload own" not in page

    def test_a_waypoint_bears_the_padlock_of_its_own_wire(self) -> None:
        """Both legs end there."""
        proof = Finding(
            id="packets.x/client>w/node-c:w-w/hidden", plane="x", segment="veth of w (node-c:w-w)", statement="",
            result=Result.HOLDS, evidence="",
        )  # fmt: skip
        waypoint = {"name": "waypoint.w", "role": "waypoint", "node": "node-c", "sandbox": "w"}
        page = drawing.draw(store.as_json(synthetic.topology()), [proof], title="plane x", proxies=[waypoint])

        assert page.count('class="lock closed"') == 1


def test_the_verdict_stands_before_every_figure(built: tuple[store.Run, str]) -> None:
    """Whether the run counts, first of all; then what the figures are."""
    text = Page(built[1]).text
    found = built[0].findings()
    without = sum(f.result is Result.NO_EVIDENCE for f in found)

    assert f"14 of 15 trials count; of {len(found)} findings none broken, {without} without evidence." in text
    assert text.index("trials count") < text.index("Latency, from the intended send time")


def test_percentiles_are_drawn_by_nines_as_far_as_there_are_requests() -> None:
    """No curve goes where a handful of requests is all there is."""
    many, few = [float(n) for n in range(20_000)], [float(n) for n in range(300)]
    drawn = plots.quantiles({"many": many, "few": few}, unit="ms", title="t")

    assert all(f">{nine} %<" in drawn for nine in ("50", "90", "99", "99.9")) and ">99.99 %<" not in drawn
    assert ">99.9 %<" not in plots.quantiles({"few": few}, unit="ms", title="t")
    assert plots.quantiles({"none": [1.0] * 9}, unit="ms", title="t") == ""


def test_a_plane_has_its_colour_whoever_else_is_there() -> None:
    """The same line with and without a twin of the baseline."""
    names = ["none", "none (A/A)", "sidecar"]
    values = [float(n) for n in range(50)]

    for series in ({"none": values, "sidecar": values}, {"sidecar": values}):
        drawn = plots.curves(series, names=names, unit="ms", title="t")
        assert 's2 curve"' in drawn and 'class="k2"></i>sidecar' in drawn and 'class="k1"' not in drawn
