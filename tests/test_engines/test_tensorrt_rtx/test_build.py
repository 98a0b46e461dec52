"""The target tensorrt-rtx on its own: a plan for many GPUs, what of it is INT8, and the account of a compiled graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from engines.targets import TARGETS, EngineOptions
from engines.tensorrt.settings import TensorRTSettings
from engines.tensorrt_rtx import Compiler, Pair, missing, proof_text, prove
from engines.types import MatmulNames
from qdq.errors import BuildError, QdqError, Unavailable

from .conftest import SHAPE, WriteHalf

LAYER = "encoder.layer.0"
SELF = f"{LAYER}.attention.self"
DENSE = ("attention.output.dense", "intermediate.dense", "output.dense")
LINEARS = tuple(f"{SELF}.{name}.MatMul" for name in ("query", "key", "value")) + tuple(
    f"{LAYER}.{name}.MatMul" for name in DENSE
)
NAMES = MatmulNames(LINEARS, (f"{SELF}.MatMul", f"{SELF}.MatMul_1"))
OPTIONS = EngineOptions(plan=TensorRTSettings(batch_opt=4, batch_max=4, sequence_opt=16, sequence_max=16))
TARGET = TARGETS["tensorrt-rtx"]

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")


def test_a_plan_for_every_gpu_from_the_asked_one_on(write_half: WriteHalf, tmp_path: Path) -> None:
    folder = tmp_path / "built"
    built = TARGET.build(write_half(), folder, OPTIONS, NAMES)
    assert built.settings["compute_capabilities"] == [75, 80, 86, 89, 120, 121]
    assert built.int8 is not None
    assert (built.int8.encoder_linear, built.int8.attention_matmul, built.int8.not_int8) == ((6, 6), (2, 2), ())
    assert built.int8.inferred == NAMES.matmuls  # a fused block tells its operands only
    assert [path.name for path in built.files] == ["model.rtx", "run_engine.py"]
    assert {path.name for path in folder.iterdir()} == {"model.rtx", "run_engine.py"}
    newer = TARGET.build(write_half(), tmp_path / "newer", EngineOptions(plan=OPTIONS.plan, capability=89), None)
    assert newer.int8 is None and newer.settings["compute_capabilities"] == [89, 120, 121]
    with pytest.raises(Unavailable, match=r"copy .* there and run 'python run_engine.py'"):
        TARGET.open(built.files[0], OPTIONS)


def test_what_is_float_says_why(write_half: WriteHalf, tmp_path: Path) -> None:
    model = write_half(operands=("q", "k"), float_inputs=("intermediate.dense",))
    built = TARGET.build(model, tmp_path / "built", OPTIONS, NAMES)
    assert built.int8 is not None and built.int8.encoder_linear == (5, 6) and built.int8.attention_matmul == (0, 2)
    reasons = {item.name: item.reason for item in built.int8.not_int8}
    assert "activation float in the graph" in reasons[f"{LAYER}.intermediate.dense.MatMul"]
    assert "not fused: the scores go through memory" in reasons[f"{SELF}.MatMul"]


@pytest.mark.parametrize("size", [4096, 64])
def test_a_full_disk_leaves_nothing(
    write_half: WriteHalf, tmp_path: Path, full_disk: Callable[[int], AbstractContextManager[None]], size: int
) -> None:
    model, folder = write_half(), tmp_path / "built"
    folder.mkdir()
    with full_disk(size), pytest.raises(QdqError):
        TARGET.build(model, folder, OPTIONS, NAMES)
    assert list(folder.iterdir()) == []


def test_an_interrupt_leaves_nothing(write_half: WriteHalf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = Compiler.compile

    def interrupted(compiler: Compiler, *arguments: object) -> None:
        compiled(compiler, *arguments)  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(Compiler, "compile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        TARGET.build(write_half(), tmp_path / "built", OPTIONS, NAMES)
    assert list((tmp_path / "built").iterdir()) == []


def test_the_account_is_of_the_profile_and_counts_one_shape(write_half: WriteHalf, compiler: Compiler) -> None:
    model = write_half()
    plain = write_half("plain.onnx", operands=(), per_tensor=True)  # stands for the unquantized graph
    assert OPTIONS.plan is not None
    report = prove(Pair(model, plain, "fp16"), NAMES, OPTIONS.plan, 80)
    assert (report["linears"], report["attentions"], report["fp32_scales"]) == ([6, 6], [1, 1], [0, 6])
    assert report["profile"]["batch"] == [1, 4, 4] and report["compute_capability"] == 80
    counted = compiler.compile(model, (80,), SHAPE)
    assert report["int8"]["kernels"] == len(counted.kernels)
    assert report["int8"]["megabytes"] == pytest.approx(counted.megabytes, abs=0.01)
    text = proof_text(report)
    assert "0 of 6 INT8 products with weights have an FP32 scale" in text and "layer 1 of 1: " in text
    assert "FP16" in text and max(map(len, text.splitlines())) <= 80
    exact = proof_text(report | {"fp32_scales": [6, 6]})
    assert "every INT8 product with weights has its scale as an FP32 number" in exact


def test_a_refused_graph_names_its_node(write_half: WriteHalf, tmp_path: Path) -> None:
    import onnx

    model = write_half()
    graph = onnx.load(model)
    next(node for node in graph.graph.node if node.op_type == "Gelu").op_type = "Det"
    onnx.save(graph, model)
    with pytest.raises(BuildError, match=r"refuses it: Det 'encoder\.layer\.0\.intermediate"):
        TARGET.build(model, tmp_path / "built", OPTIONS, NAMES)
    assert list((tmp_path / "built").iterdir()) == []
