"""Ranges that follow from the first pass are those that a second pass would measure."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from qdq.calibrate.algorithms import algorithm_named
from qdq.calibrate.calibrate import collect
from qdq.calibrate.rebatch import MicroBatches
from qdq.calibrate.treatments import order
from qdq.calibrate.treatments.settings import Treatments
from qdq.inject import inject
from qdq.inject.spec import named_spec
from qdq.loading.model import LoadedModel

LoadTiny = Callable[..., LoadedModel]
Encode = Callable[..., dict[str, torch.Tensor]]
MAXIMUM = algorithm_named("max")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The second passes that `prepare` made."""
    made: list[int] = []

    def counted(*arguments: object) -> object:
        made.append(1)
        return collect(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(order, "collect", counted)
    return made


@pytest.mark.parametrize("model_type", ["bert", "distilbert", "albert", "mpnet"])
def test_they_are_those_of_a_second_pass(
    model_type: str, load_tiny: LoadTiny, encode: Encode, passes: list[int]
) -> None:
    loaded, spec = load_tiny(model_type), named_spec("linear+qk")
    inject(loaded.model, spec)
    batches = MicroBatches.of([encode(loaded)], 4)
    prepared = order.prepare(loaded.module(), batches, spec, [MAXIMUM], Treatments())
    assert passes == []
    assert any(row["alpha"] is not None for row in prepared.report["smoothing"])
    measured = collect(prepared.module, batches, [MAXIMUM])
    assert (prepared.collected.samples, prepared.collected.tokens) == (measured.samples, measured.tokens)
    assert prepared.collected.points.keys() == measured.points.keys()
    for name, point in measured.points.items():
        assert prepared.collected.points[name].maximum.largest == pytest.approx(point.maximum.largest, rel=1e-5)


@pytest.mark.parametrize(("placement", "algorithm"), [("qdqbert", "max"), ("linear", "percentile")])
def test_other_points_and_algorithms_need_the_pass(
    placement: str, algorithm: str, load_tiny: LoadTiny, encode: Encode, passes: list[int]
) -> None:
    loaded, spec = load_tiny("bert"), named_spec(placement)
    inject(loaded.model, spec)
    batches = MicroBatches.of([encode(loaded)], 4)
    order.prepare(loaded.module(), batches, spec, [algorithm_named(algorithm)], Treatments())
    assert passes == [1]
