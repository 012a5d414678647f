"""The table of a run: known answers, missing things, and hostile names."""

from __future__ import annotations

import re

import pytest

from testbed import stats, table, typeset
from testbed.model.experiment import DOCUMENTED, Finding, Measurement, Result
from tests import synthetic
from tests.synthetic import row


def latencies(values: dict[str, list[float]], **other: object) -> list[Measurement]:
    return [row(p, r, "latency_p50", v, **other) for p, vs in values.items() for r, v in enumerate(vs, 1)]


def cell(built: table.Table, block: int, plane: str, column: str) -> table.Cell:
    chosen = built.blocks[block]
    return next(r for r in chosen.rows if r[0].lines == (plane,))[chosen.head.index(column)]


def finding(value: str, segment: str = "a--b", result: Result = Result.HOLDS, **other: str) -> Finding:
    values = {"id": "boundary.l4-denied", "plane": "p", "statement": "refused", "evidence": "probe"} | other
    return Finding(segment=segment, result=result, value=value, **values)


def test_added_latency_is_the_trimmed_mean_of_paired_differences() -> None:
    """Rounds differ by far more than the planes; only pairing by round finds the difference of exactly 1 ms."""
    summary = table.summarise(latencies({"x": [6, 11, 21, 101, 3], "none": [5, 10, 20, 100, 2]}))
    added = summary.added("x", "latency_p50")

    assert added is not None
    assert (added.value, added.low, added.high) == (1.0, 1.0, 1.0)
    assert added.per_round == {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0, 5: 1.0}
    assert summary.planes == ("none", "x")
    assert summary.median("x", "latency_p50") == 11


def test_the_interval_is_that_of_claims() -> None:
    """Around the trimmed mean, and the rounds' own range where they are too few for a claim."""
    differences = [1.0, 2.0, 3.0, 4.0, 5.0]
    added = table.summarise(latencies({"none": [0] * 5, "x": differences})).added("x", "latency_p50")
    found = stats.block_interval(differences)

    assert added is not None and (added.value, added.low, added.high) == (3.0, found.low, found.high)
    assert (added.low, added.high) == (1.0, 5.0)


@pytest.mark.parametrize(("rounds", "said"), [(2, ""), (3, "once in 4"), (5, "once in 16"), (6, "")])
def test_few_rounds_say_that_they_carry_no_claim(rounds: int, said: str) -> None:
    """Three rounds cannot carry 95 %, whatever the head of the column says."""
    built = table.build(table.summarise(latencies({"none": [1.0] * rounds, "x": [2.0] * rounds})), [])

    notes = [n for n in built.notes if "a claim takes 6" in n]
    assert bool(notes) == bool(said)
    if said:
        assert said in notes[0]
        assert built.blocks[0].rows[1][0].note == built.notes.index(notes[0]) + 1
        assert built.blocks[0].rows[0][0].note is None


def test_a_trial_with_one_invalid_row_is_left_out_whole_and_counted() -> None:
    """Its latency does not count, its partner of the round is not compared, and the reason is printed."""
    rows = latencies({"none": [1, 1, 1, 1], "x": [2, 2, 2, 99]})
    rows.append(row("x", 4, "send_lag_p99", 9.0, valid=False, reason="send lag"))
    summary = table.summarise(rows)
    built = table.build(summary, [])

    assert summary.left_out == {"none": {}, "x": {"send lag": 1}}
    assert summary.rounds("x", "latency_p50") == {1: 2, 2: 2, 3: 2}
    shown = cell(built, 0, "x", "trials")
    assert shown.lines == ("3 of 4",) and built.notes[shown.note - 1] == "x, left out: 1 × send lag"


