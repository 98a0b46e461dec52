"""The ONNX Runtime engine: u8 activations run in INT8, s8 ones do not all, and how it is built, run and refused."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from engines.bench import InFlight
from engines.onnxruntime import OnnxRuntimeRunner, OnnxRuntimeSettings, build
from engines.onnxruntime.build import _verdicts
from engines.precision import summary
from engines.types import BuiltEngine, MatmulNames
from export.to_onnx import save_proto
from qdq.errors import BuildError
from qdq.pipeline.stages.build import multiplications

from .graphs import lowered

ONE_THREAD = OnnxRuntimeSettings(threads=1)
AFFINITIES = "session.intra_op_thread_affinities"
DENSE = "intermediate.dense"
DENSE_MATMUL = f"encoder.layer.0.{DENSE}.MatMul"
PROJECTIONS = {f"encoder.layer.0.attention.self.{name}.MatMul" for name in ("query", "key", "value")}

x86_only = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the u8 kernels are x86's choice")


def built(model: Path, names: MatmulNames | None = None) -> BuiltEngine:
    return build(model, model.parent, ONE_THREAD, names or multiplications(model))


def report(engine: BuiltEngine) -> Any:
    assert engine.int8 is not None
    return engine.int8


# --- what runs in INT8 ----------------------------------------------------------------------------------------------


@x86_only
def test_every_linear_reads_back_int8_and_attention_the_float_it_is(write_encoder: Callable[..., Path]) -> None:
    """Attention is quantized in the graph; the flash kernel that runs it multiplies floats, and the report says so."""
    engine = built(lowered(write_encoder()))
    found = report(engine)
    assert summary(found) == "6 of 6 encoder linears and 0 of 2 attention matmuls run in INT8"
    assert {item.reason for item in found.not_int8} == {"ONNX Runtime runs it inside MultiHeadAttention, in float"}
    assert [item.name for item in found.not_int8] == [
        "encoder.layer.0.attention.self.MatMul",
        "encoder.layer.0.attention.self.MatMul_1",
    ]
    fused = engine.settings["fused"]
    assert (fused["linears"], fused["attention"], fused["declined"]) == (6, 1, [])
    assert len(fused["dropped_quantizers"]) == 4


@x86_only
def test_signed_activations_leave_the_shared_projections_float(write_encoder: Callable[..., Path]) -> None:
    """Why the graph is re-coded: q, k and v read one Q through a DQ each, and those stay MatMul."""
    found = report(built(write_encoder()))
    assert found.encoder_linear == (3, 6)
    assert {item.name for item in found.not_int8} == PROJECTIONS
    assert {item.reason for item in found.not_int8} == {"ONNX Runtime runs it as MatMul"}


@x86_only
@pytest.mark.parametrize(
    ("float_inputs", "float_weights", "operator"),
    [([DENSE], [DENSE], "MatMul"), ([], [DENSE], "MatMul"), ([DENSE], [], "MatMulNBits")],
)
def test_a_linear_that_reads_back_float_is_reported_whatever_was_expected(
    write_encoder: Callable[..., Path], float_inputs: list[str], float_weights: list[str], operator: str
) -> None:
    """The names come from the fully quantized graph, so nothing but the engine knows that one linear is float."""
    expected = multiplications(write_encoder("expected.onnx"))
    found = report(built(lowered(write_encoder("m.onnx", float_inputs, float_weights)), expected))
    assert found.encoder_linear == (5, 6)
    assert [(item.name, item.reason) for item in found.not_int8 if item.name == DENSE_MATMUL] == [
        (DENSE_MATMUL, f"ONNX Runtime runs it as {operator}")
    ]


@x86_only
def test_the_placement_is_the_reason_where_it_left_operands_float(write_encoder: Callable[..., Path]) -> None:
    found = report(built(lowered(write_encoder(float_inputs=[DENSE], operands=("q", "k")))))
    assert (found.encoder_linear, found.attention_matmul) == ((5, 6), (0, 2))
    assert [(item.name, item.reason) for item in found.not_int8] == [
        (DENSE_MATMUL, "the placement leaves its first operand float"),
        ("encoder.layer.0.attention.self.MatMul", "ONNX Runtime runs it inside MultiHeadAttention, in float"),
        ("encoder.layer.0.attention.self.MatMul_1", "the placement quantizes neither operand"),
    ]


def optimized_graph(path: Path, nodes: dict[str, str]) -> Path:
    """A file whose nodes have these names and operators, as ONNX Runtime writes after optimizing."""
    graph = helper.make_graph([helper.make_node(op, [], [], name=name) for name, op in nodes.items()], "g", [], [])
    onnx.save(helper.make_model(graph), path)
    return path


def test_names_survive_the_fusions_of_onnx_runtime(tmp_path: Path) -> None:
    nodes = {
        "l.0.a.MatMul": "MatMulIntegerToFloat",
        "fused l.0.b.Gemm": "FusedGemm",
        "l.0.c.MatMul/MatMulAddFusion": "Gemm",
        "l.0.d.MatMul": "MatMul",
        "l.0.d.MatMul_1/MatmulTransposeFusion/_token_7": "FusedMatMul",
        "l.0.e.MatMul/duplicated": "DequantizeLinear",
        "l.0.f.MatMul+l.0.f.MatMul_1": "MultiHeadAttention",
    }
    verdict = _verdicts(optimized_graph(tmp_path / "optimized.onnx", nodes))
    assert verdict("l.0.a.MatMul").int8
    floats = {name: verdict(name).says for name in ("l.0.b.Gemm", "l.0.c.MatMul", "l.0.d.MatMul", "l.0.d.MatMul_1")}
    assert [says.rpartition(" ")[2] for says in floats.values()] == ["FusedGemm", "Gemm", "MatMul", "FusedMatMul"]
    assert verdict("l.0.e.MatMul").says == "ONNX Runtime fused it into an operator of another name"
    for name in ("l.0.f.MatMul", "l.0.f.MatMul_1"):
        assert verdict(name).says == "ONNX Runtime runs it inside MultiHeadAttention, in float"
    assert not any(verdict(name).int8 for name in (*floats, "l.0.e.MatMul", "l.0.f.MatMul"))


# --- building -------------------------------------------------------------------------------------------------------


def test_the_engine_is_a_file_of_its_own(write_encoder: Callable[..., Path]) -> None:
    model = write_encoder()
    before = model.read_bytes()
    engine = built(model)
    assert engine.files == (model.with_name("engine.onnx"),)
    assert sorted(file.name for file in model.parent.iterdir()) == ["engine.onnx", model.name]
    assert model.read_bytes() == before
    assert (engine.settings["threads"], engine.settings["onnxruntime"]) == (1, onnxruntime.__version__)
    assert [(tensor.name, tensor.dtype, tensor.shape) for tensor in (*engine.inputs, *engine.outputs)] == [
        ("input_ids", "int64", ("batch", "sequence")),
        ("attention_mask", "int64", ("batch", "sequence")),
        ("last_hidden_state", "float32", ("batch", "sequence", 64)),
    ]
    floating = build(model, model.parent, ONE_THREAD, None)
    assert (floating.int8, floating.files) == (None, (model,))


def test_twice_gives_the_same_engine(write_encoder: Callable[..., Path]) -> None:
    first = built(lowered(write_encoder())).files[0]
    content = first.read_bytes()
    assert built(lowered(write_encoder())).files[0].read_bytes() == content


def test_a_large_engine_keeps_its_weights_beside_it(
    write_encoder: Callable[..., Path], make_feeds: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond 2 GiB a protobuf cannot hold them; the limit is lowered here, the code path is the same."""
    model = lowered(write_encoder())
    expected = OnnxRuntimeRunner(built(model).files[0], ONE_THREAD)(make_feeds(2, 5))["last_hidden_state"]
    save_proto(onnx.load(model), model, external_data_bytes=100)
    monkeypatch.setattr(importlib.import_module("engines.onnxruntime.build"), "LARGEST_FILE", 100)
    engine = built(model)
    assert [file.name for file in engine.files] == ["engine.onnx", "engine.onnx.data"]
    result = OnnxRuntimeRunner(engine.files[0], ONE_THREAD)(make_feeds(2, 5))["last_hidden_state"]
    np.testing.assert_array_equal(result, expected)
    model.with_name("model.onnx.data").unlink()
    with pytest.raises(BuildError, match=r"ONNX Runtime cannot load .*model.onnx.*run the lower stage again"):
        built(model)


