"""Engine inspection: the layer table, and the verdict on an engine against what was predicted for it.

The layers are written from NVIDIA's description of the inspector's JSON, in the spelling of TensorRT 10 and of 11; no
engine was at hand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.tensorrt import inspect_command, verdict
from engines.tensorrt.comparison import MOVE_KERNEL, Coverage
from qdq.errors import BuildError, ConfigError, DeployError

from .trt_layers import Tensor, in_11, layer, tensors

BLOCK = "encoder.layer.0"
SELF, OUT = f"{BLOCK}.attention.self", f"{BLOCK}.attention.output"
LINEARS = [f"{SELF}.{name}.MatMul" for name in ("query", "key", "value")]
DENSE, UP, DOWN = f"{OUT}.dense.MatMul", f"{BLOCK}.intermediate.dense.MatMul", f"{BLOCK}.output.dense.MatMul"
SOFTMAX, QK, PV = f"{SELF}.Softmax", f"{SELF}.MatMul", f"{SELF}.MatMul_1"
ADD_1, ADD_2 = f"{OUT}.Add", f"{BLOCK}.output.Add"
HIDDEN, HEADS, WIDE = (-1, -1, 384), (-1, 12, -1, 32), (-1, -1, 1536)

Layers = dict[str, dict[str, Any]]


class Predicted(NamedTuple):
    """A record of a fusion map."""

    kind: str
    name: str
    precision: str


PREDICTED = [
    *(Predicted("int8_gemm", name, "int8") for name in (*LINEARS, DENSE, UP, DOWN)),
    Predicted("int8_fused_attention", SOFTMAX, "int8"),
    Predicted("residual_add", ADD_1, "int8"),
    Predicted("residual_add", ADD_2, "int8"),
    Predicted("layer_norm", f"{OUT}.LayerNorm.LayerNormalization", "fp16"),
    Predicted("float_gemm", "pooler.dense.MatMul", "fp16"),
]


def gemm(nodes: list[str], reads: Tensor, writes: Tensor, *more: Tensor) -> Any:
    """A GEMM of a kernel library that says in its tactic what it multiplies."""
    width = reads[2][-1]
    weight = ("weight", reads[1], (width, writes[2][-1]))
    operands = "i8i8_i8i32" if reads[1] == "Int8" else "f16f16_f16f32"
    name = "+".join(node.replace(".", "_") for node in nodes) + "_myl0_1"
    return layer(name, "gemm", nodes, [reads, weight, *more], [writes], f"sm75_xmma_gemm_{operands}_f32_tn_n_tile")


def engine() -> Layers:
    """One encoder layer as predicted, by short names, in execution order."""
    quantizers = [f"{SELF}.query.input_quantizer.quantize"]
    skip, inner = ("h0_q", "Int8", HIDDEN), ("up", "Int8", WIDE)
    return {
        "embed": layer(
            "__myl_GathAddMeanMulRounCast_myl0_0",
            "kgen",
            ["embeddings.LayerNorm.LayerNormalization", *quantizers],
            [("input_ids", "Int32", (-1, -1)), ("table", "Half", (30522, 384))],
            [skip],
        ),
        "qkv": gemm(LINEARS, skip, ("qkv", "Int8", (-1, -1, 1152))),
        "attention": layer(
            "_gemm_mha_v2_myl0_2",
            "kgen",
            [QK, SOFTMAX, PV, f"{SELF}.matmul_v_input_quantizer.quantize"],
            [*((name, "Int8", HEADS) for name in "qkv"), ("mask", "Half", (-1, 1, 1, -1))],
            [("context", "Int8", HIDDEN)],
            "_gemm_mha_v2_0x5f1d2ab49d03a2c14b4e0e7e32b5ce80",
        ),
        "dense": gemm([DENSE, ADD_1], ("context", "Int8", HIDDEN), ("sum", "Half", HIDDEN), skip),
        "up": gemm([UP, f"{BLOCK}.intermediate.intermediate_act_fn.Gelu"], ("h1", "Int8", HIDDEN), inner),
        "down": gemm([DOWN, ADD_2], inner, ("sum2", "Half", HIDDEN), ("h1", "Int8", HIDDEN)),
        "pooler": gemm(["pooler.dense.MatMul"], ("first", "Half", (-1, 384)), ("logits", "Half", (-1, 384))),
        "result": layer(
            "Reformatting CopyNode for Output Tensor 0",
            "Reformat",
            [],
            [("logits", "Half", (-1, 384))],
            [("sentence_embedding", "Float", (-1, 384))],
        ),
    }


def in_10(layers: Layers) -> dict[str, Any]:
    return {"Layers": list(layers.values()), "Bindings": ["input_ids", "sentence_embedding"]}


SPELLINGS = pytest.mark.parametrize("spell", [in_10, lambda layers: in_11(in_10(layers))], ids=["10.x", "11.x"])
Spell = Callable[[Layers], dict[str, Any]]


def retyped(described: Mapping[str, Any], old: str, new: str, tactic: str = "") -> dict[str, Any]:
    """A layer with one data type replaced, and its tactic."""
    changed: dict[str, Any] = json.loads(json.dumps(described))
    for one in changed["Inputs"] + changed["Outputs"]:
        one["Format/Datatype"] = one["Format/Datatype"].replace(old, new)
    return changed | {"TacticName": tactic}


# --- table ----------------------------------------------------------------------------------------------------------


@SPELLINGS
def test_table_lists_every_layer(spell: Spell, written: Callable[[Any], Path]) -> None:
    rows = json.loads(inspect_command(written(spell(engine())), format="json")[0])["layers"]
    assert len(rows) == 8
    attention = rows[2]
    assert attention["layer"] == "_gemm_mha_v2_myl0_2" and attention["kind"] == "kgen"
    assert attention["inputs"] == ["int8", "int8", "int8", "fp16"] and attention["outputs"] == ["int8"]
    assert attention["nodes"][:3] == [QK, SOFTMAX, PV]
    assert attention["tactic"].startswith("_gemm_mha_v2_0x")
    assert rows[-1]["outputs"] == ["fp32"]
    assert rows[1]["nodes"] == LINEARS


def test_older_phrases_for_types_are_read(written: Callable[[Any], Path]) -> None:
    described = layer("l0", "CaskGemm", ["l0"], [("x", "Row major Int8 format", HIDDEN)], [("y", "N/A", ())])
    told = json.loads(inspect_command(written({"Layers": [described]}), format="json")[0])
    assert told["layers"] == [
        {"layer": "l0", "kind": "CaskGemm", "tactic": "", "inputs": ["int8"], "outputs": ["unknown"], "nodes": ["l0"]}
    ]


# --- verdict --------------------------------------------------------------------------------------------------------


@SPELLINGS
def test_an_engine_as_predicted(spell: Spell) -> None:
    judged = verdict(spell(engine()), PREDICTED)
    assert judged.differences == ()
    assert judged.as_predicted
    assert judged.coverage == (
        Coverage("INT8 GEMM", 6, 6),
        Coverage("INT8 fused attention", 1, 1),
        Coverage("INT8 residual add", 2, 2),
    )


@SPELLINGS
def test_a_float_gemm_is_named(spell: Spell) -> None:
    layers = engine()
    layers["up"] = retyped(layers["up"], "Int8", "Half", "sm75_xmma_gemm_f16f16_f16f32_f32_tn_n")
    judged = verdict(spell(layers), PREDICTED)
    (difference,) = judged.differences
    assert (difference.kind, difference.name, difference.predicted) == ("gemm", UP, "INT8 GEMM")
    assert difference.found.startswith("runs in FP16: engine layer 'encoder_layer_0_intermediate")
    assert judged.coverage[0] == Coverage("INT8 GEMM", 5, 6)


def test_a_gemm_better_than_predicted_differs_too() -> None:
    predicted = [Predicted("float_gemm", DENSE, "fp16")]
    (difference,) = verdict(in_10(engine()), predicted).differences
    assert (difference.predicted, difference.found[:12]) == ("FP16 GEMM", "runs in INT8")


def test_separate_attention_kernels_are_named() -> None:
    layers = engine()
    scores = [("scores", "Half", (-1, 12, -1, -1))]
    layers["attention"] = layer(
        "qk_myl0_2", "gemm", [QK], [("q", "Int8", HEADS), ("k", "Int8", HEADS)], scores, "sm75_xmma_gemm_i8i8_i8i32_f32"
    )
    layers["softmax"] = layer(
        "__myl_MaxSubExpSumDiv_myl0_3", "kgen", [SOFTMAX], scores, [("p", "Int8", (-1, 12, -1, -1))]
    )
    (difference,) = verdict(in_10(layers), PREDICTED).differences
    assert (difference.kind, difference.name) == ("attention", SOFTMAX)
    assert difference.predicted == "one fused attention in INT8"
    assert difference.found == "separate kernels, the softmax in engine layer '__myl_MaxSubExpSumDiv_myl0_3'"


@SPELLINGS
def test_an_attention_fused_in_float_is_named(spell: Spell) -> None:
    layers = engine()
    layers["attention"] = retyped(layers["attention"], "Int8", "Half", "_gemm_mha_v2_0x0")
    judged = verdict(spell(layers), PREDICTED)
    (difference,) = judged.differences
    assert difference.found.startswith("fused in float: engine layer '_gemm_mha_v2_myl0_2' takes half, half")
    assert judged.coverage[1] == Coverage("INT8 fused attention", 0, 1)
    assert verdict(spell(layers), [Predicted("float_fused_attention", SOFTMAX, "fp16")]).as_predicted
    assert not verdict(spell(layers), [Predicted("unfused", SOFTMAX, "fp16")]).as_predicted


def test_a_fused_kernel_without_a_telling_name_is_known_by_its_nodes() -> None:
    layers = engine()
    layers["attention"] |= {"Name": "__myl_fc_0x77", "TacticName": "__myl_fc_0x77"}
    assert verdict(in_10(layers), PREDICTED).as_predicted
    layers["attention"]["Metadata"] = f"[ONNX Layer: {QK}][ONNX Layer: {SOFTMAX}]"  # one multiplication only
    assert [item.kind for item in verdict(in_10(layers), PREDICTED).differences] == ["attention"]


@SPELLINGS
def test_a_float_residual_is_named(spell: Spell) -> None:
    layers = engine()
    skip = layers["down"]["Inputs"][-1]
    layers["down"]["Inputs"][-1] = skip | {"Format/Datatype": "Half"}
    judged = verdict(spell(layers), PREDICTED)
    (difference,) = judged.differences
    assert (difference.kind, difference.name) == ("residual", ADD_2)
    assert difference.found.startswith("a float residual: engine layer")
    assert judged.coverage[2] == Coverage("INT8 residual add", 1, 2)
    assert verdict(spell(layers), [Predicted("residual_add", ADD_2, "fp16")]).as_predicted  # as a float one it is fine


def test_float_weights_biases_and_masks_are_no_residuals() -> None:
    layers = engine()
    floats = [("bias", "Half", (1, 1, 384)), ("gamma", "Half", (384,)), ("table", "Half", (384, 1536))]
    layers["down"]["Inputs"] += tensors(*floats)
    assert verdict(in_10(layers), PREDICTED).as_predicted


@SPELLINGS
@pytest.mark.parametrize(
    ("name", "kind", "nodes"),
    [
        ("Reformatting CopyNode for Input Tensor 0 to dense", "Reformat", [DENSE]),
        ("__myl_MoveTran_myl0_9", "kgen", [f"{SELF}.Transpose_4"]),
        ("__myl_bb1_1_TraResMov", "kgen", [f"{SELF}.Reshape_3"]),
        ("__myl_MulRounClip_myl0_4", "kgen", [f"{BLOCK}.output.dense.input_quantizer.quantize"]),
        ("QuantizeLinear_12", "Scale", ["QuantizeLinear_12"]),
    ],
)
def test_an_extra_copy_is_named(name: str, kind: str, nodes: list[str], spell: Spell) -> None:
    layers = engine()
    layers["extra"] = layer(name, kind, nodes, [("context", "Half", HIDDEN)], [("context_q", "Int8", HIDDEN)])
    (difference,) = verdict(spell(layers), PREDICTED).differences
    assert (difference.kind, difference.name) == ("copy", name)
    assert difference.found == "copies or converts FP16 to INT8"


def test_copies_of_shapes_constants_and_engine_tensors_do_not_count() -> None:
    layers = engine()
    layers["ids"] = layer("cast", "Reformat", [], [("input_ids", "Int64", (-1, -1))], [("ids", "Int32", (-1, -1))])
    layers["shape"] = layer("__myl_Move_myl0_8", "kgen", [], [("s", "Int64", (3,))], [("t", "Int64", (3,))])
    layers["scale"] = layer("Reformatting CopyNode 2", "Reformat", [], [("a", "Half", (1,))], [("b", "Float", (1,))])
    layers["none"] = layer("shape_call", "NoOp", ["Shape_1"], [("h", "Half", HIDDEN)], [("n", "Int64", (3,))])
    assert verdict(in_10(layers), PREDICTED).as_predicted


@given(st.lists(st.sampled_from(["Move", "Tran", "Resh", "Cast", "Copy", "Mov", "Tra", "Res"]), min_size=1, max_size=6))
def test_move_kernels_are_known_by_name_and_computing_ones_are_not(words: list[str]) -> None:
    assert MOVE_KERNEL.match(f"__myl_{''.join(words)}_myl0_7")
    for word in ("Add", "MaxSubExpSumDiv", "Mean", "Gath"):
        assert not MOVE_KERNEL.match(f"__myl_{''.join(words)}{word}_myl0_7")


def test_what_the_engine_does_not_name_is_a_difference() -> None:
    hidden = in_10({"all": layer("{ForeignNode[a...b]}", "Myelin", [], [("input_ids", "Int32", (-1, -1))], [])})
    judged = verdict(hidden, PREDICTED)
    assert len(judged.differences) == len(PREDICTED) - 1  # layer norms are not compared
    assert all("hidden in the block" in item.found for item in judged.differences)
    assert [item.running for item in judged.coverage] == [0, 0, 0]


def test_a_prediction_of_the_linter_is_taken_as_it_is(write_encoder: Callable[..., Path]) -> None:
    """The fusion map's records fit, and their names are the ONNX nodes the inspector names."""
    import onnx

    from export.lint import fusion_map

    predicted = fusion_map(onnx.load(write_encoder()))
    names = {layer.name for layer in predicted if layer.kind == "int8_gemm"}
    assert {DENSE, UP, DOWN, *LINEARS} <= names
    judged = verdict(in_10(engine()), predicted)
    assert judged.coverage[0] == Coverage("INT8 GEMM", 6, 6)
    assert "gemm" not in {item.kind for item in judged.differences}


