"""INT8 codes directly behind the products of linears: where they go, what stays float and why, and what they cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.tensorrt_rtx import Shapes, compile_graph, missing
from export.lint import fusion_map
from export.passes import LowerOptions, lower
from export.passes.base import load_graph
from export.passes.quantized_products import quantized_products
from export.products import Product, measure_products
from export.ranges import measure_ranges
from export.unoptimized import open_unoptimized, run

Lowered = tuple[Path, dict[str, Any]]
ALL = partial(LowerOptions, feed_forward=True)  # codes for every product


@pytest.fixture(scope="module")
def products(tiny: Any, canonical: Path) -> Mapping[str, Product]:
    return measure_products(canonical, [tiny.feeds(4, 12, seed) for seed in range(3)])


@pytest.fixture(scope="module")
def ranges(tiny: Any, canonical: Path) -> Mapping[str, float]:
    return measure_ranges(canonical, [tiny.feeds(4, 12, seed) for seed in range(3)])


def lowered(canonical: Path, folder: Path, options: LowerOptions) -> Lowered:
    report = lower(canonical, "tensorrt", folder, options=options)
    (step,) = (step for step in report["passes"] if step["pass"] == "quantized_products")
    return folder / "model.onnx", step


def logits(path: Path, tiny: Any) -> np.ndarray:
    batch = {name: value.astype(np.int32) for name, value in tiny.feeds(4, 12, 9).items()}
    values: np.ndarray = run(open_unoptimized(str(path), path.parent), batch, ["logits"])[0]
    return values


def test_every_product_is_quantized_before_ratio_and_bias(
    tiny: Any, canonical: Path, products: Mapping[str, Product], ranges: Mapping[str, float], tmp_path: Path
) -> None:
    path, step = lowered(canonical, tmp_path / "codes", ALL(ranges=ranges, products=products))
    model = onnx.load(path)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for tensor in node.input:
            readers.setdefault(tensor, []).append(node)
    assert step["changed"]
    assert not step["declined"]
    for node in model.graph.node:
        if node.name in step["changed"]:
            tensor, behind = node.output[0], []
            for _ in range(4):
                (reader,) = readers[tensor]
                behind.append(reader.op_type)
                tensor = reader.output[0]
            assert behind == ["QuantizeLinear", "DequantizeLinear", "Mul", "Add"]
    # One rounding more of each product, and otherwise the graph it was.
    plain, _ = lowered(canonical, tmp_path / "plain", LowerOptions(ranges=ranges))
    difference = np.abs(logits(path, tiny) - logits(plain, tiny)).max()
    assert 0 < difference < 0.2 * np.abs(logits(plain, tiny)).max()
    assert not quantized_products(load_graph(path), products, feed_forward=True).modified
    assert not quantized_products(load_graph(plain), None).modified


def without_attention_points(canonical: Path, folder: Path) -> Path:
    """The same graph with float attention, as heads that INT8 attention does not take get it."""
    model = onnx.load(canonical)
    values = {node.output[0]: node.input[0] for node in model.graph.node if "matmul_" in node.name}
    for node in model.graph.node:
        for place, tensor in enumerate(node.input):
            while "matmul_" not in node.name and tensor in values:  # past DequantizeLinear and QuantizeLinear
                tensor = values[tensor]
            node.input[place] = tensor
    for node in [node for node in model.graph.node if "matmul_" in node.name]:
        model.graph.node.remove(node)
    onnx.save(model, folder / "float.onnx")
    return folder / "float.onnx"


@pytest.mark.parametrize("points", [True, False], ids=["int8 attention", "float attention"])
def test_by_default_only_the_products_beside_attention_have_codes(
    tiny: Any, canonical: Path, tmp_path: Path, points: bool
) -> None:
    graph = canonical if points else without_attention_points(canonical, tmp_path)
    batches = [tiny.feeds(4, 12, seed) for seed in range(3)]
    options = LowerOptions(ranges=measure_ranges(graph, batches), products=measure_products(graph, batches))
    _, step = lowered(graph, tmp_path / "lowered", options)
    # The last layer's query has one row, and is a product of its own.
    assert {name.removeprefix("bert.encoder.layer.") for name in step["changed"]} == {
        "0.attention.self.query_and_key_and_value.MatMul",
        "0.attention.output.dense.MatMul",
        "1.attention.self.query.MatMul",
        "1.attention.self.key_and_value.MatMul",
        "1.attention.output.dense.MatMul",
    }
    assert not step["declined"]


def test_what_was_not_measured_and_what_codes_would_spoil_stay_float(
    canonical: Path, products: Mapping[str, Product], ranges: Mapping[str, float], tmp_path: Path
) -> None:
    unknown, spoiled = "bert.encoder.layer.0.output.dense.MatMul", "bert.encoder.layer.1.output.dense.MatMul"
    chosen = {name: found for name, found in products.items() if name != unknown}
    chosen[spoiled] = replace(chosen[spoiled], energy=chosen[spoiled].energy / 1e4)  # rarely large, mostly tiny
    _, step = lowered(canonical, tmp_path, ALL(ranges=ranges, products=chosen))
    reasons = {item["name"]: item["reason"] for item in step["declined"]}
    assert reasons[unknown] == "its product was not measured"
    assert "% is let pass" in reasons[spoiled]
    assert not {unknown, spoiled} & set(step["changed"])


def test_a_channel_with_large_products_is_not_clipped_and_does_not_set_the_range_of_the_others(
    canonical: Path, products: Mapping[str, Product], ranges: Mapping[str, float], tmp_path: Path
) -> None:
    name = "bert.encoder.layer.1.intermediate.dense"
    found = products[f"{name}.MatMul"]
    largest = found.largest.copy()
    largest[5] *= 16
    options = ALL(ranges=ranges, products={f"{name}.MatMul": replace(found, largest=largest)})
    constants = {}
    for kind, path in (
        ("codes", lowered(canonical, tmp_path / "codes", options)[0]),
        ("plain", lowered(canonical, tmp_path / "plain", LowerOptions(ranges=ranges))[0]),
    ):
        stored = {item.name: onnx.numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}
        constants[kind] = {key.removeprefix(f"{name}."): value for key, value in stored.items() if key.startswith(name)}
    new, old = constants["codes"], constants["plain"]
    factors = (new["weight_quantizer.ratio"] / old["weight_quantizer.ratio"]).astype(np.float64)
    assert factors[5] >= 8
    assert (np.log2(factors) % 1 == 0).all()
    assert np.median(factors) <= 2
    # The same weights, with a coarser step where the ratio grew.
    weights = [
        stored["weight_quantizer.codes"] * stored["weight_quantizer.ratio"].astype(np.float64) for stored in (new, old)
    ]
    assert (np.abs(weights[0] - weights[1]) <= new["weight_quantizer.ratio"] / 2).all()
    assert (weights[0] == weights[1])[:, factors == 1].all()
    # Every channel fits into the codes.
    top = 127.5 * float(new["product_quantizer.scale"])
    assert (largest / new["weight_quantizer.ratio"] <= top).all()


def test_the_linter_sees_linears_and_residuals_through_the_codes(
    canonical: Path, products: Mapping[str, Product], ranges: Mapping[str, float], tmp_path: Path
) -> None:
    path, _ = lowered(canonical, tmp_path, ALL(ranges=ranges, products=products))
    layers = fusion_map(onnx.load(path))
    linears = [layer for layer in layers if layer.role]
    assert sum(layer.linears for layer in linears) == 12
    assert {layer.kind for layer in linears} == {"int8_gemm"}
    assert sum(layer.kind == "residual_add" for layer in layers) == 4


@pytest.mark.skipif(missing() is not None, reason=f"the compiler is not here: {missing()}")
def test_the_compiled_products_write_int8(
    canonical: Path, products: Mapping[str, Product], ranges: Mapping[str, float], tmp_path: Path
) -> None:
    found = {}
    for name, measured in (("codes", products), ("plain", None)):
        path, _ = lowered(canonical, tmp_path / name, ALL(ranges=ranges, products=measured))
        compiled = compile_graph(path, (75,), Shapes.fixed(4, 16))
        linears = [gemm for gemm in compiled.gemms if any("dense.MatMul" in n or "_and_" in n for n in gemm.onnx)]
        found[name] = compiled
        encoder = [gemm for gemm in linears if any("encoder" in node for node in gemm.onnx)]
        assert {gemm.output for gemm in encoder} == {"int8" if measured else "fp16"}
        assert all(gemm.alpha not in (None, 1.0) for gemm in encoder)
    assert found["codes"].megabytes < found["plain"].megabytes
