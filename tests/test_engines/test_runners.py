"""Both CPU runtimes: any shape, arrays of one's own, batches that do not fit, and the values of the canonical graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.instructions import int8_sums
from engines.onnxruntime import OnnxRuntimeRunner, OnnxRuntimeSettings
from engines.openvino import OpenVINORunner, OpenVINOSettings
from engines.openvino.saturation import fit_products
from engines.types import Runner
from export.passes import lower
from export.unoptimized import open_unoptimized
from export.unoptimized import run as run_unoptimized
from qdq.errors import BuildError

from .graphs import lowered

Open = Callable[[Path], Runner]


def open_openvino(model: Path) -> Runner:
    return OpenVINORunner(model, OpenVINOSettings(1))


def open_onnxruntime(model: Path) -> Runner:
    return OnnxRuntimeRunner(model, OnnxRuntimeSettings(1))


RUNTIMES = pytest.mark.parametrize("open_model", [open_openvino, open_onnxruntime], ids=["openvino", "onnxruntime"])


@RUNTIMES
def test_runner_takes_any_shape_and_owns_what_it_returns(
    write_encoder: Callable[..., Path], make_feeds: Any, open_model: Open
) -> None:
    run = open_model(lowered(write_encoder()))
    first = run(make_feeds(2, 7))["last_hidden_state"]
    kept = first.copy()
    for batch, sequence in ((2, 7), (1, 1), (5, 32)):
        result = run(make_feeds(batch, sequence, seed=1))["last_hidden_state"]
        assert result.shape == (batch, sequence, 64)
        assert result.dtype == np.float32
    np.testing.assert_array_equal(first, kept)
    first[:] = 0  # its own: writing to it changes no later result
    np.testing.assert_array_equal(run(make_feeds(2, 7))["last_hidden_state"], kept)


@RUNTIMES
def test_runner_refuses_a_batch_that_does_not_fit(
    write_encoder: Callable[..., Path], make_feeds: Any, open_model: Open
) -> None:
    run = open_model(write_encoder())
    feeds = make_feeds(2, 7)
    expected = run(feeds)["last_hidden_state"]
    np.testing.assert_array_equal(run({**feeds, "labels": np.zeros(2)})["last_hidden_state"], expected)
    ids, mask = feeds["input_ids"], feeds["attention_mask"]
    with pytest.raises(BuildError, match=r"lacks input\(s\) attention_mask of the engine"):
        run({"input_ids": ids})  # OpenVINO would take the mask of the call before
    with pytest.raises(
        BuildError, match=r"inputs of one shape and rank 2; the batch has input_ids \(2, 7\), .* \(2, 9\)"
    ):
        run({**feeds, "attention_mask": np.ones((2, 9), np.int64)})
    with pytest.raises(BuildError, match=r"rank 2; the batch has input_ids \(1, 2, 7\), attention_mask \(1, 2, 7\)"):
        run({"input_ids": ids[None], "attention_mask": mask[None]})


def test_both_runtimes_compute_what_the_canonical_graph_says(
    write_encoder: Callable[..., Path], make_feeds: Any, tmp_path: Path
) -> None:
    """OpenVINO on s8 and ONNX Runtime on u8 against the canonical graph run node by node.

    Outputs are of order 1 (LayerNorm). The runtimes sum in another order, so now and then a value next to a rounding
    border takes the neighbouring code. One step of the coarsest quantizer (0.03) through a weight of at most 0.25 moves
    a sum by less than 0.01; a handful of them at once, before LayerNorm, stay within 0.05.

    Where INT8 products saturate, OpenVINO's weights are made to fit, and it is held to the graph with those weights;
    ONNX Runtime is held to the canonical graph on every CPU.
    """
    canonical = write_encoder()
    lower(canonical, "openvino", tmp_path / "s8")
    held = canonical
    if int8_sums().saturate:
        held = tmp_path / "fitted.onnx"
        onnx.save(fit_products(canonical)[0], held)
    runners: dict[str, tuple[Runner, Path]] = {
        "openvino": (open_openvino(tmp_path / "s8" / "model.onnx"), held),
        "onnxruntime": (open_onnxruntime(lowered(canonical)), canonical),
    }
    feeds = make_feeds(4, 16)
    for name, (run, graph) in runners.items():
        (expected,) = run_unoptimized(open_unoptimized(str(graph), tmp_path), feeds, ["last_hidden_state"])
        result, real = run(feeds)["last_hidden_state"], feeds["attention_mask"].astype(bool)
        assert not result[~real].any()  # nothing is computed where a text is padded
        result, expected = result[real], expected[real]
        np.testing.assert_allclose(result, expected, rtol=0, atol=0.05, err_msg=name)
        assert np.abs(result - expected).mean() < 0.002, name
