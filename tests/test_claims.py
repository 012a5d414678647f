"""Verdicts on the claims: what findings decide, what they leave open, and that silence is no evidence."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from testbed import claims, registry, runs, table
from testbed.claimlist import CLAIMS, SOURCES
from testbed.claims import Verdict
from testbed.errors import UsageError
from testbed.model.experiment import Finding, Measurement, Result
from testbed.store import Run
from tests.test_store import PLAN

MEASURED = Measurement(
    round=1, trial="t", block=1, plane="none", component="client", metric="latency_p50", unit="ms", value=1.0
)
FRAMES = ("alpn", "hbone")
EMPTY = table.summarise([MEASURED])


def found(check: str, result: Result = Result.HOLDS, plane: str = "ambient-l4") -> Finding:
    return Finding(
        id=f"packets.{plane}/client>server/node-a:w-client/{check}", plane=plane, segment="veth of client",
        statement=f"{check} as it should be", result=result, evidence="captures/x.pcapng",
    )  # fmt: skip


ALL = [found(check) for check in ("hidden", "delivered", "tls", "identity", "alpn", "hbone", "way")]


def verdict(id_: str, findings: list[Finding]) -> Verdict:
    (judged,) = claims.judge([id_], EMPTY, findings)
    return judged.verdict


class TestMtls:
    def test_it_is_confirmed_where_every_check_holds(self) -> None:
        """On every segment, with keys and without."""
        assert verdict("l4-suffices-for-mtls", ALL) is Verdict.CONFIRMED

    def test_who_called_whom_is_told(self) -> None:
        """What was not called was not seen: the verdict holds for these pairs."""
        other = [dataclasses.replace(f, id=f.id.replace("client>server", "shop>till")) for f in ALL]
        (judged,) = claims.judge(["l4-suffices-for-mtls"], EMPTY, [*ALL, *other])

        assert "wire segments of client → server, shop → till, the only calls made" in judged.measured
        assert "everywhere" not in judged.claim.text

    def test_one_leak_refutes_it(self) -> None:
        """However well the other segments do."""
        assert verdict("l4-suffices-for-mtls", [*ALL, found("hidden", Result.BROKEN)]) is Verdict.REFUTED

    def test_a_segment_without_evidence_leaves_it_undecided(self) -> None:
        """A lossy capture proves no absence."""
        assert verdict("l4-suffices-for-mtls", [*ALL, found("tls", Result.NO_EVIDENCE)]) is Verdict.UNDECIDED

    @pytest.mark.parametrize("check", ["hidden", "delivered", "tls", "identity"])
    def test_a_check_that_was_not_made_is_no_evidence(self, check: str) -> None:
        """Nothing is taken for granted."""
        left = [f for f in ALL if not f.id.endswith(f"/{check}")]

        assert verdict("l4-suffices-for-mtls", left) is Verdict.NO_EVIDENCE

    def test_another_planes_findings_say_nothing(self) -> None:
        """Cleartext that holds under `none` is no mTLS."""
        assert verdict("l4-suffices-for-mtls", [found("hidden", plane="none")]) is Verdict.NO_EVIDENCE


def test_frames_between_ztunnels_do_not_decide_what_is_said_of_waypoints() -> None:
    """Half of the claim was seen; the other half takes a plane that has a waypoint."""
    assert verdict("hbone-carries-metadata", ALL) is Verdict.UNDECIDED


def test_frames_to_the_waypoint_confirm_it() -> None:
    """Both of its legs, decrypted."""
    legs = [dataclasses.replace(found(c, plane="ambient"), id=f"packets.ambient/client>waypoint/x/{c}") for c in FRAMES]

    assert verdict("hbone-carries-metadata", legs) is Verdict.CONFIRMED
    broken = dataclasses.replace(legs[0], result=Result.BROKEN)
    assert verdict("hbone-carries-metadata", [broken, *legs[1:]]) is Verdict.REFUTED


class TestAgainstSidecars:
    """Ambient with a waypoint minus sidecar, paired by round."""

    METRICS = ("latency_p50", "latency_p90", "latency_p99", "cpu_per_1000_requests", "memory_pss")

    def summary(self, *differences: tuple[float, ...], rounds: int = 8, aa: float = 0.01) -> table.Summary:
        """One (difference, spread) per metric; the sidecar's values drift and ambient's with them. `aa`: by how much
        the halves of the A/A pair differ, now one more, now the other."""
        rows = []
        for number in range(rounds):
            for metric, (difference, spread) in zip(self.METRICS, differences, strict=True):
                component = "client" if metric.startswith("latency") else "{}.x"
                for plane, value in (("none", 10.0), ("none (A/A)", 10.0 + aa * (-1) ** number)):
                    rows.append(
                        dataclasses.replace(
                            MEASURED, round=number, trial=f"{plane}{number}", plane=plane, metric=metric, value=value,
                            component=component.format("app"),
                        )
                    )  # fmt: skip
                for plane, role in (("sidecar", "sidecar"), ("ambient", "waypoint")):
                    extra = difference + spread * (number - 3.5) / 2 if plane == "ambient" else 0.0
                    rows.append(
                        dataclasses.replace(
                            MEASURED, round=number, trial=f"{plane}{number}", plane=plane, metric=metric,
                            component=component.format(role), value=10 + number + extra,
                        )
                    )  # fmt: skip
        return table.summarise(rows)

    def verdicts(self, *differences: tuple[float, ...], **more: int) -> tuple[Verdict, Verdict]:
        summary = self.summary(*differences, **more)
        one, two = claims.judge(["two-l4-one-l7", "ambient-slower"], summary, [])
        assert one.measured and two.measured
        return one.verdict, two.verdict

    def test_less_of_everything(self) -> None:
        """Then one is so and the other is not."""
        assert self.verdicts(*[(-2.0, 0.1)] * 5) == (Verdict.CONFIRMED, Verdict.REFUTED)

    def test_more_of_everything(self) -> None:
        """The other way round."""
        assert self.verdicts(*[(2.0, 0.1)] * 5) == (Verdict.REFUTED, Verdict.CONFIRMED)

    def test_intervals_that_cover_both_decide_nothing(self) -> None:
        """Noise around nothing."""
        assert self.verdicts(*[(0.0, 1.0)] * 5) == (Verdict.UNDECIDED, Verdict.UNDECIDED)

    def test_slower_but_smaller(self) -> None:
        """More latency and CPU, less memory: four of five is nearly every metric; cost less it does not."""
        assert self.verdicts(*[(2.0, 0.1)] * 4, (-2.0, 0.1)) == (Verdict.REFUTED, Verdict.CONFIRMED)

    def test_more_latency_and_less_cpu_is_both(self) -> None:
        """Neither cheaper in all nor dearer in all."""
        mixed = [(2.0, 0.1), (2.0, 0.1), (2.0, 0.1), (-2.0, 0.1), (-2.0, 0.1)]
        assert self.verdicts(*mixed) == (Verdict.UNDECIDED, Verdict.REFUTED)

    @pytest.mark.parametrize(("rounds", "decided"), [(2, False), (5, False), (6, True)])
    def test_a_claim_takes_six_rounds(self, rounds: int, decided: bool) -> None:
        """However clear the figures look."""
        verdicts = self.verdicts(*[(2.0, 0.0)] * 5, rounds=rounds)

        assert (verdicts == (Verdict.REFUTED, Verdict.CONFIRMED)) is decided
        assert decided or set(verdicts) == {Verdict.UNDECIDED}

    def test_nothing_is_claimed_below_the_resolution(self) -> None:
        """A steady difference of 15 %, where the A/A pair of the same rounds is 30 % apart."""
        assert self.verdicts(*[(2.0, 0.0)] * 5, aa=3.0) == (Verdict.UNDECIDED, Verdict.UNDECIDED)
        (judged, _) = claims.judge(["two-l4-one-l7", "ambient-slower"], self.summary(*[(2.0, 0.0)] * 5, aa=3.0), [])
        assert "below the resolution" in judged.measured

    def test_without_both_planes_there_is_no_evidence(self) -> None:
        """A run of `none` alone."""
        for id_ in ("two-l4-one-l7", "ambient-slower"):
            assert verdict(id_, ALL) is Verdict.NO_EVIDENCE

    def test_the_interval_is_told(self) -> None:
        """A verdict without it would have to be believed."""
        (judged,) = claims.judge(["two-l4-one-l7"], self.summary(*[(-2.0, 0.1)] * 5), [])

        assert re.search(r"p50 −2.00 ms, −1\d.\d % \[−1\d.\d, −1\d.\d\], A/A within ±0.1 %", judged.measured)
        assert judged.plane == "ambient"


def test_a_claim_without_a_judge_has_no_evidence_and_says_what_it_takes() -> None:
    """Most of them, until their planes are there."""
    (judged,) = claims.judge(["ninety-percent"], EMPTY, ALL)

    assert judged.verdict is Verdict.NO_EVIDENCE
    assert CLAIMS["ninety-percent"].decided_by in judged.measured


def test_an_unknown_claim_is_refused() -> None:
    """An experiment's typing error would else go unseen."""
    with pytest.raises(UsageError, match="no claim is called 'nope'"):
        claims.judge(["nope"], EMPTY, [])


