"""Candidates and plans: what is tried first, what is not tried and why, and how long trainings are."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest

from qdq.auto.search.candidates import (
    BASE,
    Candidate,
    Tried,
    chance,
    everything,
    expected_drop,
    expected_time,
    from_json,
)
from qdq.auto.search.plan import CHECKPOINTS, Costs, Planned, Situation, next_candidate, plan

TWO_THIRDS, HALF = Candidate(Fraction(2, 3)), Candidate(Fraction(1, 2))
COSTS = Costs(step=0.5, teacher=0.1, evaluation=5.0, engine=60.0, rows=14_000, batch=32)
START = Situation([Tried(BASE, 0.1)], max_drop=0.5, costs=COSTS, left=1500.0)


def test_every_width_comes_with_every_quantization() -> None:
    found = everything(heads=12)
    assert found[0] == BASE
    assert {one.width for one in found} == {Fraction(kept, 12) for kept in range(4, 13)}
    assert len(found) == len(set(found)) == 9 * 5
    assert len({one.key for one in found}) == len(found)
    assert all(from_json(one.as_json()) == one for one in found)


def test_names_say_what_is_done() -> None:
    one = Candidate(Fraction(2, 3), "qat")
    assert (one.name, one.key, one.strategy) == ("width 2/3, qat", "width-2of3+qat", "dynabert+qat")
    assert Candidate(embeddings=True).strategy == "ptq+embeddings"
    assert not BASE.trains and one.trains


def test_narrower_is_faster_and_loses_more() -> None:
    assert expected_time(HALF) < expected_time(TWO_THIRDS) < expected_time(BASE) == 1
    assert expected_drop(HALF, START.tried) > expected_drop(TWO_THIRDS, START.tried) > 0.1


def test_losses_that_were_seen_change_what_is_expected() -> None:
    bad = [*START.tried, Tried(TWO_THIRDS, drop=1.6, float_drop=1.5)]
    good = [*START.tried, Tried(TWO_THIRDS, drop=0.1, float_drop=0.0)]
    assert expected_drop(HALF, bad) > expected_drop(HALF, START.tried) > expected_drop(HALF, good)
    # Another way of quantizing keeps what pruning lost, and wins back a part of the rest.
    mse = Candidate(Fraction(2, 3), "ptq-mse")
    assert 1.5 < expected_drop(mse, bad) < 1.6


def test_chance_falls_with_the_expected_loss() -> None:
    assert chance(0.5, 0.5) == pytest.approx(0.5)
    assert chance(0.0, 0.5) > 0.8 > 0.1 > chance(1.5, 0.5)
    assert chance(1e6, 0.5) == pytest.approx(0, abs=1e-20)


def test_the_base_comes_first() -> None:
    found = next_candidate(everything(12), replace(START, tried=[]))
    assert found is not None and found.candidate == BASE


def test_the_first_training_is_neither_timid_nor_hopeless_and_leaves_time() -> None:
    found = next_candidate(everything(12), START)
    assert found is not None
    assert found.candidate.quantization == "ptq" and Fraction(1, 2) < found.candidate.width < Fraction(5, 6)
    assert found.steps > 500 and found.seconds < 0.8 * START.left
    assert f"{found.steps} steps" in found.why


def test_after_a_success_only_faster_ones_are_tried() -> None:
    now = replace(START, tried=[*START.tried, Tried(TWO_THIRDS, 0.1, 0.0)], left=700.0)
    found = next_candidate(everything(12), now)
    assert found is not None and found.candidate.width < Fraction(2, 3)
    slower = plan(Candidate(Fraction(3, 4)), now)
    assert isinstance(slower, str) and "width 2/3, ptq, within the drop, is faster" in slower


def test_after_a_failure_narrower_ones_are_hopeless_and_a_wider_one_is_tried() -> None:
    now = replace(START, tried=[*START.tried, Tried(TWO_THIRDS, 2.1, 2.0)], left=700.0)
    reason = plan(HALF, now)
    assert isinstance(reason, str) and reason.startswith("expected to lose 4.")
    found = next_candidate(everything(12), now)
    assert found is not None and found.candidate.width > Fraction(2, 3)


def test_few_rows_rule_little_out() -> None:
    """A loss that 204 rows measured, give or take 1.5 points, says less than the same one measured on thousands."""
    noisy = Situation([Tried(BASE, 0.1, error=0.5), Tried(TWO_THIRDS, 3.0, 2.9, error=1.5)], 0.5, COSTS, 700.0)
    sure = replace(noisy, tried=[replace(one, error=0.1) for one in noisy.tried])
    narrower, wider = Candidate(Fraction(7, 12)), Candidate(Fraction(3, 4))
    reason = plan(narrower, sure)
    assert isinstance(reason, str) and reason.startswith("expected to lose 4.")
    assert isinstance(plan(narrower, noisy), Planned) and isinstance(plan(wider, noisy), Planned)
    # What is known beforehand still counts: the narrowest one is not tried for its speed alone.
    found = next_candidate(everything(12), noisy)
    assert found is not None and found.candidate.width >= Fraction(1, 2)
    assert expected_drop(wider, START.tried) <= expected_drop(wider, noisy.tried) < expected_drop(wider, sure.tried)


def test_other_quantizations_need_a_loss_to_win_back() -> None:
    lossless = plan(Candidate(quantization="qat"), replace(START, tried=[Tried(BASE, 0.6)]))
    assert isinstance(lossless, Planned)  # FP32 is all there is within the drop
    within = replace(START, tried=[Tried(BASE, 0.05), Tried(TWO_THIRDS, 0.72, 0.7)])
    reason = plan(Candidate(Fraction(2, 3), "ptq-mse"), within)
    assert isinstance(reason, str) and "nothing to win back" in reason
    untried = plan(Candidate(Fraction(3, 4), "qat"), within)
    assert untried == "only where ptq of the same model has lost too much"
    by_int8 = replace(START, tried=[Tried(BASE, 0.05), Tried(TWO_THIRDS, 0.7, 0.2)])
    again = plan(Candidate(Fraction(2, 3), "ptq-mse"), by_int8)
    assert isinstance(again, Planned) and again.steps == 0  # its model is trained already


def test_time_that_is_left_limits_the_steps_and_ends_the_search() -> None:
    many, few = (plan(TWO_THIRDS, replace(START, left=left)) for left in (3000.0, 500.0))
    assert isinstance(many, Planned) and isinstance(few, Planned) and few.steps < many.steps
    assert few.seconds <= 500
    none = plan(TWO_THIRDS, replace(START, left=100.0))
    assert isinstance(none, str) and none.startswith("no time left")
    assert next_candidate(everything(12), replace(START, left=50.0)) is None
    # Data that are few are not seen for ever
    little = plan(TWO_THIRDS, replace(START, costs=replace(COSTS, rows=320), left=1e5))
    assert isinstance(little, Planned) and little.steps == 80


def test_a_smaller_file_is_tried_last_and_of_the_kept_engine_only() -> None:
    now = replace(START, tried=[*START.tried, Tried(TWO_THIRDS, 0.1, 0.0)], left=200.0)
    tables = Candidate(Fraction(2, 3), embeddings=True)
    assert isinstance(plan(tables, now), Planned)
    reason = plan(Candidate(embeddings=True), now)
    assert isinstance(reason, str) and "only of the engine that is kept" in reason


def test_a_student_is_cut_from_the_narrowest_one_that_is_trained() -> None:
    seen = [*START.tried, Tried(Candidate(Fraction(3, 4)), 0.1, 0.0), Tried(TWO_THIRDS, 0.1, 0.0)]
    found = plan(HALF, replace(START, tried=seen))
    assert isinstance(found, Planned) and found.start == Fraction(2, 3) and "on from width 2/3" in found.why
    first = plan(HALF, START)
    assert isinstance(first, Planned) and first.start == 1


def test_a_step_costs_less_at_a_smaller_width() -> None:
    assert COSTS.step_of(HALF) == pytest.approx(0.1 + 0.2)
    assert COSTS.step_of(replace(HALF, quantization="qat")) == pytest.approx(0.1 + 0.4)
    assert CHECKPOINTS > 1
