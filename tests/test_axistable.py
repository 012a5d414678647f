"""Tables and plots of sweeps: what each kind of run shows, and that a picture says what the figures say."""

from __future__ import annotations

import math
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import pairwise

from experiments.footprint import EXPERIMENT as FOOTPRINT
from experiments.neighbour import EXPERIMENT as NEIGHBOUR
from experiments.policies import EXPERIMENT as POLICIES
from experiments.rate import EXPERIMENT as RATE
from testbed import axisplots, axistable
from testbed.axis import FIGURES, Sweep
from testbed.model.experiment import Measurement
from testbed.stats import Interval
from testbed.table import Block
from tests.swept import rows, sweep
from tests.test_axis import PLACEMENT, THIRD, neighbours, placement
from tests.test_axisclaims import PER_NODE, placed, standing


def texts(block: Block | None) -> list[list[str]]:
    assert block is not None
    return [[" ".join(cell.lines) for cell in row] for row in block.rows]


def test_break_even_is_told_for_each_place_of_the_waypoint() -> None:
    """Beside the server the lines do not meet; in the third place they do."""
    found = {row[0]: row[3] for row in texts(axistable.break_evens(sweep(PLACEMENT, placed(2.0))))}

    assert re.match(r"(1\.9|2\.0)\d \[", found[f"{THIRD} − sidecar"])
    assert "parallel" in found["ambient:waypoint_node=node-b − sidecar"]


def test_a_crossing_that_nobody_measured_is_told_as_such() -> None:
    """Beyond the farthest place a straight line is a guess; before the nearest there is none."""
    far, never = (axistable.break_evens(sweep(PLACEMENT, placed(saved))) for saved in (40.0, -2.0))

    assert "beyond what was measured (16.0)" in texts(far)[-1][3]
    assert texts(never)[-1][3] == "none: it costs more at any distance"
    few = axistable.break_evens(sweep(PLACEMENT, placed(2.0, rounds=2)))
    assert texts(few)[-1][3] == "not told by so few rounds"


def test_slopes_are_by_plane_and_line() -> None:
    """A sidecar's 40 MiB for each one more on both nodes; what has no interval says so."""
    found = {row[0]: row[1] for row in texts(axistable.slopes(sweep(FOOTPRINT, standing(PER_NODE))))}

    assert found["sidecar, services of one workload"].startswith("+40.")
    assert found["ambient, replicas of 2 services"].startswith("+0.")
    one = axistable.slopes(sweep(FOOTPRINT, standing(PER_NODE, rounds=1)))
    assert texts(one)[0][1].endswith("[–]")


def test_a_victim_is_compared_with_itself_alone_and_beside_a_neighbour_elsewhere() -> None:
    """Three sentences: elsewhere to alone, here to alone, here to elsewhere."""
    found = {row[0]: row[1] for row in texts(axistable.beside(sweep(NEIGHBOUR, neighbours({"sidecar": 3.0}))))}

    assert found["on other nodes to alone"].startswith("× 2.00")
    assert found["on the same nodes to alone"].startswith("× 6.00")
    assert found["on the same nodes to on other nodes"].startswith("× 3.00")


def test_an_interval_that_is_none_is_not_printed() -> None:
    """Of two rounds, or of four that agree so closely that a resample of them has no spread to measure by."""
    assert axistable.spanned(Interval(low=-math.inf, estimate=2.0, high=math.inf, rounds=2)) == "2.00 [–]"
    assert axistable.spanned(Interval(low=1e-9, estimate=2.0, high=1e40, rounds=4)) == "2.00 [–]"
    assert axistable.spanned(Interval(low=1.0, estimate=2.0, high=3.0, rounds=6)) == "2.00 [1.00, 3.00]"


def policies(added: float, noise: float = 0.02) -> Sweep:
    def value(_plane: str, cell: str, _metric: str) -> float:
        return 5.0 + (added if cell == "10,000 policies" else 0.0)

    return sweep(POLICIES, rows(POLICIES, value, planes=("ambient-l4",), metrics=("latency_p50",), noise=noise))


def test_policies_are_compared_with_both_halves_of_none() -> None:
    """What is claimed is beyond the pair's own distance; what is not is pale."""
    block = axistable.against_first(policies(added=5.0))
    assert block is not None
    cells = {row[0].lines[0]: row[1] for row in block.rows}

    assert "+100" in cells["10,000 policies"].lines[0] and cells["10,000 policies"].tone == ""
    assert cells["10 policies"].tone == "weak"
    assert "0 policies (A/A)" not in cells


def test_a_run_has_the_blocks_that_its_cells_give() -> None:
    """By what was measured, not by its name."""
    titles = [block.title for block in axistable.derived(sweep(NEIGHBOUR, neighbours({"sidecar": 1.0})))]

    assert len(titles) == 1 and "beside a neighbour" in titles[0]
    assert axistable.derived(sweep(replace(RATE, cells=RATE.cells[:1]), [])) == []


# -- plots


def drawn(page: str) -> ET.Element:
    """As a browser would read it: well formed, whatever names are in it."""
    return ET.fromstring(f"<main>{page}</main>")