def test_cpu_of_proxies_is_summed_per_trial_without_client_app_and_wire() -> None:
    """Two ztunnels of 30 and 20 ms are 50 ms of proxies; the client's and the wire's cost is not the plane's."""
    rows = latencies({"none": [1], "x": [2]})
    for component, value in {"ztunnel.a": 30, "ztunnel.b": 20, "client": 500, "app": 70, "wire": 9}.items():
        rows.append(row("x", 1, "cpu_per_1000_requests", value, component))
    built = table.build(table.summarise(rows), [])

    assert cell(built, 1, "x", "CPU: proxies").lines == ("50.0",)
    assert cell(built, 1, "x", "CPU: client").lines == ("500",)
    assert "CPU: ztunnel" not in built.blocks[1].head  # it would say the same again


def test_kinds_of_proxies_have_columns_where_there_are_several() -> None:
    """A real Envoy in a role stands in the column of that role."""
    rows = latencies({"none": [1], "x": [2], "y": [2]})
    for component, value in {"sidecar.a": 30, "envoy-waypoint.w": 20, "envoy.b": 7}.items():
        rows += [row("x", 1, "cpu_per_1000_requests", value, component), row("x", 1, "memory_pss", value, component)]
    built = table.build(table.summarise(rows), [])

    assert built.blocks[1].head == (
        "plane", "CPU: proxies", "CPU: sidecar", "CPU: waypoint", "CPU: ztunnel",
        "PSS: proxies", "PSS: sidecar", "PSS: waypoint", "PSS: ztunnel",
    )  # fmt: skip
    assert cell(built, 1, "x", "CPU: proxies").lines == ("57.0",)


def test_a_pass_that_is_documented_is_noted() -> None:
    """`passed` where policy says otherwise would else look like an error, or like nothing."""
    surprising = finding("passed (200)", statement=f"GET /secret passes{DOCUMENTED}nobody reads HTTP")
    built = table.build(table.summarise([]), [surprising])
    shown = next(r for r in built.blocks[-1].rows if r[0].lines == ("denied by L4 policy",))[1]

    assert shown.lines == ("passed (200)",) and built.notes[shown.note - 1] == "as documented: nobody reads HTTP"


def test_what_was_not_measured_is_a_dash_with_a_note() -> None:
    """No number is invented: not for a missing metric, a missing partner, or too few rounds for an interval."""
    rows = [*latencies({"none": [1]}), row("x", 2, "latency_p50", 2.0)]
    built = table.build(table.summarise(rows), [])

    p99 = cell(built, 0, "x", "p99 ms")
    assert p99.lines == ("–",) and built.notes[p99.note - 1] == "x: latency_p99 was not measured"
    added = cell(built, 0, "x", "added p50 ms [95 %]")
    assert added.lines == ("–",) and "no round in which both" in built.notes[added.note - 1]
    few = table.build(table.summarise(latencies({"none": [1, 1], "x": [2, 2]})), [])
    assert cell(few, 0, "x", "added p50 ms [95 %]").lines == ("+1.00 [–] n=2",)


def test_a_difference_within_the_aa_spread_is_not_claimed() -> None:
    """+0.2 ms is steady, but the A/A pair alone differs by 0.5: the table says that it cannot tell."""
    twin = [1.5, 0.6, 1.4, 0.7, 1.3, 0.8, 1.2, 0.9]
    rows = latencies({"none": [1] * 8, "none (A/A)": twin, "x": [1.2] * 8, "y": [3.0] * 8})
    built = table.build(table.summarise(rows), [])

    small, large = (cell(built, 0, p, "added p50 ms [95 %]") for p in "xy")
    assert small.tone == "weak" and "not told apart" in built.notes[small.note - 1]
    assert large.tone == "" and large.lines == ("+2.00 [+2.00, +2.00]",)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        *[(0.01234, "0.012"), (1.239, "1.24"), (12.36, "12.4"), (123.6, "124"), (9.999, "10.0"), (-0.0001, "0.000")],
        *[(-2.5, "−2.50"), (99.97, "100"), (123456.7, "123457")],
    ],
)
def test_numbers_carry_three_digits(value: float, text: str) -> None:
    """Three significant digits, no exponent, no negative zero."""
    assert table.digits(value) == text


