"""One plane on two runtimes, beside each other."""

from __future__ import annotations

from testbed import parity, table
from testbed.model.experiment import Finding, Measurement, Result

EMPTY = table.Table(blocks=(table.Block(title="first", head=(), rows=()),), notes=())


def rows(plane: str, factor: float) -> list[Measurement]:
    values = (("client", "latency_p50", 2.0), ("client", "latency_p99", 4.0), ("sidecar.x", "cpu_per_1000_requests", 9))
    return [
        Measurement(
            round=n, trial=f"{n}-{plane}", block=n, plane=plane, component=component, metric=metric, unit="ms",
            value=value * factor * (1 + n / 1000),
        )
        for n in range(1, 7)
        for component, metric, value in values
    ]  # fmt: skip


def finding(plane: str, id_: str, result: Result = Result.HOLDS) -> Finding:
    return Finding(id=id_, plane=plane, segment="wire", statement="", result=result, evidence="")


def summary(factor: float) -> table.Summary:
    return table.summarise(
        [*rows("none", 1), *rows("none (A/A)", 1.01), *rows("sidecar", 3), *rows("sidecar@docker", 3 * factor)]
    )


def test_a_plane_is_beside_itself_on_the_other_runtime() -> None:
    """Not beside `none`; a plane that only one runtime had is in no pair."""
    assert parity.pairs(["none", "sidecar", "sidecar@docker", "ambient@docker"]) == [("sidecar", "sidecar@docker")]

    found = parity.effect(summary(1.2), "sidecar", "sidecar@docker", "latency_p50", "client")

    assert found is not None and abs(found.ratio.estimate - 1.2) < 1e-9
    assert found.claimed and found.resolution is not None


def test_less_than_the_pair_shows_by_chance_is_not_claimed() -> None:
    """Half a per cent, where two labs of `none` differ by one."""
    built = parity.with_parity(EMPTY, summary(1.005), [])

    assert built.blocks[1].rows[0][2].tone == "weak"
    assert any("below the resolution" in note for note in built.notes)


def test_findings_are_compared_one_by_one() -> None:
    """Another result, one that is missing: each is named; the same findings are counted."""
    same = [finding(p, id_) for p in ("sidecar", "sidecar@docker") for id_ in ("a", f"packets.{p}/hidden")]
    more = [*same, finding("sidecar", "c"), finding("sidecar@docker", "c", Result.BROKEN), finding("sidecar", "d")]

    assert parity.differing(same, "sidecar", "sidecar@docker") == []
    assert parity.differing(more, "sidecar", "sidecar@docker") == ["c wire: holds, broken", "d wire: holds, none"]
    assert parity.with_parity(EMPTY, summary(1), same).blocks[1].rows[0][1].lines == ("2 the same",)
    assert parity.with_parity(EMPTY, summary(1), more).blocks[1].rows[0][1].tone == "bad"


def test_a_run_on_one_runtime_has_no_such_block() -> None:
    """Its table stays as it was."""
    assert parity.with_parity(EMPTY, table.summarise([*rows("none", 1), *rows("sidecar", 3)]), []) is EMPTY
