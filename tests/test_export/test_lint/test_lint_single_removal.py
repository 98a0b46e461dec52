"""Removing any single quantization from a fully quantized encoder layer reports exactly the fusion that breaks."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx
import pytest

from export.lint import FusedLayer, fusion_map, lint

LINEAR, ATTENTION = "QDQ-P201", "QDQ-P203"
SKIP, ADD = "QDQ-P202", "QDQ-N302"  # notes: a skip in float beside a quantized branch, one that shares no codes

# Activation pair -> its readers -> what breaks when that reader gets the float tensor, all below encoder layer L: the
# rule that reports it, and the node. S is the attention's Softmax, after which an attention is named.
S = "attention.self.Softmax"
READERS: dict[str, dict[str, list[tuple[str, str]]]] = {
    "attention.self.query.input_quantizer": {
        "attention.self.query.MatMul": [(LINEAR, "attention.self.query.MatMul")],
        "attention.self.key.MatMul": [(LINEAR, "attention.self.key.MatMul")],
        "attention.self.value.MatMul": [(LINEAR, "attention.self.value.MatMul")],
        "attention.output.Add": [(SKIP, "attention.output.Add"), (ADD, "attention.output.Add")],
    },
    "attention.self.matmul_q_input_quantizer": {"attention.self.MatMul": [(ATTENTION, S)]},
    "attention.self.matmul_k_input_quantizer": {"attention.self.Transpose_3": [(ATTENTION, S)]},
    "attention.self.matmul_a_input_quantizer": {"attention.self.MatMul_1": [(ATTENTION, S)]},
    "attention.self.matmul_v_input_quantizer": {"attention.self.MatMul_1": [(ATTENTION, S)]},
    "attention.output.dense.input_quantizer": {
        # this pair quantizes the linear's input and is the one "after the second BMM"
        "attention.output.dense.MatMul": [(LINEAR, "attention.output.dense.MatMul"), (ATTENTION, S)]
    },
    # The branch of an add is rounded in registers: its pair is no fusion's.
    "attention.output.add_local_input_quantizer": {"attention.output.Add": []},
    "intermediate.dense.input_quantizer": {
        # without it the codes are the skip's alone
        "intermediate.dense.MatMul": [(LINEAR, "intermediate.dense.MatMul"), (ADD, "output.Add")],
        "output.Add": [(SKIP, "output.Add"), (ADD, "output.Add")],
    },
    "output.dense.input_quantizer": {"output.dense.MatMul": [(LINEAR, "output.dense.MatMul")]},
    "output.add_local_input_quantizer": {"output.Add": []},
}
LINEARS = (
    *("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"),
    *("intermediate.dense", "output.dense"),
)
MISSING = {
    "attention.self.matmul_q_input_quantizer": "missing on the query, before the first BMM",
    "attention.self.matmul_k_input_quantizer": "missing on the key, before the first BMM",
    "attention.self.matmul_a_input_quantizer": "missing on the probabilities, after softmax",
    "attention.self.matmul_v_input_quantizer": "missing on the value, before the second BMM",
    "attention.output.dense.input_quantizer": "missing on the output, after the second BMM",
}
Removal = tuple[str, str, tuple[str, ...], tuple[tuple[str, str], ...]]  # kind, point, readers, what breaks


def removals() -> Iterator[Removal]:
    """Every pair removed as a whole, every reader of a shared pair by itself, every weight's DQ."""
    for point, readers in READERS.items():
        broken = dict.fromkeys(item for items in readers.values() for item in items)
        yield "pair", point, tuple(readers), tuple(broken)
        if len(readers) > 1:
            for reader, items in readers.items():
                yield "reader", point, (reader,), tuple(items)
    for linear in LINEARS:
        yield "weight", f"{linear}.weight_quantizer", (f"{linear}.MatMul",), ((LINEAR, f"{linear}.MatMul"),)


REMOVALS = list(removals())


