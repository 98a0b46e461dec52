"""The share of real tokens from which an engine runs without its packing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.crossover import LEAST, NEVER, crossing


@given(st.floats(0.01, 10), st.floats(0.001, 1), st.floats(LEAST, 1), st.floats(0.5, 0.9))
def test_both_forms_cost_the_same_at_the_crossing(slope: float, fixed: float, share: float, part: float) -> None:
    without = fixed + slope * share
    found = crossing(without, fixed + slope, fixed + slope * part, part)
    assert found == pytest.approx(share, abs=1e-3) or (found == NEVER and share > 1 - 1e-9)


def test_a_form_that_always_wins_always_runs() -> None:
    assert crossing(1.0, 0.99, 0.7, 0.7) == NEVER
    assert crossing(0.1, 1.0, 0.8, 0.7) == LEAST
    assert crossing(1.0, 1.1, 1.2, 0.7) == LEAST
