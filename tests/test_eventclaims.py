"""Verdicts on what events did, from measurements made by hand; each can come out otherwise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from testbed import axisclaims, eventtable
from testbed.claimlist import CLAIMS
from testbed.claims import Verdict
from testbed.eventclaims import CRASH, JUDGES, KILL, MIXED, TO_L4, TO_L7, UPGRADE
from testbed.eventseen import EVENT, seen
from testbed.model.experiment import Finding, Measurement, Result

SHORT = ("client → server, short", "client → ledger, short", "client → home, short")
HELD = "client → server, held"


def trial(
    plane: str, cell: str, round_number: int, hit: Iterable[str] = (), *, behind: Iterable[str] = (), broken: int = 0,
    restarted: int = 0, refused: bool | None = None, valid: bool = True, failed: int = 5,
) -> list[Measurement]:  # fmt: skip
    """Each stream of `hit` lost some requests, `broken` held connections broke, `refused` is what became of `other`."""
    hit, behind, rows = set(hit), set(behind), []
    streams = [*SHORT, HELD, *([] if refused is None else ["other → server, short"])]
    for number, name in enumerate(streams):
        lost = 20.0 if refused and name.startswith("other") else float(failed if name in hit else 0)
        values = {
            "first_connection": number * 1000.0, "requests_since": 40.0, "failed": lost, "failed_before": 0.0,
            "longest_gap": 1.2 if lost else 0.06, "recovery": 1.0 if lost else 0.0, "recovered": 1.0,
            "last_success": 0.02, "first_failure": 0.05 if lost else math.nan, "behind_struck": float(name in behind),
            "meant_to_fail": float(name.startswith("other")),
        }  # fmt: skip
        if name == HELD:
            values |= {"connections_held": 3.0, "connections_broken": float(broken), "connections_moved": 0.0}
        rows += [(name, metric, value) for metric, value in values.items()]
    rows += [(EVENT, "components", 1.0), (EVENT, "workloads_restarted", float(restarted)), (EVENT, "lasted", 0.8)]
    return [
        Measurement(
            round=round_number, trial=f"r{round_number}-{plane}, {cell}", block=round_number, plane=plane, cell=cell,
            component=component, metric=metric, unit="", value=value, valid=valid, reason="" if valid else "late",
        )
        for component, metric, value in rows
    ]  # fmt: skip


def rounds(plane: str, cell: str, *args: Iterable[str], count: int = 3, **more: object) -> list[Measurement]:
    return [m for n in range(1, count + 1) for m in trial(plane, cell, n, *args, **more)]  # type: ignore[arg-type]


def verdict(id_: str, measurements: list[Measurement], findings: tuple[Finding, ...] = ()) -> Verdict:
    return JUDGES[id_](CLAIMS[id_], measurements, findings).verdict


NODE = SHORT[:2]


def test_a_killed_agent_that_touches_all_of_its_node_confirms_shared_fate() -> None:
    """And its sidecar peer its own workload only."""
    alone = rounds("sidecar", KILL, SHORT[:1], behind=SHORT[:1])

    assert verdict("shared-l4-shared-fate", alone + rounds("ambient", KILL, NODE, behind=NODE)) is Verdict.CONFIRMED
    assert verdict("shared-l4-shared-fate", alone + rounds("ambient", KILL, NODE[:1], behind=NODE)) is Verdict.REFUTED
    some = rounds("ambient", KILL, NODE, behind=NODE, count=2) + trial("ambient", KILL, 3, NODE[:1], behind=NODE)
    assert verdict("shared-l4-shared-fate", alone + some) is Verdict.UNDECIDED


def test_too_few_rounds_decide_nothing_and_none_are_no_evidence() -> None:
    """Trials that do not count are not rounds."""
    alone = rounds("sidecar", KILL, SHORT[:1], behind=SHORT[:1])
    few = rounds("ambient", KILL, NODE, behind=NODE, count=2) + trial("ambient", KILL, 3, NODE, valid=False)

    assert verdict("shared-l4-shared-fate", alone + few) is Verdict.UNDECIDED
    assert verdict("shared-l4-shared-fate", alone) is Verdict.NO_EVIDENCE
    for id_ in JUDGES:
        assert verdict(id_, []) is Verdict.NO_EVIDENCE


def test_an_upgrade_without_a_restart_that_loses_less_confirms() -> None:
    """With a restart it refutes; losing as much, or more of another kind, decides nothing."""
    sidecar = rounds("sidecar", UPGRADE, SHORT[:1], broken=3, restarted=1)

    assert verdict("upgrade-restarts-pods", sidecar + rounds("ambient", UPGRADE)) is Verdict.CONFIRMED
    assert verdict("upgrade-restarts-pods", sidecar + rounds("ambient", UPGRADE, restarted=1)) is Verdict.REFUTED
    as_much = sidecar + rounds("ambient", UPGRADE, SHORT[:1])
    assert verdict("upgrade-restarts-pods", as_much) is Verdict.UNDECIDED
    breaks_more = rounds("sidecar", UPGRADE, SHORT[:1], restarted=1) + rounds("ambient", UPGRADE, broken=2)
    assert verdict("upgrade-restarts-pods", breaks_more) is Verdict.UNDECIDED


def test_a_crash_is_contained_when_it_takes_only_what_the_waypoint_serves() -> None:
    """Beyond it, or tenants of a node's proxy that live on, refute."""
    node = rounds("node-l7", CRASH, NODE, behind=NODE)
    own = rounds("ambient", CRASH, NODE[:1], behind=NODE[:1])

    assert verdict("plugin-crash-contained", node + own) is Verdict.CONFIRMED
    beyond = rounds("ambient", CRASH, NODE, behind=NODE[:1])
    assert verdict("plugin-crash-contained", node + beyond) is Verdict.REFUTED
    spared = rounds("node-l7", CRASH, NODE[:1], behind=NODE)
    assert verdict("plugin-crash-contained", spared + own) is Verdict.REFUTED