def test_a_broken_boundary_is_shouted_and_explained() -> None:
    """One broken segment among many leads its cell; the note says which statement broke."""
    found = [finding("refused", f"s{i}") for i in range(3)] + [finding("allowed", "bad", Result.BROKEN)]
    built = table.build(table.summarise(latencies({"p": [1]})), found)
    shown = next(r for r in built.blocks[-1].rows if r[0].lines == ("denied by L4 policy",))[1]

    assert shown.lines == ("BROKEN: bad: allowed", "3 places: refused")
    assert shown.tone == "bad" and built.notes[shown.note - 1] == "broken under p: refused"


def test_no_evidence_is_neither_held_nor_missing() -> None:
    """A boundary tried without outcome shows a question mark and why; one not tried shows a dash."""
    built = table.build(table.summarise([]), [finding("", result=Result.NO_EVIDENCE, evidence="capture was empty")])
    by_label = {r[0].lines[0]: r[1] for r in built.blocks[-1].rows}

    assert by_label["denied by L4 policy"].lines == ("? without evidence",)
    assert built.notes[by_label["denied by L4 policy"].note - 1] == "no evidence: capture was empty"
    assert by_label["identities held"].lines == ("–",)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_the_terminal_table_fits_its_width(width: int) -> None:
    """Five planes fit in what a terminal has; columns line up because every row of a block ends within the rule."""
    planes = (*synthetic.PLANES, "ambient-waypoint", "sidecar")
    rows = [m for t in synthetic.measurements(planes) for m in t]
    text = typeset.as_text(table.build(table.summarise(rows), synthetic.findings(planes)), width=width)

    assert max(map(len, text.splitlines())) <= width
    assert all(f"\n{plane} " in text for plane in planes)
    assert "\x1b" not in text


def test_a_plane_with_options_stands_on_two_lines() -> None:
    """Its whole name is too wide for a column among five."""
    block = table.Block(
        title="t",
        head=("", "hybrid:listens_hbone=yes"),
        rows=((table.Cell(lines=("a",)), table.Cell(lines=("b",))),),
        numeric=False,
    )
    text = typeset.as_text(table.Table(blocks=(block,), notes=()))

    assert [line.strip() for line in text.splitlines()[1:3]] == ["hybrid:", "listens_hbone=yes"]


def test_colour_is_only_added_and_only_when_asked_for() -> None:
    """Stripped of escapes, the coloured table is the plain one."""
    built = table.build(table.summarise(latencies({"p": [1]})), [finding("allowed", result=Result.BROKEN)])
    coloured = typeset.as_text(built, colour=True)

    assert "\x1b[31m" in coloured
    strip = re.sub(r"\x1b\[\d+m", "", coloured)
    assert [line.rstrip() for line in strip.splitlines()] == typeset.as_text(built).splitlines()

    class Terminal:
        def isatty(self) -> bool:
            return True

    assert typeset.wants_colour(Terminal(), {})
    assert not typeset.wants_colour(Terminal(), {"NO_COLOR": "1"})
    assert not typeset.wants_colour(Terminal(), {"TERM": "dumb"})


def test_hostile_names_reach_neither_terminal_nor_markdown() -> None:
    """An escape sequence or a table bar in a plane's name is shown as text."""
    name = "x\x1b[2J|<b>`*"
    built = table.build(table.summarise(latencies({name: [1]})), [])

    assert "\x1b" not in typeset.as_text(built)
    lines = typeset.as_markdown(built).splitlines()
    assert any(line.startswith(r"| x \[2J\|&lt;b>\`\* |") for line in lines)


def test_an_empty_run_makes_an_empty_table() -> None:
    """Nothing measured, nothing shown, nothing raised."""
    assert typeset.as_text(table.build(table.summarise([]), [])).strip() == ""


def test_reasons_that_differ_in_figures_are_one() -> None:
    """A figure that is the same in all stays one figure; another shape is another reason."""
    reasons = {"late: send lag p99 6.90 ms": 1, "late: send lag p99 10.2 ms": 2, "link down": 1}

    assert table.ranged(reasons) == {"late: send lag p99 6.90 to 10.2 ms": 3, "link down": 1}
