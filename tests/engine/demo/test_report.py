"""The demo's report: paired statistics, honest controls, a table."""

from dataclasses import replace

import pytest

from weft.engine.demo.report import ArmResult, DemoReport, Score, align
from weft.engine.trace import EngineStats

LEARNER = ArmResult(
    name="sums",
    method="RL",
    rank=8,
    learning_rate=1e-3,
    steps=40,
    metric="right sums",
    is_higher_better=True,
    is_control=False,
    before=Score((0.0,) * 30 + (1.0,) * 10),
    after=Score((0.0,) * 10 + (1.0,) * 30),
    samples=("81",),
)
CONTROL = replace(LEARNER, name="shuffled", is_control=True, after=LEARNER.before)
STATS = EngineStats(wall_s=10.0, busy_s=9.0, batches_by_tenants={1: 1, 4: 3})


def report(*arms: ArmResult) -> DemoReport:
    return DemoReport(arms=arms, seconds=60.0, prompts=("What?",), base_samples=("8",), stats=STATS)


def test_a_score_has_mean_and_standard_error() -> None:
    score = Score((0.0, 1.0, 0.0, 1.0))
    assert score.mean == 0.5
    assert score.standard_error == pytest.approx((1 / 3) ** 0.5 / 2)


def test_the_error_of_the_change_is_paired() -> None:
    arm = replace(LEARNER, before=Score((1.0, 5.0, 9.0)), after=Score((2.0, 6.0, 10.0)))
    assert arm.change.mean == 1.0
    assert arm.change.standard_error == 0.0


def test_a_lower_value_is_a_gain_where_lower_is_better() -> None:
    arm = replace(LEARNER, is_higher_better=False)
    assert arm.gain_sigmas == -LEARNER.gain_sigmas
    assert LEARNER.gain_sigmas > 3


def test_all_is_well_when_learners_gain_and_controls_do_not() -> None:
    assert report(LEARNER, CONTROL).failures() == []


def test_a_learner_that_gains_nothing_is_named() -> None:
    (failure,) = report(replace(LEARNER, after=LEARNER.before)).failures()
    assert failure == "sums: gained only 0.0 standard errors"


def test_a_control_that_gains_is_named() -> None:
    (failure,) = report(replace(CONTROL, after=LEARNER.after)).failures()
    assert failure.startswith("shuffled: a control gained")


def test_any_change_at_learning_rate_zero_is_named() -> None:
    worse = Score((1.0, *LEARNER.before.values[1:]))
    (failure,) = report(replace(CONTROL, learning_rate=0.0, after=worse)).failures()
    assert failure == "shuffled: changed although its learning rate is 0"


def test_counters_since_an_earlier_moment() -> None:
    earlier = EngineStats(wall_s=4.0, busy_s=4.0, batches_by_tenants={1: 1, 4: 1})
    since = STATS.since(earlier)
    assert since == EngineStats(wall_s=6.0, busy_s=5.0, batches_by_tenants={4: 2})
    assert since.mean_tenants == 4.0


def test_the_report_shows_values_errors_tenants_and_samples() -> None:
    text = str(report(CONTROL, LEARNER))
    lines = text.splitlines()
    assert lines[0].split()[0] == "tenant"
    assert lines[1].startswith("sums ")
    assert lines[2].startswith("control: shuffled ")
    assert "n=40" in lines[1]
    assert "25.0 +- 6.9 %" in lines[1]
    assert "+50.0 +- 8.0 %" in lines[1]
    assert "tenants per fused train batch: mean 3.2 (1: 1, 4: 3)" in text
    assert "busy fraction of the compute thread: 90%" in text
    assert "'What?'" in text
    assert "'81'" in text


def test_columns_are_aligned() -> None:
    assert align([("a", "bb"), ("ccc", "d")]) == ["a    bb", "ccc  d"]