def test_joining_is_judged_by_restarts_losses_and_a_policy_that_shows_it() -> None:
    """Restarted: refuted. Connections broken, or not shown to be in the mesh: undecided."""
    assert verdict("join-without-restart", rounds("ambient-l4", "joins", refused=True)) is Verdict.CONFIRMED
    restarted = rounds("ambient-l4", "joins", refused=True, restarted=1)
    assert verdict("join-without-restart", restarted) is Verdict.REFUTED
    assert verdict("join-without-restart", rounds("ambient-l4", "joins", refused=True, broken=3)) is Verdict.UNDECIDED
    assert verdict("join-without-restart", rounds("ambient-l4", "joins", refused=False)) is Verdict.UNDECIDED


def test_steps_into_ambient_are_judged_together() -> None:
    """The second must be enforced."""
    first = rounds("ambient", TO_L4, refused=False)

    assert verdict("gradual", first + rounds("ambient", TO_L7, refused=True)) is Verdict.CONFIRMED
    assert verdict("gradual", first + rounds("ambient", TO_L7, refused=False)) is Verdict.UNDECIDED
    assert verdict("gradual", first + rounds("ambient", TO_L7, refused=True, restarted=1)) is Verdict.REFUTED
    assert verdict("gradual", first + rounds("ambient", TO_L7, SHORT[:1], refused=True)) is Verdict.UNDECIDED


