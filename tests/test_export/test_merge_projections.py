"""Query, key and value in one product: the same numbers in the same tensors, and the reason where they stay apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from export.names import one_by_one, together
from export.passes.merge_projections import merge_projections

from .linears import SELF, Linears, applied, inputs, random_codes, results, values

HEADS, SIZE, K = 2, 4, 12
N = HEADS * SIZE
PARTS = ("query", "key", "value")
MERGED = f"{SELF}.query_and_key_and_value"
SCALES = np.linspace(1e-3, 2e-3, N).astype(np.float16)


class Attention(Linears):
    """Projections into heads; every tensor that holds heads is an output."""

    def heads(self, projected: str, name: str, perm: Any = (0, 2, 1, 3), heads: int = HEADS) -> str:
        shape = self.constant(f"{name}.shape", np.array([0, 0, heads, N // heads], np.int64))
        split = self.node("Reshape", [projected, shape], f"{name}.split")
        return self.node(
            "Transpose",
            [
                split,
            ],
            f"{name}.heads",
            perm=list(perm),
        )

    def projection(self, tensor: str, part: str, bias: bool = True, scales: Any = SCALES, **heads: Any) -> str:
        name = f"{SELF}.{part}"
        values = np.linspace(-1, 1, N) * (1 + len(part)) if bias else None
        return self.heads(self.linear(tensor, name, random_codes(len(part), K, N), scales, values), name, **heads)

    def input(self) -> str:
        return self.pair("x", f"{SELF}.query.input_quantizer")


def attention(biases: tuple[bool, ...] = (True, True, True), **key: Any) -> onnx.ModelProto:
    graph = Attention(K)
    x = graph.input()
    made = [
        graph.projection(x, part, bias, **(key if part == "key" else {}))
        for part, bias in zip(PARTS, biases, strict=True)
    ]
    return graph.model(*made, rank=4)


def assert_equal(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Up to the order of float sums inside a product."""
    for expected, found in zip(results(before, inputs(K)), results(after, inputs(K)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("biases", [(True, True, True), (False, False, False), (True, False, True)], ids=str)
def test_three_become_one(biases: tuple[bool, ...]) -> None:
    before = attention(biases)
    result, after = applied(merge_projections, before)
    assert result.changed == (f"{MERGED}.MatMul",) and not result.declined
    ops = [node.op_type for node in after.graph.node]
    assert ops[3:] == ["MatMul", *["Add"] * any(biases), "Reshape", "Transpose", *["Gather"] * 3]
    nodes = {node.name: node for node in after.graph.node}
    assert [nodes[f"{SELF}.{part}.Gather"].output[0] for part in PARTS] == [f"{SELF}.{part}.heads" for part in PARTS]
    found = values(after)
    assert found[f"{MERGED}.weight_quantizer.codes"].shape == (K, 3 * N)
    np.testing.assert_array_equal(found[f"{MERGED}.weight_quantizer.scale"], np.tile(SCALES.astype(np.float32), 3))
    np.testing.assert_array_equal(found[f"{MERGED}.Reshape.shape"], [0, 0, 3, HEADS, SIZE])
    assert_equal(before, after)


def test_a_float_key_is_transposed_for_its_product_at_once() -> None:
    before = attention(perm=(0, 2, 3, 1))
    result, after = applied(merge_projections, before)
    assert result.changed == (f"{MERGED}.MatMul",)
    assert [node.op_type for node in after.graph.node].count("Transpose") == 2
    assert_equal(before, after)


def test_one_scale_for_a_weight_becomes_one_for_each_of_its_columns() -> None:
    before = attention(scales=np.float32(0.003))
    result, after = applied(merge_projections, before)
    assert result.changed
    assert values(after)[f"{MERGED}.weight_quantizer.scale"].shape == (3 * N,)
    assert_equal(before, after)


def test_half_precision_stays() -> None:
    graph = Attention(K, np.float16)
    x = graph.input()
    before = graph.model(*(graph.projection(x, part, part != "key") for part in PARTS), rank=4)
    result, after = applied(merge_projections, before)
    assert result.changed
    assert {found.dtype for found in values(after).values()} == {
        np.dtype(kind) for kind in (np.float16, np.int8, np.int64)
    }
    x = inputs(K, dtype=np.float16)
    for expected, found in zip(results(before, x), results(after, x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=4e-3)


def test_a_query_of_one_row_leaves_key_and_value_together() -> None:
    """Behind needed_rows the last block's query reads another tensor."""
    graph = Attention(K)
    x = graph.input()
    index = graph.constant("index", np.array([0], np.int64))
    row = graph.pair(graph.node("Gather", ["x", index], "row", axis=1), "row.input_quantizer")
    before = graph.model(*(graph.projection(row if part == "query" else x, part) for part in PARTS), rank=4)
    result, after = applied(merge_projections, before)
    assert result.changed == (f"{SELF}.key_and_value.MatMul",)
    assert [(item.name, item.reason) for item in result.declined] == [
        (f"{SELF}.query.MatMul", "no other projection into as many heads reads its tensor")
    ]
    assert_equal(before, after)


def test_layers_that_share_their_weights_share_what_they_become() -> None:
    """ALBERT calls one module once per layer; its nodes are numbered on."""
    graph = Attention(K)
    made, weights = [], {}
    for number, step in (("", 0.05), ("_1", 0.1)):
        x = graph.pair("x", f"{SELF}.query.input_quantizer{number}", step)
        for part in PARTS:
            name = f"{SELF}.{part}"
            if part not in weights:
                weights[part] = graph.weight(name, random_codes(len(part), K, N), SCALES)
            product = graph.node("MatMul", [x, weights[part]], f"{name}.MatMul{number}")
            bias = graph.constant(f"{name}.bias", np.linspace(-1, 1, N).astype(np.float32))
            made.append(graph.heads(graph.node("Add", [product, bias], f"{name}.Add{number}"), f"{name}{number}"))
    before = graph.model(*made, rank=4)
    result, after = applied(merge_projections, before)
    assert result.changed == (f"{MERGED}.MatMul", f"{MERGED}.MatMul_1")
    codes = [name for name in values(after) if name.endswith(".codes")]
    assert codes == [f"{MERGED}.weight_quantizer.codes"]
    assert sum(name.endswith(".bias") for name in values(after)) == 1
    assert_equal(before, after)


def also_an_output(graph: Attention, x: str) -> list[str]:
    made = [graph.projection(x, part) for part in PARTS]
    return [*made, f"{SELF}.query.split"]


def read_twice(graph: Attention, x: str) -> list[str]:
    made = [graph.projection(x, part) for part in PARTS]
    return [*made, graph.heads(f"{SELF}.value.Add", "again")]


def other_heads(graph: Attention, x: str) -> list[str]:
    return [graph.projection(x, "query", heads=4), graph.projection(x, "key"), graph.projection(x, "value")]


@pytest.mark.parametrize(
    ("build", "merged", "declined"),
    [
        (also_an_output, "key_and_value", {"query": "one of its steps is an output of the graph"}),
        (read_twice, "query_and_key", {"value": "its result is read elsewhere, too"}),
        (other_heads, "key_and_value", {"query": "no other projection into as many heads reads its tensor"}),
    ],
)
def test_declines_with_the_reason(
    build: Callable[[Attention, str], list[str]], merged: str, declined: dict[str, str]
) -> None:
    graph = Attention(K)
    before = graph.model(*build(graph, graph.input()), rank=4)
    result, after = applied(merge_projections, before)
    assert result.changed == (f"{SELF}.{merged}.MatMul",)
    assert {item.name: item.reason for item in result.declined} == {
        f"{SELF}.{name}.MatMul": reason for name, reason in declined.items()
    }
    assert_equal(before, after)


def test_only_some_quantized_stay_as_they_are() -> None:
    graph = Attention(K)
    x = graph.input()
    made = [graph.projection(x, "query")]
    for part in ("key", "value"):
        weight = graph.constant(f"{part}.w", np.ones((K, N), np.float32))
        made.append(graph.heads(graph.node("MatMul", ["x", weight], f"{SELF}.{part}.MatMul"), part))
    before = graph.model(*made, rank=4)
    result, after = applied(merge_projections, before)
    assert not result.modified
    assert [item.name for item in result.declined] == [f"{SELF}.query.MatMul"]
    assert {node.name for node in after.graph.node} == {node.name for node in before.graph.node}


def test_names_say_what_was_put_together() -> None:
    names = [f"a.0.{part}.MatMul_1" for part in PARTS]
    name = together(names)
    assert name == "a.0.query_and_key_and_value.MatMul_1"
    assert one_by_one(name) == tuple(names)
    assert one_by_one("a.0.query.MatMul") == ("a.0.query.MatMul",)
    assert together(["a.query.MatMul", "b.key.MatMul"]) is None
    assert together(["a.query.MatMul", "a.key.inner.MatMul"]) is None