@pytest.mark.parametrize("content", [b"", b"hello world", b"\xff" * 50, None], ids=["empty", "text", "junk", "cut"])
def test_a_damaged_file_is_a_build_error(write_encoder: Callable[..., Path], content: bytes | None) -> None:
    model = write_encoder()
    model.write_bytes(model.read_bytes()[: model.stat().st_size // 2] if content is None else content)
    with pytest.raises(BuildError, match=r"model.qdq.onnx.*; run the lower stage again") as caught:
        built(model, MatmulNames((), ()))
    assert "\n" not in str(caught.value)
    with pytest.raises(BuildError, match=r"ONNX Runtime cannot load .*: Load model from .* failed:.*lower stage again"):
        OnnxRuntimeRunner(model, ONE_THREAD)
    with pytest.raises(BuildError, match="cannot be read as ONNX"):
        built(model.with_name("absent.onnx"), MatmulNames((), ()))


def test_an_operator_onnx_runtime_does_not_know_is_named(tmp_path: Path) -> None:
    source, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Frobnicate", ["x"], ["y"], name="odd")], "g", [source], [result])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(BuildError, match=r"ONNX Runtime cannot load .*No Op registered for Frobnicate"):
        built(tmp_path / "m.onnx", MatmulNames((), ()))


# --- running --------------------------------------------------------------------------------------------------------


def test_an_engine_leaves_this_process_its_arithmetic(write_encoder: Callable[..., Path]) -> None:
    """Denormal numbers stay what they are for whoever computes next: ONNX Runtime can flush them, thread-wide."""
    engine = built(lowered(write_encoder()))
    OnnxRuntimeRunner(engine.files[0], ONE_THREAD)
    assert np.float32(1e-40) * np.float32(1.0) > 0


def test_requests_at_once_give_what_one_alone_gives(write_encoder: Callable[..., Path], make_feeds: Any) -> None:
    model, cpus = write_encoder(), tuple(sorted(os.sched_getaffinity(0)))
    settings = OnnxRuntimeSettings(2, streams=2, nodes=(cpus, cpus[:1]))  # as on two NUMA nodes
    entries = [settings.session_options(stream).get_session_config_entry(AFFINITIES) for stream in (0, 1)]
    assert entries == [",".join(str(cpu + 1) for cpu in cpus), str(cpus[0] + 1)]
    run, alone = InFlight(OnnxRuntimeRunner(model, settings), 2), OnnxRuntimeRunner(model, OnnxRuntimeSettings(1))
    for seed in range(3):
        feeds = make_feeds(2, 7, seed=seed)
        np.testing.assert_allclose(run(feeds)["last_hidden_state"], alone(feeds)["last_hidden_state"], atol=1e-5)


def test_a_rival_keeps_the_default_options() -> None:
    plain, ours, rival = (
        options.get_session_config_entry
        for options in (
            onnxruntime.SessionOptions(),
            OnnxRuntimeSettings(1).session_options(),
            OnnxRuntimeSettings(1, defaults=True).session_options(),
        )
    )
    for entry in (plain, rival):
        with pytest.raises(RuntimeError):
            entry("session.force_spinning_stop")
    assert ours("session.force_spinning_stop") == "1"
