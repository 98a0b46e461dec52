"""Kernels: predicted from layers by the compiler's rules, or read from what it builds; both say nearly the same."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from engines.estimate import compiled_kernels, estimate, find_device
from engines.estimate.compiled import kernel_ops
from engines.estimate.kernels import graph_ops
from engines.estimate.model import load_coefficients, setting, total_ms
from engines.estimate.workload import ENCODERS, Encoder, LayerRecord, Op, encoder_layers
from engines.tensorrt_rtx import Compiler, Kernel, Shapes, Tensor, missing
from export.lint import fusion_map
from qdq.errors import ConfigError
from qdq.studies.estimate.forms import FLOAT16, LOWERED, NARROW, Form, Network, write_network
from qdq.studies.estimate.lowering import CODES, FEW_ROWS, LOWERING, MERGED, SHARED
from qdq.studies.estimate.networks import COMPILED, FORMS, compile_network, kept_kernels

SMALL = Encoder(4, 128, 2, 512)
T4 = setting(find_device("t4"), load_coefficients())


@pytest.fixture(scope="module")
def compiler() -> Iterator[Compiler]:
    if (reason := missing()) is not None:
        pytest.skip(reason)
    with Compiler() as started:
        yield started


def base(precision: str = "int8") -> tuple[LayerRecord, ...]:
    return encoder_layers(ENCODERS["bert-base"], precision)


def gemm(name: str, precision: str = "int8", k: int = 384, n: int = 384, *, one_row: bool = False) -> LayerRecord:
    kind = "int8_gemm" if precision == "int8" else "float_gemm"
    return LayerRecord(kind, name, precision, k, n, one_row=one_row)


ATTENTION = LayerRecord("int8_fused_attention", "l.0.self", "int8", heads=12, head_size=32)


# ---- from layers to kernels ----


def test_qkv_is_one_gemm_unless_one_of_them_is_float() -> None:
    one = graph_ops([gemm("l.0.self.query"), gemm("l.0.self.key"), gemm("l.0.self.value"), ATTENTION], 2, 16)
    assert [(op.kind, op.name, op.n) for op in one if op.multiplies] == [
        ("int8_gemm", "l.0.self.qkv", 3 * 384),
        ("int8_fused_attention", "l.0.self", 16),
    ]
    mixed = [gemm("l.0.self.query"), gemm("l.0.self.key", "float16"), gemm("l.0.self.value"), ATTENTION]
    assert [op.n for op in graph_ops(mixed, 2, 16) if op.kind.endswith("gemm")] == [384, 384, 384]


def test_heads_take_a_kernel_each_unless_the_graph_has_one_product() -> None:
    three = graph_ops([gemm("query"), gemm("key"), gemm("value"), ATTENTION], 2, 16)
    [merged] = [op for op in graph_ops([gemm("qkv", n=3 * 384), ATTENTION], 2, 16) if op.kind == "transpose"]
    apart = [op for op in three if op.kind == "transpose"]
    assert [op.sharing for op in apart] == [3, 3, 3]
    # FP16 in, INT8 out, whoever does it.
    assert merged.activation_bytes == sum(op.activation_bytes for op in apart) == 2 * 16 * 3 * 384 * (2 + 1)


def test_gelu_is_a_kernel_behind_an_int8_gemm_alone() -> None:
    def gelus(precision: str) -> int:
        layers = [gemm("up", precision, 384, 1536), gemm("down", precision, 1536, 384)]
        return sum(op.kind == "gelu" for op in graph_ops(layers, 2, 16))

    assert (gelus("int8"), gelus("float16")) == (1, 0)


def test_linter_spellings_are_understood() -> None:
    theirs = [
        replace(layer, kind={"residual": "residual_add", "layernorm": "layer_norm"}.get(layer.kind, layer.kind))
        for layer in base()
    ]
    theirs = [replace(layer, precision="fp16" if layer.precision == "float16" else "int8") for layer in theirs]
    assert graph_ops(theirs, 4, 128) == graph_ops(base(), 4, 128)


def test_unfused_attention_writes_its_scores() -> None:
    fused = LayerRecord("float_fused_attention", "a", "float16", heads=12, head_size=64)
    [one], three = graph_ops([fused], 8, 128), graph_ops([replace(fused, kind="unfused")], 8, 128)
    assert [op.kind for op in three] == ["float_gemm", "softmax", "float_gemm"]
    scores = 2 * 8 * 12 * 128 * 128  # bytes; four times written or read
    assert sum(op.activation_bytes for op in three) - one.activation_bytes == 4 * scores
    assert sum(op.operations for op in three) == one.operations == 2 * 2 * 8 * 12 * 128 * 128 * 64


def test_a_float_residual_makes_its_producer_write_more() -> None:
    layers = list(base())
    index = next(i for i, layer in enumerate(layers) if layer.kind == "residual" and ".5." in layer.name)
    layers[index] = replace(layers[index], precision="float16")
    changed = [
        (op.name, new.activation_bytes - op.activation_bytes)
        for op, new in zip(graph_ops(base(), 1, 128), graph_ops(layers, 1, 128), strict=True)
        if op != new
    ]
    values = 128 * 768
    assert changed == [
        ("encoder.layer.4.output.norm", 2 * values),  # its result in FP16 beside the INT8 one
        ("encoder.layer.5.attention.norm", values),  # reads the wider skip
    ]


def test_one_row_of_every_text_behind_the_choice_of_a_token() -> None:
    head = [gemm("pooler", "float16", 768, 768, one_row=True), gemm("classifier", "float16", 768, 2, one_row=True)]
    ops = graph_ops([*base()[:-1], *head], 4, 128)
    assert [op.m for op in ops if op.kind == "float_gemm"] == [4, 4]
    # The LayerNorm before the choice leaves centred values in FP32 to a second kernel.
    assert [op.kind for op in ops[-6:-4]] == ["layernorm", "layernorm"]


# ---- from the compiler's kernels ----


def tensor(type: str, *shape: int) -> Tensor:
    return Tensor("t", type, shape)


TOKENS = tensor("int8", 8, 16, 32)
KEYS, WIDE_MASK = tensor("int8", 8, 32, 16), tensor("fp16", 8, 4, 16, 16)
CASES = {
    "projections": (
        "gemm",
        [tensor("int8", 80, 64)],
        [tensor("fp32", 1), tensor("int8", 64, 192)],
        [tensor("fp16", 80, 192)],
        ["layer.0.query.MatMul", "layer.0.key.MatMul", "layer.0.value.MatMul"],
        Op("int8_gemm", "layer.0.qkv", "int8", 80, 192, 64, 1, 64 * 192 + 4, 80 * (64 + 2 * 192)),
    ),
    "scores": (
        "gemm",
        [tensor("fp16", 8, 16, 32), tensor("fp16", 8, 32, 16)],
        [],
        [tensor("fp16", 8, 16, 16)],
        ["a.MatMul"],
        Op("float_gemm", "a.MatMul", "float16", 16, 16, 32, 8, 0, 2 * 8 * 16 * (32 + 32 + 16)),
    ),
    "attention with a wide mask": (
        "attention",
        [TOKENS, KEYS, WIDE_MASK, TOKENS],
        [],
        [TOKENS],
        ["a.MatMul", "a.Softmax"],
        Op("int8_fused_attention", "a.Softmax", "int8", 16, 16, 32, 16, 0, 4 * 8 * 16 * 32 + 2 * 8 * 4 * 16 * 16),
    ),
    "layernorm": (
        "layernorm",
        [tensor("int64", 4, 16)],
        [],
        [tensor("fp16", 4, 16, 8), tensor("int8", 4, 16, 8)],
        [],
        Op("layernorm", "n", "float16", activation_bytes=4 * 16 * (8 + 16 + 8)),
    ),
}


@pytest.mark.parametrize(("kind", "inputs", "constants", "outputs", "nodes", "expected"), CASES.values(), ids=CASES)
def test_a_kernel_becomes_work(
    kind: Any,
    inputs: list[Tensor],
    constants: list[Tensor],
    outputs: list[Tensor],
    nodes: list[str],
    expected: Op,
) -> None:
    kernel = Kernel("n", kind, tuple(inputs), tuple(constants), tuple(outputs), tuple(nodes))
    assert kernel_ops([kernel]) == (expected,)


def test_attention_that_reads_int8_may_multiply_fp16() -> None:
    def attention(*instructions: str) -> Op:
        kernel = Kernel("m", "attention", (TOKENS, KEYS, TOKENS), (), (TOKENS,), ("a.Softmax",), None, instructions)
        return kernel_ops([kernel])[0]

    assert attention("Turing_imma_int8_int32_traits", "Turing_imma_int8_int32_traits").precision == "int8"
    wide = attention("Turing_imma_int8_int32_traits", "Turing_hmma_fp16_traits")
    assert (wide.kind, wide.precision) == ("float_fused_attention", "float16")


def test_a_type_without_a_rate_is_named() -> None:
    kernel = Kernel("g", "gemm", (tensor("fp8", 8, 8),), (tensor("fp8", 8, 8),), (tensor("fp16", 8, 8),), ("a.MatMul",))
    with pytest.raises(ConfigError, match="no rate of fp8 is known; give a graph of INT8, FP16"):
        kernel_ops([kernel])


# ---- with the compiler itself ----


@pytest.mark.parametrize(
    "form",
    [FLOAT16, LOWERED, MERGED, SHARED, CODES, FEW_ROWS, replace(SHARED, attention=""), NARROW],
    ids=["fp16", "point by point", "merged", "shared skip", "codes", "few rows", "float attention", "published"],
)
def test_predicted_and_compiled_kernels_give_one_estimate(compiler: Compiler, form: Form, tmp_path: Path) -> None:
    path = write_network(Network(SMALL, form, 8), SMALL.layers, tmp_path / "m.onnx")
    ops = kernel_ops(compiler.compile(path, (75,), Shapes.fixed(8, 128)).kernels)
    predicted = graph_ops(fusion_map(onnx.load(path), 75, 128), 8, 128)
    assert len(predicted) == pytest.approx(len(ops), abs=3)
    assert total_ms(predicted, T4) == pytest.approx(total_ms(ops, T4), rel=0.02)
    assert sum(op.operations for op in predicted) == pytest.approx(sum(op.operations for op in ops), rel=0.002)


def test_a_report_says_where_its_kernels_come_from(compiler: Compiler, tmp_path: Path) -> None:
    path = write_network(Network(SMALL, SHARED, 8), 2, tmp_path / "m.onnx")
    layers = fusion_map(onnx.load(path), 75, 128)
    found = compiled_kernels(path, find_device("t4"), 8, 128)
    report = estimate(layers, "t4", 8, 128, found)
    assert report["kernels"]["from"] == "compiled"
    assert report["kernels"]["about"] == f"TensorRT for RTX {compiler.version}, compute capability 7.5"
    assert report["kernels"]["count"] == len(report["layers"]) == len(found.ops)
    assert report["estimate_ms"]["lowered"] == pytest.approx(total_ms(found.ops, T4), abs=1e-3)
    assert json.loads(json.dumps(report)) == report
    # The H200 has no compute capability of its own in this compiler: the nearest below it.
    assert compiled_kernels(path, find_device("h200"), 8, 128).about.endswith("compute capability 8.9")


def test_a_graph_that_cannot_be_compiled_is_predicted_and_says_why(compiler: Compiler, tmp_path: Path) -> None:
    path = write_network(Network(SMALL, FLOAT16, 8), 1, tmp_path / "m.onnx")
    found = compiled_kernels(path, find_device("t4"), 40, 128)
    assert found.ops == () and found.about == "the graph is made for 8 x 128, not for 40 x 128"
    model = onnx.load(path)
    [softmax] = [node for node in model.graph.node if node.op_type == "Softmax"]
    softmax.op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "refused.onnx")
    refused = compiled_kernels(tmp_path / "refused.onnx", find_device("t4"), 8, 128)
    assert refused.ops == () and "NoSuchOperator" in refused.about


def test_without_the_compiler_the_reason_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("engines.tensorrt_rtx.libraries.missing", lambda: "not installed: pip install it")
    path = write_network(Network(SMALL, FLOAT16, 8), 1, tmp_path / "m.onnx")
    found = compiled_kernels(path, find_device("t4"), 8, 128)
    assert found.ops == () and found.about == "not installed: pip install it"
    assert estimate(base(), "t4", 8, 128, found)["kernels"]["from"] == "predicted"


@pytest.mark.parametrize("form", [FLOAT16, FEW_ROWS], ids=["fp16", "few rows"])
def test_one_middle_layer_stands_for_all(compiler: Compiler, form: Form, tmp_path: Path) -> None:
    path = write_network(Network(SMALL, form, 2), 7, tmp_path / "m.onnx")
    whole = kernel_ops(compiler.compile(path, (75, 80), Shapes.fixed(2, 128)).kernels)
    expanded = compile_network(compiler, Network(SMALL, form, 2)).of(7)
    assert Counter(replace(op, name="") for op in expanded) == Counter(replace(op, name="") for op in whole)


@pytest.mark.slow
@pytest.mark.parametrize("precision", FORMS)
def test_kept_kernels_are_what_the_compiler_builds(compiler: Compiler, precision: str) -> None:
    kept = kept_kernels()["bert-base", 1, 128, precision]
    network = Network(ENCODERS["bert-base"], FORMS[precision], 1, head="spans")
    found = compile_network(compiler, network)
    for ours, theirs in ((kept.middle, found.middle), (kept.others, found.others)):
        assert Counter(ours) == Counter(replace(op, name=op.kind) for op in theirs)


def test_every_tensor_of_the_nearest_form_is_int8() -> None:
    """As the plugins of the published networks exchange them: one byte per value, but for the mask and the head."""
    kernels = kept_kernels()["bert-base", 40, 128, "int8"]
    tokens = 40 * 128 * 768
    moved = sum(op.activation_bytes for op in kernels.middle)
    # q, k, v: 4 + 6 (split) + 4; output 2 + 3; feed-forward 5 + 8 (GELU) + 5 + 3.
    assert moved == pytest.approx(tokens * (4 + 6 + 4 + 2 + 3 + 5 + 8 + 5 + 3), rel=0.001)
    assert NARROW.narrow and len(kernels.of(12)) == len(kernels.others) + len(kernels.middle) * (12 - COMPILED + 1)


def test_changes_of_the_lowering_pay() -> None:
    result = json.loads(LOWERING.read_text(encoding="utf-8"))
    for rows in result["steps"].values():
        found = {row["form"]: row for row in rows}
        before, after = found["INT8, scales per channel"], found["+ needed rows"]
        assert after["estimate_ms"] < before["estimate_ms"] < found["FP16"]["estimate_ms"]
        assert (before["layer_kernels"], after["layer_kernels"]) == (11, 9)
        ratio = found["+ scale per tensor, ratio behind"]
        assert {key: value for key, value in ratio.items() if key != "form"} == {
            key: value for key, value in before.items() if key != "form"
        }  # it is there for accuracy
    wide = {row["form"]: row["estimate_ms"] for row in result["attention"]["BERT-base, heads of 48"]}
    assert wide["float"] < wide["INT8"] < wide["q and k alone INT8"]
