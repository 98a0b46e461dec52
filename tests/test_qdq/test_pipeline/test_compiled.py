"""Both NVIDIA targets on a machine without a GPU, from the command line: what their compiler says, and what is left."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from engines.tensorrt import probe
from engines.tensorrt_rtx import missing

from ..conftest import Ran, run_qdq

INSTALL = "pip install '.[rtx]'"
SOURCE = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--out", "work", "--placement", "qdqbert")

pytestmark = [
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
    pytest.mark.skipif(probe().ready, reason="this machine builds TensorRT engines"),
]


@pytest.fixture(scope="module")
def without(compiled: Path, tmp_path_factory: pytest.TempPathFactory, small: tuple[str, ...]) -> tuple[Path, Ran]:
    """The tiny model compiled for tensorrt, quantized wherever it can be, without the compiler; and what was said."""
    place = tmp_path_factory.mktemp("without") / "place"
    shutil.copytree(compiled, place)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
        ran = run_qdq("compile", *SOURCE, "--target", "tensorrt", *small)
        assert ran.code == 3, ran.err
    return place, ran


@pytest.fixture
def compile_for(
    without: tuple[Path, Ran], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: tuple[str, ...]
) -> Callable[..., Ran]:
    """`compile_for(target, ...)`: compile the same model in a copy of that folder, which is the current one."""
    shutil.copytree(without[0], tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return lambda target, *more: run_qdq("compile", *SOURCE, "--target", target, *small, *more)


def built(target: str) -> Any:
    return json.loads(Path("work", target, "build.json").read_text(encoding="utf-8"))


def leftovers() -> list[Path]:
    return [path for path in Path("work").rglob("*") if path.name.startswith(".partial") or path.suffix == ".tmp"]


def test_tensorrt_ends_in_a_compiled_proof(compile_for: Callable[..., Ran]) -> None:
    ran = compile_for("tensorrt")
    assert ran.code == 3 and "python build_engine.py" in ran.err
    report = built("tensorrt")
    assert (report["int8"], report["engine_files"]) == (None, [])
    proof = report["compiled"]
    assert "datacenter TensorRT chooses its own kernels" in proof["note"]
    assert proof["by"].startswith("TensorRT for RTX 1.") and proof["compute_capability"] == 75
    assert proof["profile"]["sequence"] == [1, 32, 32] and proof["shape"] == [2, 32]
    assert proof["linears"] == [6, 6] and proof["attentions"] == [1, 1] and proof["not_int8"] == []
    assert proof["fp32_scales"] == [5, 5]  # keys and values of the last layer, which the pooler reads, are one product
    for kind in ("int8", "float"):
        (layer,) = proof[kind]["layers"]
        assert 0 < layer["kernels"] <= proof[kind]["kernels"] and 0 < layer["megabytes"] <= proof[kind]["megabytes"]
    # The same on the screen, and for another compute capability when that is asked for.
    assert "6 of 6 encoder linears and 1 of 1 attentions are INT8" in ran.out
    assert all(len(line) <= 80 for line in ran.out.splitlines() if "/" not in line)
    assert leftovers() == [] and not Path("work/tensorrt/fp16").exists()
    ran = compile_for("tensorrt", "--sm", "89")
    assert "for compute capability 8.9" in ran.out and built("tensorrt")["compiled"]["compute_capability"] == 89
    # A graph that the compiler refuses is a failed build, and the proof of the former one is gone.
    graph = onnx.load("work/tensorrt/model.onnx")
    node = next(node for node in graph.graph.node if node.op_type == "Softmax")
    node.op_type = "Det"
    onnx.save(graph, "work/tensorrt/model.onnx")
    ran = run_qdq("build", "--out", "work", "--target", "tensorrt")
    assert ran.code == 1 and "refuses it" in ran.err and f"Det '{node.name}'" in ran.err
    assert not Path("work/tensorrt/build.json").exists()


def test_tensorrt_without_the_compiler(without: tuple[Path, Ran]) -> None:
    place, ran = without
    assert "python build_engine.py" in ran.err and "Not compiled here: " in ran.err and INSTALL in ran.err
    assert not (place / "work/tensorrt/build.json").exists() and (place / "work/tensorrt/build_engine.py").is_file()


def test_an_fp32_body_is_not_proved_where_the_compiler_has_none(compile_for: Callable[..., Ran]) -> None:
    """Datacenter TensorRT multiplies FP32 on Turing, too, so this is no refusal."""
    ran = compile_for("tensorrt", "--body", "fp32")
    assert ran.code == 3 and "fp32 from compute capability 8.0 on; give --sm 80" in " ".join(ran.err.split())
    ran = compile_for("tensorrt-rtx", "--body", "bf16")
    assert ran.code == 2 and "--body: tensorrt-rtx has bf16 from compute capability 8.0 on; give --sm 80" in ran.err
    ran = compile_for("tensorrt-rtx", "--body", "bf16", "--sm", "86")
    assert ran.code == 3 and built("tensorrt-rtx")["settings"]["compute_capabilities"] == [86, 89, 120, 121]
    assert built("tensorrt-rtx")["compiled"]["float"]["type"] == "bf16"


def test_tensorrt_rtx_builds_a_plan_on_any_machine(compile_for: Callable[..., Ran]) -> None:
    ran = compile_for("tensorrt-rtx")
    assert ran.code == 3 and "run 'python run_engine.py'" in " ".join(ran.err.split())
    assert "6 of 6 encoder linears and 1 of 1 attentions are INT8" in ran.out
    report = built("tensorrt-rtx")
    assert report["engine_files"] == ["model.rtx", "run_engine.py"]
    assert report["int8"]["encoder_linear"] == [6, 6] and report["int8"]["attention_matmul"] == [2, 2]
    assert report["settings"]["compute_capabilities"][::5] == [75, 121]
    assert report["compiled"]["linears"] == [6, 6] and leftovers() == []
    for name in ("model.rtx", "run_engine.py"):
        assert f"work/tensorrt-rtx/{name}" in ran.out.splitlines()
    # The script says what is missing here; so do the later stages, and a second run starts with them.
    done = subprocess.run([sys.executable, "work/tensorrt-rtx/run_engine.py"], capture_output=True, text=True)
    assert done.returncode == 3 and "GPU" in done.stderr
    plan = Path("work/tensorrt-rtx/model.rtx").read_bytes()
    again = compile_for("tensorrt-rtx")
    assert again.code == 3 and "build" in again.err and Path("work/tensorrt-rtx/model.rtx").read_bytes() == plan
    for stage in ("verify", "bench"):
        ran = run_qdq(stage, "--out", "work", "--target", "tensorrt-rtx")
        assert ran.code == 3 and "run_engine.py" in ran.err
    ran = run_qdq("deploy", "--out", "work", "--target", "tensorrt-rtx")
    assert ran.code == 3 and "Triton has no backend for tensorrt-rtx" in ran.err
    # The FP16 plan to compare with; FP32 only where the compiler has it.
    ran = run_qdq("variants", "--out", "work", "--target", "tensorrt-rtx")
    assert ran.code == 0 and {path.name for path in Path("work/tensorrt-rtx/fp16").iterdir()} == {
        *("model.onnx", "passes.json", "model.rtx", "run_engine.py"),
    }
    assert not Path("work/tensorrt-rtx/fp32").exists()
    assert run_qdq("variants", "--out", "work", "--target", "tensorrt-rtx", "--refit").code == 2


def test_texts_in_rows_are_built_and_proved(compile_for: Callable[..., Ran]) -> None:
    ran = compile_for("tensorrt-rtx", "--batch-form", "rows")
    assert ran.code == 3, ran.err
    folder, report = Path("work", "tensorrt-rtx"), built("tensorrt-rtx")
    assert report["engine_files"] == ["model.rtx", "run_engine.py", "packing.py"]
    form = json.loads((folder / "packing.json").read_text(encoding="utf-8"))
    assert (form["form"], form["row"], form["texts"]) == ("rows", 32, 2) and 1 <= form["rows"] <= 2
    profile = report["compiled"]["profile"]
    assert (profile["rows"], profile["texts"]) == ([1, form["rows"], 2], [1, 2, 2])
    assert report["compiled"]["linears"] == [6, 6] and report["compiled"]["attentions"] == [1, 1]
    assert report["compiled"]["packed"]["rows"] == form["rows"] and f"INT8 at {form['rows']} rows" in ran.out
    # Padded again, nothing of it is left.
    assert compile_for("tensorrt-rtx").code == 3
    assert not {"packing.json", "packing.py"} & {path.name for path in folder.iterdir()}


def test_tensorrt_rtx_without_the_compiler(compile_for: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx_bindings", None)
    ran = compile_for("tensorrt-rtx")
    assert ran.code == 3 and INSTALL in ran.err
    assert Path("work/tensorrt-rtx/model.onnx").is_file() and not Path("work/tensorrt-rtx/model.rtx").exists()
