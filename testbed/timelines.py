"""Every request of a trial with an event, drawn as it went: a line of ticks a stream, answered or not, and the event.

The first round's trials; figures over rounds stand in the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from testbed.errors import UsageError
from testbed.eventseen import EVENT, OF_STREAMS
from testbed.load.streamplan import CONNECTIONS_A_STREAM
from testbed.model.experiment import Measurement
from testbed.plots import LEFT, Axis, svg, text

if TYPE_CHECKING:
    from testbed.store import Run

ROW = 20
COLUMNS = ("sent_s", "last_byte_s", "status", "connection", "error")


def sections(run: Run, measurements: Sequence[Measurement]) -> list[str]:
    """HTML of one figure a cell and plane."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files, out = run.request_files(), []
    by_trial: dict[str, list[Measurement]] = {}
    for m in measurements:
        by_trial.setdefault(m.trial, []).append(m)
    first = min((m.round for m in measurements if m.valid), default=0)
    trials = [(rows[0].cell, rows[0].plane, trial) for trial, rows in by_trial.items() if rows[0].round == first]
    order = {cell["name"]: number for number, cell in enumerate(run.info["plan"]["experiment"]["cells"])}
    rank = {plane: number for number, plane in enumerate(run.info["plan"]["experiment"]["planes"])}
    for cell, plane, trial in sorted(trials, key=lambda found: (order.get(found[0], -1), rank.get(found[1], -1))):
        path = files.get(trial)
        if path is None or not path.exists() or not all(m.valid for m in by_trial[trial]):
            continue
        try:
            columns = pq.read_table(path, columns=list(COLUMNS))
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"{path}: does not read as requests ({error}); restore it from a copy") from error
        rows = list(zip(*(columns.column(name).to_pylist() for name in COLUMNS), strict=True))
        out.append(draw(rows, by_trial[trial], title=f"{cell}, {plane}, round {first}"))
    return out or ["<p class=dim>No trial that counts has its requests here.</p>"]


def draw(rows: Sequence[tuple[float, float, int, int, str]], measured: Sequence[Measurement], *, title: str) -> str:
    """Rows are (sent, last byte, status, connection, error); the event is at zero."""
    value: Mapping[tuple[str, str], float] = {(m.component, m.metric): m.value for m in measured}
    names = [m.component for m in measured if m.metric == OF_STREAMS]
    number = {int(value[name, "first_connection"]) // CONNECTIONS_A_STREAM: name for name in names}
    event_s = value.get((EVENT, "clock"), min((row[0] for row in rows), default=0.0))
    axis = Axis(
        min((row[0] - event_s for row in rows), default=0.0), max((row[1] - event_s for row in rows), default=1.0)
    )
    bottom = 12 + ROW * len(names)
    body = [axis.draw(bottom, "s from the event")]
    lasted = value.get((EVENT, "lasted"), 0.0)
    left, right = axis.x(0.0), axis.x(max(0.0, min(lasted, axis.high)))
    width = max(1.0, right - left)
    body.append(f'<rect class="struck" x="{left:.1f}" y="8" width="{width:.1f}" height="{bottom - 8}"/>')
    for index, name in sorted(number.items()):
        y = 12 + ROW * names.index(name)
        paths: dict[str, list[str]] = {"served": [], "lost": []}
        for sent_s, last_byte_s, status, connection, error in rows:
            if connection // CONNECTIONS_A_STREAM != index:
                continue
            start, end = axis.x(sent_s - event_s), axis.x(last_byte_s - event_s)
            if error or status != 200:
                paths["lost"].append(f"M{start:.1f} {y + 3}v10M{start:.1f} {y + 8}H{end:.1f}")
            else:
                paths["served"].append(f"M{start:.1f} {y + 5}v6")
        body.append(text(LEFT - 10, y + 12, name, "end"))
        body += [f'<path class="{kind}" d="{"".join(found)}"/>' for kind, found in paths.items() if found]
    return svg(bottom + 36, body, title)