@pytest.mark.parametrize("name", registry.names("experiment"))
def test_every_experiment_names_claims_of_the_list(name: str) -> None:
    """By their ids."""
    assert set(registry.load("experiment", name).claims) <= set(CLAIMS)


def test_every_claim_has_a_source_and_what_decides_it() -> None:
    """And every judge a claim."""
    assert all(set(c.sources) <= set(SOURCES) and c.sources and c.decided_by for c in CLAIMS.values())
    assert set(claims.JUDGES) <= set(CLAIMS)


def test_the_newest_run_that_speaks_of_a_claim_has_the_last_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Others keep their place in the list, without evidence."""
    from experiments.quickstart import EXPERIMENT

    for number, seen in enumerate([ALL, [*ALL, found("hidden", Result.BROKEN)], []]):
        with Run.create(tmp_path, EXPERIMENT, PLAN, started="2026-01-02T03:04:05Z", run_id=f"r{number}") as run:
            run.append_trial([dataclasses.replace(MEASURED, trial=f"t{number}")])
            run.append_findings(seen)

    assert runs.newest_claims(tmp_path, as_json_text=True) == 0
    told = {row["id"]: row for row in json.loads(capsys.readouterr().out)}

    assert list(told) == list(CLAIMS)
    assert told["l4-suffices-for-mtls"]["verdict"] == "refuted"
    assert told["l4-suffices-for-mtls"]["run"].endswith("r1")
    assert told["ninety-percent"]["verdict"] == "no evidence" and told["ninety-percent"]["run"] is None
    assert told["l4-suffices-for-mtls"]["experiments"].count("quickstart") == 1
    assert told["l4-suffices-for-mtls"]["on"].startswith("ambient-l4")
    assert runs.newest_claims(tmp_path) == 0
    shown = capsys.readouterr().out
    assert "refuted" in shown and f"D: {SOURCES['D']}" in shown
    assert "not yet: no experiment speaks to it" in shown and "of 31 claims judged" in shown


def test_a_reference_run_speaks_where_no_other_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And is called one, however new its files are."""
    from experiments.quickstart import EXPERIMENT

    for number, seen in enumerate([[*ALL, found("hidden", Result.BROKEN)], ALL]):
        root = tmp_path / ("own", "kept")[number]
        with Run.create(root, EXPERIMENT, PLAN, started="2026-01-02T03:04:05Z") as run:
            run.append_trial([dataclasses.replace(MEASURED, trial="t")])
            run.append_findings(seen)
    own, reference = tmp_path / "own", [tmp_path / "kept" / "quickstart" / "20260102T030405Z"]

    for root, verdict in ((own, "refuted"), (tmp_path / "nothing", "confirmed")):
        assert runs.newest_claims(root, reference=reference, as_json_text=True) == 0
        told = {row["id"]: row for row in json.loads(capsys.readouterr().out)}
        assert told["l4-suffices-for-mtls"]["verdict"] == verdict
        assert told["l4-suffices-for-mtls"]["reference"] is (root != own)
    assert runs.newest_claims(tmp_path / "nothing", reference=reference) == 0
    assert "reference run of 20260102T030405Z" in capsys.readouterr().out


def test_the_table_says_who_the_letters_are() -> None:
    """In a note of its own, of those that are cited and no others."""
    bare = table.Table(blocks=(), notes=("one",))
    built = claims.with_claims(bare, ["l4-suffices-for-mtls"], EMPTY, ALL, {})

    assert built.blocks[0].rows[0][1].note == 2
    assert built.notes[1] == f"C: {SOURCES['C']}; S: {SOURCES['S']}"
