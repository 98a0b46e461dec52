"""Choices: the fastest within the drop, the one that loses least where none is, and the front."""

from __future__ import annotations

import pytest

from qdq.auto.search.choice import Raced, choose, error, lost, pareto

ENGINES = [
    Raced("ptq", 0.1, 1.0),
    Raced("width 3/4", 0.3, 1.28),
    Raced("width 2/3", 0.4, 1.42),
    Raced("width 1/2", 0.9, 1.8),
    Raced("clumsy", 0.6, 1.3),
]


def test_the_fastest_within_the_drop_is_kept() -> None:
    found = choose(ENGINES, max_drop=0.5)
    assert (found.name, found.within) == ("width 2/3", True)
    assert "fastest of 3 engines within 0.5 points" in found.why
    assert "the nearest, width 1/2, 0.90" in found.why


def test_of_equally_fast_ones_the_one_that_loses_least_is_kept() -> None:
    tables = Raced("width 2/3, embeddings", 0.4, 1.425)
    assert choose([*ENGINES, tables], max_drop=0.5).name == "width 2/3"  # the earlier of equals
    assert choose([*ENGINES, Raced("better", 0.2, 1.41)], max_drop=0.5).name == "better"


def test_where_none_is_within_the_one_that_loses_least_is_kept_and_said_so() -> None:
    found = choose(ENGINES, max_drop=0.05)
    assert (found.name, found.within) == ("ptq", False)
    assert "no engine loses at most 0.05 points" in found.why


def test_the_front_has_no_engine_that_another_beats() -> None:
    assert pareto(ENGINES) == ["ptq", "width 3/4", "width 2/3", "width 1/2"]
    assert pareto([Raced("a", 0.1, 1.0), Raced("b", 0.1, 1.0)]) == ["a", "b"]


def test_a_gain_is_a_negative_loss() -> None:
    assert lost({"judging": {"difference_points": 0.25}}, "judging") == -0.25
    assert str(lost({"judging": {"difference_points": 0.0}}, "judging")) == "0.0"


def test_the_standard_error_is_read_from_the_interval() -> None:
    assert error({"choosing": {"low_points": -1.0, "high_points": 2.92}}, "choosing") == pytest.approx(1.0)
