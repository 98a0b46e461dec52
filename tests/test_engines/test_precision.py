"""The INT8 report: what is counted, what is inferred, whose reason stands beside what is not INT8."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from engines.interface import interface
from engines.precision import Verdict, assemble, summary
from engines.tensorrt import TensorRTSettings, collect
from engines.types import Int8Report, MatmulNames, NotInt8, TensorInfo
from qdq.errors import BuildError

POOLER = NotInt8("pooler.MatMul", "pooler, outside the encoder blocks; float in this graph")
FLOAT = NotInt8("l.0.pv", "the placement quantizes neither operand")
NAMES = MatmulNames(linears=("l.0.q", "l.0.k", "l.0.up"), matmuls=("l.0.qk", "l.0.pv"), floats=(POOLER,))


def says(answers: dict[str, Verdict]) -> Any:
    return lambda name: answers.get(name, Verdict(True, False, ""))


def test_all_running() -> None:
    report = assemble(NAMES, says({}))
    assert report == Int8Report((3, 3), (2, 2), (POOLER,), ())
    assert summary(report) == "3 of 3 encoder linears and 2 of 2 attention matmuls run in INT8"


def test_the_engine_names_its_reason_and_floats_come_last() -> None:
    report = assemble(NAMES, says({"l.0.k": Verdict(False, False, "runs it as MatMul in f32")}))
    assert report.encoder_linear == (2, 3)
    assert report.not_int8 == (NotInt8("l.0.k", "runs it as MatMul in f32"), POOLER)


def test_a_fused_block_is_inferred_and_said_so() -> None:
    block = Verdict(True, True, "inside a block in i8")
    report = assemble(NAMES, says({"l.0.qk": block, "l.0.pv": block}))
    assert report.inferred == ("l.0.qk", "l.0.pv")
    assert summary(report) == (
        "3 of 3 encoder linears and 2 of 2 attention matmuls run in INT8 (2 of them read from a fused block)"
    )


@pytest.mark.parametrize("claim", [Verdict(True, True, "i8"), Verdict(True, False, "i8"), Verdict(False, True, "f32")])
def test_what_has_no_quantizers_is_not_int8_whatever_the_engine_claims(claim: Verdict) -> None:
    names = MatmulNames(NAMES.linears, NAMES.matmuls, NAMES.floats, (FLOAT,))
    report = assemble(names, says({"l.0.pv": claim}))
    assert report.attention_matmul == (1, 2)
    assert report.not_int8 == (FLOAT, POOLER)
    assert report.inferred == ()


def test_build_json_keeps_its_keys() -> None:
    report = assemble(NAMES, says({"l.0.q": Verdict(False, False, "f32")}))
    assert json.loads(json.dumps(report.as_json())) == {
        "encoder_linear": [2, 3],
        "attention_matmul": [2, 2],
        "not_int8": [{"name": "l.0.q", "reason": "f32"}, {"name": POOLER.name, "reason": POOLER.reason}],
        "inferred": [],
    }


def model(path: Path, shape: list[int | str | None]) -> Path:
    """A file with the interface of an encoder."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, shape)
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT16, ["batch", 2])
    graph = helper.make_graph([helper.make_node("Cast", ["input_ids"], ["logits"], to=10)], "g", [ids], [out])
    onnx.save(helper.make_model(graph), path)
    return path


def test_tensorrt_gives_the_placement_as_the_reason_too(tmp_path: Path) -> None:
    kernel = {
        "Name": "_gemm_mha_v2",
        "LayerType": "kgen",
        "Inputs": [{"Dimensions": [-1, 12, -1, 32], "Format/Datatype": kind} for kind in ("Int8", "Int8", "Half")],
        "Outputs": [],
        "TacticName": "_gemm_mha_v2_0x957a2fe2",
        "Metadata": "[ONNX Layer: l.0.qk]\x1f[ONNX Layer: l.0.pv]",
    }
    (tmp_path / "layer_info.json").write_text(json.dumps({"Layers": [kernel]}))
    (tmp_path / "model.plan").write_bytes(b"not looked into")
    names = MatmulNames((), ("l.0.qk", "l.0.pv"), (POOLER,), (FLOAT,))
    engine = collect(model(tmp_path / "model.onnx", ["b", "s"]), tmp_path, TensorRTSettings(), names)
    assert engine.int8 is not None
    assert engine.int8.attention_matmul == (0, 2)
    assert engine.int8.not_int8[1:] == (FLOAT, POOLER)
    assert engine.int8.not_int8[0].name == "l.0.qk"
    assert "q, k and v are not all INT8" in engine.int8.not_int8[0].reason


def test_the_interface_keeps_fixed_named_and_unnamed_dimensions(tmp_path: Path) -> None:
    inputs, outputs = interface(model(tmp_path / "m.onnx", ["batch", 4, None]))
    assert inputs == (TensorInfo("input_ids", "int64", ("batch", 4, None)),)
    assert outputs == (TensorInfo("logits", "float16", ("batch", 2)),)


@pytest.mark.parametrize("content", [b"", b"\xff" * 20], ids=["empty", "junk"])
def test_the_interface_of_a_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(
        BuildError, match=r"m.onnx (cannot be read as ONNX|holds no graph).*; run the lower stage again"
    ):
        interface(tmp_path / "m.onnx")
