"""The lowered TensorRT graph of every family, compiled by NVIDIA's compiler for Turing to Blackwell."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.packing import Packing
from engines.tensorrt_rtx import Shapes, compile_graph, coverage, missing
from export.lint import fusion_map
from export.passes import LowerOptions, lower
from export.passes.pipeline import passes_for
from export.unoptimized import open_unoptimized, run
from qdq.inject.families import FAMILIES

CAPABILITIES = (75, 80, 86, 89, 120)
FP32_BODY = LowerOptions("fp32")


def canonical_graph(folder: Path, arguments: tuple[Any, ...], qdq: Callable[..., Any]) -> Path:
    for stage in (("calibrate", *arguments, "--target", "tensorrt"), ("export",)):
        ran = qdq(*stage, "--out", folder)
        assert ran.code == 0, ran.err
    return folder / "model.qdq.onnx"


def feeds_of(path: Path) -> dict[str, np.ndarray]:
    """Ids of the tiny vocabulary, the second text shorter than the first."""
    random = np.random.default_rng(0)
    made = {value.name: random.integers(5, 100, (2, 16)) for value in onnx.load(path).graph.input}
    made["attention_mask"] = (np.arange(16) < np.array([[16], [11]])).astype(np.int64)
    return {name: np.zeros_like(ids) if name == "token_type_ids" else ids for name, ids in made.items()}


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=f"the compiler is not here: {missing()}")
@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_linear_is_int8_with_its_scale_in_fp32(
    model_type: str,
    tiny_checkpoint: Callable[..., Path],
    text_file: Path,
    qdq: Callable[..., Any],
    small: tuple[str, ...],
    tmp_path: Path,
) -> None:
    source = ("--model", tiny_checkpoint(model_type), "--calibration", text_file, "--placement", "fused", *small)
    canonical = canonical_graph(tmp_path, source, qdq)
    report = lower(canonical, "tensorrt", tmp_path / "trt")
    steps = {step["pass"]: step for step in report["passes"]}
    assert list(steps) == [step.name for step in passes_for("tensorrt")]
    # Two layers: q, k and v of the first in one product, k and v of the second, whose query is the pooler's row.
    assert [name.rpartition(".")[0].count("_and_") for name in steps["merge_projections"]["changed"]] == [2, 1]
    assert len(steps["weight_ratios"]["changed"]) == 9

    lowered = tmp_path / "trt" / "model.onnx"
    found = coverage(compile_graph(lowered, CAPABILITIES, Shapes.fixed(2, 16)), lowered)
    assert found.linears and set(found.linears.values()) == {"int8"}
    assert set(found.outside.values()) != {"int8"}  # the pooler and the head stay float
    assert found.fp32_scales == (9, 9)
    predicted = {layer.name: layer.kind for layer in fusion_map(onnx.load(lowered)) if layer.heads}
    assert {name: verdict == "int8" for name, verdict in found.attentions.items()} == {
        name: kind == "int8_fused_attention" for name, kind in predicted.items()
    }
    assert list(predicted.values()).count("int8_fused_attention") == 1

    # The same arithmetic, with float sums in another order: a code on a rounding edge may fall to the other side.
    lower(canonical, "tensorrt", tmp_path / "fp32", options=FP32_BODY)
    feeds = feeds_of(canonical)
    answers = [
        run(open_unoptimized(str(path), path.parent), {n: x.astype(kind) for n, x in feeds.items()}, ["logits"])[0]
        for path, kind in ((canonical, np.int64), (tmp_path / "fp32" / "model.onnx", np.int32))
    ]
    assert np.abs(answers[0] - answers[1]).max() < 0.05 * np.abs(answers[0]).max()
    for form in ("rows", "gather"):
        check_form(canonical, tmp_path, form, feeds, answers[1])


def check_form(canonical: Path, folder: Path, form: Any, feeds: dict[str, np.ndarray], padded: np.ndarray) -> None:
    """Without padding all linears and attentions are INT8, and the answers those of the padded graph."""
    report = lower(canonical, "tensorrt", folder / form, options=LowerOptions(form=form))
    facts = next(step["facts"] for step in report["passes"] if "facts" in step)
    sizes = {"batch": 2, "choices": 2, "sequence": 16, "rows": 2, "texts": 2, "length": 16, "tokens": 27}
    graph = folder / form / "model.onnx"
    found = coverage(compile_graph(graph, (75,), Shapes.of({name: (size,) * 3 for name, size in sizes.items()})), graph)
    assert set(found.linears.values()) == set(found.attentions.values()) == {"int8"}
    assert found.int8_attentions == (2, 2) and found.fp32_scales[0] == found.fp32_scales[1]

    lower(canonical, "tensorrt", folder / f"{form}-fp32", options=LowerOptions("fp32", form=form))
    path = folder / f"{form}-fp32" / "model.onnx"
    inputs = [value.name for value in onnx.load(path).graph.input]
    batch = Packing(**facts, inputs=inputs, row=16, texts=2, rows=2, tokens=27).pack(
        {name: array.astype(np.int32) for name, array in feeds.items()}
    )
    (logits,) = run(open_unoptimized(str(path), path.parent), batch.feeds, ["logits"])
    np.testing.assert_allclose(batch.unpack({"logits": logits})["logits"], padded, atol=2e-2)