# --- command --------------------------------------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path) -> Callable[[dict[str, Any]], Path]:
    def write(layer_info: dict[str, Any]) -> Path:
        path = tmp_path / "layer_info.json"
        path.write_text(json.dumps(layer_info))
        return path

    return write


@SPELLINGS
def test_text_fits_a_terminal_and_says_what_differs(spell: Spell, written: Callable[[Any], Path]) -> None:
    layers = engine()
    text, code = inspect_command(written(spell(layers)), PREDICTED)
    assert code == 0
    assert "  INT8 GEMM             6 of 6\n" in text
    assert "by q, k and v; the type of the probabilities inside never shows" in text
    assert text.endswith("as predicted\n")
    layers["up"] = retyped(layers["up"], "Int8", "Half", "sm75_xmma_gemm_f16f16_f16f32_f32_tn_n" + "_long" * 20)
    layers["x" * 200] = layer("__myl_Move_" + "x" * 200, "kgen" * 9, [], [("a", "Half", HIDDEN)] * 5, [])
    text, code = inspect_command(written(spell(layers)), PREDICTED)
    assert code == 1
    assert f"  multiplications in another precision: 1\n    {UP}\n" in text
    assert "predicted INT8 GEMM; runs in FP16" in text
    assert "layers that only copy or convert: 1" in text
    assert text.endswith("2 differences\n")
    assert max(map(len, text.splitlines())) <= 80


