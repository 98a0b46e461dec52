"""Which multiplications of a plan run in INT8, read back from the engine inspector's JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines import tensorrt
from engines.tensorrt import read_back
from engines.types import MatmulNames, NotInt8
from qdq.errors import BuildError, DeployError

from .trt_layers import Tensor, in_11, layer


def tensor(name: str, datatype: str, *sizes: int) -> Tensor:
    return name, datatype, sizes


def gemm(node: str, datatype: str, tactic: str = "") -> dict[str, Any]:
    scalars = [tensor("alpha", "Float", 1), tensor("bias", "Float", 1, 1, 384)]
    return layer(f"{node}_myl0_3", "gemm", [node], [tensor("x", datatype, -1, -1, 384), *scalars], tactic=tactic)


def attention(nodes: list[str], *datatypes: str) -> dict[str, Any]:
    inputs = [tensor(name, datatype, -1, 12, -1, 32) for name, datatype in zip("qkvm", datatypes, strict=False)]
    return layer("_gemm_mha_v2_myl0_17", "kgen", [*nodes, "softmax"], inputs, tactic="_gemm_mha_v2_0x957a2fe2")


LINEARS = [f"encoder.layer.0.{name}/MatMul" for name in ("query", "key", "value", "output", "up", "down")]
MATMULS = ["encoder.layer.0.attention/qk", "encoder.layer.0.attention/av"]
ENGINE: dict[str, Any] = {
    "Layers": [
        layer("Reformatting CopyNode", "Reformat", [LINEARS[3]], [tensor("x", "Half", -1, -1, 384)]),
        layer(
            "key+query+value_myl0_1",
            "gemm",
            LINEARS[:3],
            [tensor("x", "Int8", -1, -1, 384)],
            tactic="sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize128x128x64_stage3",
        ),
        attention(MATMULS, "Int8", "Int8", "Int8", "Half"),
        gemm(LINEARS[3], "Row major Int8 format"),
        gemm(LINEARS[4], "Half", "sm75_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize64x64x32"),
        layer("down_myl0_9", "kgen", [LINEARS[5]], [tensor("x", "Int8", -1, 1536), tensor("r", "Half", -1, 384)]),
        gemm("pooler/MatMul", "Float"),
    ],
    "Bindings": ["input_ids", "logits"],
}


def names(linears: list[str], matmuls: list[str], *floats: NotInt8) -> MatmulNames:
    return MatmulNames(tuple(linears), tuple(matmuls), floats)


@pytest.mark.parametrize("layer_info", [ENGINE, in_11(ENGINE)], ids=["10.x", "11.x"])
def test_precision_is_read_in_both_spellings(layer_info: dict[str, Any]) -> None:
    pooler = NotInt8("pooler/MatMul", "float by default")
    report = read_back(layer_info, names(LINEARS, MATMULS, pooler))
    assert report.encoder_linear == (5, 6)
    assert report.attention_matmul == (2, 2)
    # the fused attention says nothing of the probabilities; the last kernel also takes a float matrix (a residual)
    assert report.inferred == (LINEARS[5], *MATMULS)
    assert [item.name for item in report.not_int8] == [LINEARS[4], "pooler/MatMul"]
    reason = report.not_int8[0].reason
    assert "takes half" in reason
    assert "sm75_xmma_gemm_f16f16" in reason


def test_a_linear_that_reads_back_float_is_reported() -> None:
    for datatype in ("Half", "Float", "BF16", "Row major linear FP16 format", "N/A due to dynamic shapes"):
        report = read_back({"Layers": [gemm("l0", datatype)]}, names(["l0"], []))
        assert report.encoder_linear == (0, 1), datatype
        assert report.not_int8[0].name == "l0"


def test_weights_alone_in_int8_do_not_count() -> None:
    inputs = [tensor("x", "Half", -1, -1, 384), tensor("weight", "Int8", 384, 384)]
    report = read_back({"Layers": [layer("l0", "gemm", ["l0"], inputs)]}, names(["l0"], []))
    assert report.encoder_linear == (0, 1)
    assert "takes half, int8" in report.not_int8[0].reason


@pytest.mark.parametrize("types", [("Half",) * 4, ("Int8", "Int8", "Half", "Half"), ("Int8", "Half")])
def test_fused_attention_counts_only_when_all_operands_are_int8(types: tuple[str, ...]) -> None:
    report = read_back({"Layers": [attention(MATMULS, *types)]}, names([], MATMULS))
    assert report.attention_matmul == (0, 2)
    assert report.inferred == ()
    assert "not all INT8" in report.not_int8[0].reason


def test_unfused_attention_matmuls_are_read_each() -> None:
    operands = [tensor("a", "Int8", -1, 12, -1, 32), tensor("b", "Int8", -1, 12, -1, 32)]
    half = [tensor("a", "Half", -1, 12, -1, 32), tensor("b", "Int8", -1, 12, -1, 32)]
    layers = [layer("qk", "gemm", [MATMULS[0]], operands), layer("av", "gemm", [MATMULS[1]], half)]
    report = read_back({"Layers": layers}, names([], MATMULS))
    assert report.attention_matmul == (1, 2)
    assert report.inferred == ()


def test_names_stand_in_for_missing_metadata() -> None:
    """Without metadata Myelin's kernel names are the trace: joined by "+", dots turned to "_", a suffix added."""
    fused = layer(
        "encoder_layer_0_query/MatMul+encoder_layer_0_key/MatMul_myl0_16", "gemm", [], [tensor("x", "Int8", -1, 384)]
    )
    assert read_back({"Layers": [fused]}, names(LINEARS[:2], [])).encoder_linear == (2, 2)


def test_what_the_engine_does_not_name_is_not_counted() -> None:
    block = layer("{ForeignNode[a...b]}", "Myelin", [], [tensor("input_ids", "Int64", -1, -1)])
    assert "hidden in the block" in read_back({"Layers": [block]}, names(["l0"], [])).not_int8[0].reason
    assert read_back({"Layers": []}, names(["l0"], [])).not_int8 == (NotInt8("l0", "no engine layer names 'l0'"),)


def test_layer_information_without_types_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="build with DETAILED profiling verbosity"):
        read_back({"Layers": ["l0 + relu"]}, names(["l0"], []))
    path = tmp_path / "layer_info.json"
    with pytest.raises(DeployError, match="does not exist"):
        tensorrt.load_layer_info(path)
    path.write_text('{"layers": 3}')
    with pytest.raises(BuildError, match="has no list of layers"):
        tensorrt.load_layer_info(path)
