"""Distributions of a calibrated module's values, against NumPy's own histogram."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from qdq.calibrate.algorithms import Algorithm
from qdq.calibrate.calibrate import calibrate
from qdq.calibrate.histograms import histograms
from qdq.inject import inject, quantizers
from qdq.inject.spec import named_spec
from qdq.loading.model import LoadedModel


def test_counts_are_those_of_the_values(load_tiny: Callable[..., LoadedModel], encode: Callable[..., Any]) -> None:
    loaded = load_tiny("bert", "text-classification")
    inject(loaded.model, named_spec("linear"))
    module, batch = loaded.module(), encode(loaded, 6)
    calibrate(module, [batch], named_spec("linear"), Algorithm("max"))
    before = module(**batch)[0]
    found = histograms(module, [batch])
    assert found["samples"] == 6 and found["tokens"] == int(batch["attention_mask"].sum())
    # The values of one point, taken from the module itself.
    name = next(iter(found["points"]))
    point, kept = quantizers(loaded.model)[name], []
    hook = point.register_forward_pre_hook(lambda _, given: kept.append(given[0].detach()))
    for other in quantizers(loaded.model).values():
        other.disable_quant()
    with torch.no_grad():
        module(**batch)
    hook.remove()
    for other in quantizers(loaded.model).values():
        other.enable_quant()
    values = kept[0][batch["attention_mask"].bool()].abs().half().double().numpy().ravel()
    seen, edges = found["points"][name], np.array(found["edges"])
    expected = np.histogram(values[values > 0], edges)[0]
    shown = np.zeros(len(edges) - 1, dtype=int)
    shown[seen["first"] : seen["first"] + len(seen["counts"])] = seen["counts"]
    np.testing.assert_array_equal(shown, expected)
    assert seen["zeros"] == (values == 0).sum()
    # The module answers as before.
    torch.testing.assert_close(module(**batch)[0], before, rtol=0, atol=0)


def test_edges_are_the_magnitudes_of_fp16() -> None:
    from qdq.calibrate.histograms import _edges

    edges = _edges()
    assert edges[0] == 0 and edges[-1] == 2.0**16 and edges == sorted(edges)
    assert {0.25, 0.3125, 0.375, 0.4375, 0.5} <= set(edges)