def test_without_a_prediction_there_is_only_the_table(written: Callable[[Any], Path]) -> None:
    text, code = inspect_command(written(in_10(engine())))
    assert code == 0
    assert text.splitlines()[0].split() == ["layer", "type", "input", "output"]
    assert "int8x3 fp16" in text
    assert text.endswith("8 engine layers\n")


def test_json_holds_layers_and_verdict(written: Callable[[Any], Path]) -> None:
    path = written(in_11(in_10(engine())))
    told = json.loads(inspect_command(path, PREDICTED, "json")[0])
    assert told["verdict"]["as_predicted"] is True
    assert told["verdict"]["coverage"][0] == {"kind": "INT8 GEMM", "running": 6, "predicted": 6}
    assert told["layers"][2]["inputs"] == ["int8", "int8", "int8", "fp16"]
    assert json.loads(inspect_command(path, format="json")[0])["verdict"] is None


def test_wrong_input_is_one_clear_error(written: Callable[[Any], Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--format: unknown value 'jsn'; did you mean 'json'"):
        inspect_command(tmp_path / "layer_info.json", format="jsn")
    with pytest.raises(DeployError, match="does not exist"):
        inspect_command(tmp_path / "layer_info.json")
    with pytest.raises(BuildError, match="build with DETAILED profiling verbosity"):
        inspect_command(written({"Layers": ["l0 + relu"]}))
