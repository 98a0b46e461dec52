"""Products, attentions and layers of graphs, whatever their nodes are called."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from engines.tensorrt_rtx.graph import Graph, layer_number
from qdq.errors import BuildError

LAYER = """
    {t}q = MatMul ({x}, w)
    {t}k = MatMul ({x}, w)
    {t}v = MatMul ({x}, w)
    {t}kt = Transpose <perm = [0, 2, 1]> ({t}k)
    {t}raw = MatMul ({t}q, {t}kt)
    {t}s = Add ({t}raw, bias)
    {t}p = Softmax ({t}s)
    {t}c = MatMul ({t}p, {t}v)
    {t}o = MatMul ({t}c, w)
    {t}r = Add ({t}o, {x})
"""


def write(path: Path, rename: Callable[[str], str]) -> Path:
    """An embedding, a mask, two attention layers, and a head, named by `rename` from their outputs."""
    body = LAYER.format(t="a_", x="e") + LAYER.format(t="b_", x="a_r")
    text = f"""<ir_version: 10, opset_import: ["" : 20]> g (float[B, S, 8] x, float[B, S, S] m) => (float[B, S, 8] y)
    <float[8, 8] w> {{
        e = Relu (x)
        bias = Neg (m)
        {body}
        y = MatMul (b_r, w)
    }}"""
    model = onnx.parser.parse_model(text)
    for node in model.graph.node:
        node.name = rename(node.output[0])
    model.graph.initializer.append(numpy_helper.from_array(np.ones((8, 8), np.float32), "w"))
    onnx.save(model, path)
    return path


def by_layer(tensor: str) -> str:
    prefix, _, rest = tensor.partition("_")
    return f"encoder.layer.{'ab'.index(prefix)}.{rest}" if prefix in "ab" else f"outside.{tensor}"


@pytest.mark.parametrize("rename", [lambda _: "", lambda tensor: f"albert_layer_groups.0.{tensor}"])
def test_layers_by_structure(rename: Callable[[str], str], tmp_path: Path) -> None:
    graph = Graph(write(tmp_path / "model.onnx", rename))
    numbers = {
        node.output[0]: graph.layers.get(rename(node.output[0]) or f"node_of_{node.output[0]}")
        for node in graph.graph.node
    }
    assert {numbers[name] for name in ("e", "bias")} == {None}
    assert {numbers[f"a_{name}"] for name in ("q", "k", "v", "s", "p", "c", "o", "r")} == {0}
    assert {numbers[f"b_{name}"] for name in ("q", "k", "v", "s", "p", "c", "o", "r")} == {1}
    assert numbers["y"] == 1  # nothing says where the last layer ends


def test_layers_by_name(tmp_path: Path) -> None:
    graph = Graph(write(tmp_path / "model.onnx", by_layer))
    assert graph.layers["encoder.layer.1.o"] == 1
    assert "outside.y" not in graph.layers
    assert [attention.name for attention in graph.attentions] == ["encoder.layer.0.p", "encoder.layer.1.p"]
    assert graph.attentions[1].scores == "encoder.layer.1.raw"
    assert graph.attentions[1].context == "encoder.layer.1.c"
    assert len(graph.linears) == 9


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("bert.encoder.layer.11.output.dense.MatMul", 11),
        ("/bert/encoder/layer.3/attention/self/MatMul_1", 3),
        ("model/layers/7/mlp/fc1/MatMul", 7),
        ("transformer.h.5.attn.MatMul", 5),
        ("tf_bert/encoder/layer_2/MatMul", 2),
        ("encoder.albert_layer_groups.0.albert_layers.0.ffn.MatMul_4", 0),
        ("bert.embeddings.LayerNorm", None),
        ("LayerNormalization_3", None),
        ("some_h_4", None),
    ],
)
def test_layer_numbers(name: str, number: int | None) -> None:
    assert layer_number(name) == number


def test_scales_outside_the_file(write_half: Callable[..., Path], tmp_path: Path) -> None:
    inside = Graph(write_half(per_tensor=True))
    model = onnx.load(write_half("again.onnx", per_tensor=True))
    path = tmp_path / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, location="external.data", size_threshold=0)
    outside = Graph(path)
    assert [linear.scale for linear in outside.linears] == [linear.scale for linear in inside.linears]
    assert None not in [linear.scale for linear in outside.linears]
    (tmp_path / "external.data").unlink()
    with pytest.raises(BuildError, match="copy it beside the file"):
        _ = Graph(path).linears