def test_kinds_that_talk_to_each_other_take_packets_too() -> None:
    """A finding that is broken refutes; no packets decide nothing."""

    def finding(result: Result) -> Finding:
        return Finding(
            id="packets.hybrid/client>server/wire/tls", plane="hybrid", segment="wire", statement="TLS 1.3",
            result=result, evidence="a.pcapng",
        )  # fmt: skip

    both = rounds("hybrid", MIXED[0], refused=False) + rounds("hybrid", MIXED[1], refused=False)

    assert verdict("interop", both, (finding(Result.HOLDS),)) is Verdict.CONFIRMED
    assert verdict("interop", both) is Verdict.UNDECIDED
    assert verdict("interop", both, (finding(Result.BROKEN),)) is Verdict.REFUTED


def test_a_stream_is_touched_by_more_than_it_fails_anyway() -> None:
    """One request fails in each round, before the event as after it."""
    rows = rounds("ambient", KILL, SHORT[:1], failed=1)
    noisy = [
        Measurement(**{**{f: getattr(m, f) for f in m.__dataclass_fields__}, "value": 1.0})
        if (m.component, m.metric) == (SHORT[0], "failed_before")
        else m
        for m in rows
    ]

    assert seen(rows).touched("ambient", KILL, SHORT[0]) is True
    assert seen(noisy).touched("ambient", KILL, SHORT[0]) is False


def test_the_judges_are_found_by_the_names_of_their_claims() -> None:
    """Through the list of all judges, with all cells' measurements."""
    rows = rounds("ambient-l4", "joins", refused=True)
    info = {"plan": {"experiment": {"planes": ["ambient-l4"], "cells": [], "target": "server"}}}
    (one,) = axisclaims.judge(["join-without-restart"], info, rows, [])

    assert one.verdict is Verdict.CONFIRMED
    assert set(JUDGES) <= set(CLAIMS)


def test_the_table_says_who_was_hit_and_what_was_left_out() -> None:
    """A row an event; trials that do not count have their reason in a note."""
    rows = rounds("ambient", KILL, NODE, broken=2) + trial("ambient", KILL, 4, valid=False)
    info = {"plan": {"experiment": {"planes": ["sidecar", "ambient"], "cells": [{"name": KILL}]}}}
    made = eventtable.table_of(info, rows, [])
    by_title = {block.title: block for block in made.blocks}

    (event,) = next(block for title, block in by_title.items() if title.startswith("What happened")).rows
    assert event[1].lines == ("–",)
    assert event[2].lines[0] == "hit: client → server; client → ledger"
    streams = {row[0].lines[0]: row[1].lines for row in by_title[KILL].rows}
    assert streams[SHORT[0]] == ("failed 5 of 40", "gap 1.20 s", "recovered after 1.00 s")
    assert streams[HELD] == ("failed 0 of 40", "3 held: 2 broken, 0 moved")
    (left,) = by_title["Trials that count"].rows
    assert left[2].lines == ("3 of 4",) and made.notes[left[2].note - 1].endswith("left out: late")


def test_instants_of_an_event_stand_with_what_failed_by_them() -> None:
    """Only of kinds that have some; a stream that had not begun by the window's end has nothing to say."""
    cell, late = "no CA", "client → second, short from 9 s"
    rows = rounds("ambient", cell, NODE[:1], count=1)
    told = [("certificates_ended", EVENT, 4.0), ("ca_back", EVENT, 6.8), ("requests_since", late, 0.0)]
    rows += [dataclasses.replace(rows[0], component=who, metric=metric, value=value) for metric, who, value in told]
    rows.append(dataclasses.replace(rows[-1], metric="failed"))
    info = {"plan": {"experiment": {"planes": ["ambient"], "cells": [{"name": cell}]}}}
    blocks = {block.title: block for block in eventtable.table_of(info, rows, []).blocks}

    (event,) = next(block for title, block in blocks.items() if title.startswith("What happened")).rows
    assert event[1].lines[-2:] == ("certificates ended after 4.0 s", "the CA back after 6.8 s")
    streams = {row[0].lines[0]: row[1].lines for row in blocks[cell].rows}
    assert streams[SHORT[0]][1] == "gap 1.20 s; first failed after 0.05 s"
    assert streams[late] == ("–",)