def remove(model: onnx.ModelProto, layer: int, kind: str, point: str, readers: tuple[str, ...]) -> onnx.ModelProto:
    """The model without that quantization: readers take the float tensor, or a float weight."""
    prefix = f"bert.encoder.layer.{layer}."
    edited = onnx.ModelProto()
    edited.CopyFrom(model)
    nodes = {node.name: node for node in edited.graph.node}
    dequantized = nodes[f"{prefix}{point}.dequantize"].output[0]
    if kind == "weight":
        codes = next(t for t in edited.graph.initializer if t.name == nodes[f"{prefix}{point}.dequantize"].input[0])
        weight = onnx.numpy_helper.to_array(codes).astype("float32")
        edited.graph.initializer.append(onnx.numpy_helper.from_array(weight, "float_weight"))
        source = "float_weight"
    else:
        source = nodes[f"{prefix}{point}.quantize"].input[0]
    changed = 0
    for reader in readers:
        inputs = nodes[prefix + reader].input
        for index, tensor in enumerate(inputs):
            if tensor == dequantized:
                inputs[index] = source
                changed += 1
    assert changed == len(readers)
    del edited.graph.value_info[:]
    return edited


def test_the_removals_cover_every_pair_and_weight_of_the_layer(model: onnx.ModelProto) -> None:
    prefix = "bert.encoder.layer.0."
    points = {n.name.removesuffix(".dequantize") for n in model.graph.node if n.op_type == "DequantizeLinear"}
    assert {prefix + point for _, point, _, _ in REMOVALS} == {name for name in points if name.startswith(prefix)}
    readers = {
        (node.name, tensor.removesuffix(".dequantize"))
        for node in model.graph.node
        for tensor in node.input
        if tensor.startswith(prefix) and tensor.endswith("input_quantizer.dequantize")
    }
    assert {(prefix + r, prefix + p) for p, named in READERS.items() for r in named} == readers


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize(("kind", "point", "readers", "broken"), REMOVALS)
def test_exactly_the_broken_fusion_is_reported(
    layer: int,
    kind: str,
    point: str,
    readers: tuple[str, ...],
    broken: tuple[tuple[str, str], ...],
    model: onnx.ModelProto,
) -> None:
    prefix = f"bert.encoder.layer.{layer}."
    report = lint(remove(model, layer, kind, point, readers), "trt11", 75)
    found = [(finding.rule, finding.nodes[0]) for finding in report.findings if finding.rule != "QDQ-N304"]
    assert sorted(found) == sorted((rule, prefix + node) for rule, node in broken)
    assert not report.of("error")
    assert {finding.rule for finding in report.of("note")} <= {SKIP, ADD, "QDQ-N304"}
    for finding in report.of("performance"):
        if finding.rule == ATTENTION:
            assert finding.reason.endswith(MISSING[point])
    assert changes(model, report.layers) == {prefix + node for _, node in broken}


def changes(model: onnx.ModelProto, layers: tuple[FusedLayer, ...]) -> set[str]:
    """Names of the layers whose kind or precision is no longer that of the whole graph."""
    before = {layer.name: (layer.kind, layer.precision) for layer in fusion_map(model)}
    after = {layer.name: (layer.kind, layer.precision) for layer in layers}
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def test_the_full_placement_fuses_everything(model: onnx.ModelProto, edited: Callable[..., onnx.ModelProto]) -> None:
    report = lint(model, "trt11", 75)
    assert not report.of("error")
    assert not report.of("performance")
    layers = report.layers
    assert [(a.layer, a.kind, a.heads, a.head_size) for a in layers if "attention" in a.kind] == [
        (0, "int8_fused_attention", 2, 16),
        (1, "int8_fused_attention", 2, 16),
    ]
    linears = [layer for layer in layers if layer.role]
    assert {layer.kind for layer in linears} == {"int8_gemm"}
    roles = ["query", "key", "value", "attention_output", "ffn_up", "ffn_down"]
    assert [(layer.layer, layer.role) for layer in linears] == [(number, role) for number in (0, 1) for role in roles]
    assert [(layer.k, layer.n) for layer in linears[:6]] == [(32, 32)] * 4 + [(32, 64), (64, 32)]
    assert [layer.epilogue for layer in linears[3:6]] == [
        ("bias", "quantize"),
        ("bias", "gelu", "quantize"),
        ("bias", "quantize"),
    ]
    assert {layer.precision for layer in layers if layer.kind == "residual_add"} == {"int8"}
    assert fusion_map(model) == layers
    assert fusion_map(edited())[0].kind == "layer_norm"