def points(page: str, series: int) -> list[tuple[float, float]]:
    found = re.search(rf'<polyline class="s{series} curve" points="([^"]+)"', page)
    assert found is not None
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


def test_a_line_is_where_its_values_are() -> None:
    """Twice as far across, as high as the value: p50 of 3.5, 7 and 19 ms at 0.5, 4 and 16 ms of RTT."""
    page = axisplots.over_axis(placement(noise=0.0), "latency_p50")
    drawn(page)
    (x1, y1), (x2, y2), (x3, y3) = points(page, 2)

    assert math.isclose((x3 - x2) / (x2 - x1), 12 / 3.5, rel_tol=0.01)
    assert math.isclose((y1 - y2) / (y2 - y3), 3.5 / 12, rel_tol=0.02)


def test_every_point_has_its_interval_and_its_words() -> None:
    """Three places, two planes; the tip says plane, cell, value and interval."""
    page = axisplots.over_axis(placement(), "latency_p50")

    assert page.count("whisker") == page.count("<circle") == 6
    assert re.search(r"<title>sidecar, RTT 4 ms: [67]\.\d+ \[[67]\.\d+, [67]\.\d+\] ms</title>", page)


def test_the_break_even_point_is_marked_where_it_is() -> None:
    """Between its neighbours on the axis, with its band; none is drawn where none was seen."""
    page = axisplots.differences(sweep(PLACEMENT, placed(2.0)))
    (mark,) = re.findall(r'class="s\d mark" x1="([\d.]+)"', page)
    line = points(page, 4)

    assert line[0][0] < float(mark) < line[1][0] and page.count('band"') == 1
    assert "break-even of ambient:waypoint_node=node-c" in page
    assert "mark" not in axisplots.differences(sweep(PLACEMENT, placed(40.0)))


def test_latency_goes_over_the_throughput_that_was_reached() -> None:
    """Not over what was asked: a plane that fell behind stands where it really was."""

    def value(plane: str, cell: str, metric: str) -> float:
        asked = next(c.at or 0.0 for c in RATE.cells if c.name == cell)
        return (asked / 2 if plane == "sidecar" else asked) if metric == "rate_achieved" else 3.0

    made = rows(RATE, value, planes=("none", "sidecar"), metrics=("latency_p50", "rate_achieved"), noise=0.0)
    lines = {line.label: line for line in axisplots.lines_of(sweep(RATE, made), "latency_p50")}

    assert [dot.at for dot in lines["none, 8 connections"].dots] == [50, 200, 400]
    assert [dot.at for dot in lines["sidecar, 8 connections"].dots] == [25, 100, 200]


def test_a_wide_interval_does_not_flatten_the_others() -> None:
    """It is cut at the edge of the picture, and told in full in its tip."""
    wide, plain = axisplots.Dot(at=1, value=2.0, low=-900, high=900), axisplots.Dot(at=2, value=4.0)
    page = axisplots.chart(
        [axisplots.Line(label="a", series=2, dots=(wide, plain))], title="t", across="x", unit="ms"
    )
    (_, y1), (_, y2) = points(page, 2)

    assert y1 - y2 > 20 and "[−900, 900]" in page


def test_nothing_stands_before_the_least_of_a_logarithmic_axis() -> None:
    """Zero policies are a decade before ten, and every decade is as long as the next."""
    page = axisplots.over_axis(policies(added=1.0), "latency_p50")
    first, *rest = [x for x, _ in points(page, 2)]

    assert first == 66 + 12
    assert max(abs((b - a) - (rest[0] - first)) for a, b in pairwise(rest)) < 0.2


def test_kinds_are_rows_of_dots() -> None:
    """A neighbour is no place on an axis."""
    page = axisplots.page(sweep(NEIGHBOUR, neighbours({"sidecar": 1.5}, noise=0.1)))
    drawn(page)

    assert "on the same nodes, sidecar" in page and "polyline" not in page


def test_names_of_strangers_are_escaped_and_nothing_measured_is_said() -> None:
    """A cell may be called anything."""
    odd = replace(PLACEMENT, cells=tuple(replace(c, name=f"<b>{c.name}&") for c in PLACEMENT.cells))
    made = rows(odd, lambda *_: 1.0, planes=("sidecar",), metrics=("latency_p50",))
    page = axisplots.page(sweep(odd, made))
    drawn(page.replace("<p class=dim>", "<p>"))

    assert "<b>" not in page
    assert "Nothing was measured" in axisplots.page(sweep(PLACEMENT, []))


def test_every_metric_of_an_experiment_is_a_known_figure() -> None:
    """Else its table and plots would fail at the end of an hour."""
    for experiment in (FOOTPRINT, NEIGHBOUR, PLACEMENT, POLICIES, RATE):
        assert set(experiment.axis.metrics) <= set(FIGURES)


def test_trials_that_do_not_count_are_in_no_picture() -> None:
    """As in every table."""
    made: list[Measurement] = neighbours({"sidecar": 1.0})
    void = [replace(m, valid=False, reason="late") for m in made]

    assert "Nothing was measured" in axisplots.page(sweep(NEIGHBOUR, void))
