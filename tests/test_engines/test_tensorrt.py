"""The TensorRT target where it cannot build: files it writes, what it says, how it reads an engine's precision back."""

from __future__ import annotations

import json
import py_compile
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from engines import tensorrt
from engines.tensorrt import TensorRTSettings, availability, probe, read_back, write_build_files
from engines.tensorrt.availability import Probe
from engines.interface import interface
from engines.tensorrt.settings import profile_shapes
from engines.types import MatmulNames, NotInt8, TensorInfo
from qdq.errors import BuildError, ConfigError, DeployError, Unavailable

PAIR = [TensorInfo("input_ids", "int64", ("batch", "sequence")), TensorInfo("attention_mask", "int64", ("b", None))]
CHOICES = [TensorInfo("input_ids", "int64", ("batch", "choices", "sequence"))]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small ONNX file with the interface of an encoder."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["floats"], ["logits"], keepdims=1),
    ]
    graph = helper.make_graph(nodes, "tiny", [ids], [out])
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


# --- settings and profile -------------------------------------------------------------------------------------------


def test_profile_names_axes_by_position() -> None:
    settings = TensorRTSettings(batch_opt=8, batch_max=16, sequence_min=16, sequence_max=256, choices=5)
    assert profile_shapes(PAIR, settings)["attention_mask"] == ((1, 16), (8, 128), (16, 256))
    assert profile_shapes(CHOICES, settings) == {"input_ids": ((1, 1, 16), (8, 5, 128), (16, 5, 256))}
    fixed = [TensorInfo("input_ids", "int64", ("batch", 4, 128))]
    assert profile_shapes(fixed, settings) == {"input_ids": ((1, 4, 128), (8, 4, 128), (16, 4, 128))}


@given(sizes=st.lists(st.integers(1, 512), min_size=3, max_size=3).map(sorted))
def test_every_ordered_range_is_accepted(sizes: list[int]) -> None:
    low, best, high = sizes
    TensorRTSettings(batch_min=low, batch_opt=best, batch_max=high).validate()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (TensorRTSettings(batch_opt=64), "batch: expected 1 <= min <= opt <= max, found 1, 64, 40"),
        (TensorRTSettings(sequence_min=0), "sequence: expected 1 <= min"),
        (TensorRTSettings(workspace_gib=0), "expected more than 0 GiB"),
        (TensorRTSettings(optimization_level=6), "optimization_level: expected 0 to 5, found 6"),
    ],
)
def test_impossible_settings_are_refused(settings: TensorRTSettings, text: str, model: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        write_build_files(model, model.parent, PAIR, settings)
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]


def test_an_input_no_encoder_has_is_refused(model: Path) -> None:
    with pytest.raises(BuildError, match="input 'pixels' has rank 4"):
        write_build_files(model, model.parent, [TensorInfo("pixels", "float32", (1, 3, 8, 8))], TensorRTSettings())


# --- build files ----------------------------------------------------------------------------------------------------


def run_script(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the generated script in a bare interpreter, so that no installed tensorrt can be found."""
    command = [sys.executable, "-I", "-S", str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_generated_script_runs_without_this_project(model: Path) -> None:
    script, _ = write_build_files(model, model.parent, PAIR, TensorRTSettings())
    assert script.name == "build_engine.py"
    py_compile.compile(str(script), cfile=str(model.parent / "compiled"), doraise=True)
    help_text = run_script(script, "--help")
    assert help_text.returncode == 0
    for option in ("--batch MIN OPT MAX", "--sequence MIN OPT MAX", "--workspace-gib", "--timing-cache", "--output"):
        assert option in help_text.stdout
    assert "choices MIN" not in help_text.stdout
    assert "engines" not in script.read_text()


def test_generated_script_says_what_is_missing(model: Path) -> None:
    script, _ = write_build_files(model, model.parent, PAIR, TensorRTSettings())
    done = run_script(script)
    assert done.returncode == 3
    assert "the Python module 'tensorrt' cannot be imported" in done.stderr
    assert "pip install tensorrt" in done.stderr
    assert "Traceback" not in done.stderr


def test_generated_script_refuses_tensorrt_before_10(model: Path, tmp_path: Path) -> None:
    script, _ = write_build_files(model, model.parent, PAIR, TensorRTSettings())
    (tmp_path / "tensorrt.py").write_text("__version__ = '8.6.1'\n")
    done = subprocess.run([sys.executable, "-S", str(script)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 3
    assert "TensorRT 8.6.1 is too old" in done.stderr


@pytest.mark.parametrize("arguments", [("--batch", "4", "2", "8"), ("--workspace-gib", "0"), ("--optimization", "9")])
def test_generated_script_refuses_wrong_usage(model: Path, arguments: tuple[str, ...]) -> None:
    script, _ = write_build_files(model, model.parent, PAIR, TensorRTSettings())
    assert run_script(script, *arguments).returncode == 2


def test_build_files_are_deterministic_and_name_no_path(model: Path) -> None:
    settings = TensorRTSettings(timing_cache=model.parent / "cache folder" / "timing.cache")
    first = [path.read_bytes() for path in write_build_files(model, model.parent, CHOICES, settings)]
    second = [path.read_bytes() for path in write_build_files(model, model.parent, CHOICES, settings)]
    assert first == second
    assert all(str(model.parent).encode() not in content for content in first)
    assert b"TIMING_CACHE: str | None = 'timing.cache'" in first[0]
    assert b"'choices': [1, 4, 4]" in first[0]


def test_the_model_must_travel_with_the_script(model: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="must lie in"):
        write_build_files(model, tmp_path / "elsewhere", PAIR, TensorRTSettings())


def trtexec(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run trtexec.sh with echo in place of trtexec, to see its command line."""
    environment = {"TRTEXEC": "echo", "PATH": "/usr/bin:/bin"}
    command = ["sh", str(script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell script")
def test_trtexec_lines_of_both_majors(model: Path) -> None:
    settings = TensorRTSettings(timing_cache=Path("my timing.cache"))
    _, script = write_build_files(model, model.parent, PAIR, settings)
    ten, eleven = trtexec(script, "10").stdout.split(), trtexec(script, "11").stdout.split()
    assert set(ten) - set(eleven) == {"--stronglyTyped", "--useCudaGraph", "--useSpinWait", "--noDataTransfers"}
    assert "--minShapes=input_ids:1x1,attention_mask:1x1" in eleven
    assert "--optShapes=input_ids:40x128,attention_mask:40x128" in eleven
    assert "--memPoolSize=workspace:4096" in eleven
    assert not {"--fp16", "--int8", "--best"} & set(ten)  # removed in 11, wrong for a typed graph in 10
    assert "--timingCacheFile=my timing.cache" in trtexec(script, "11").stdout
    assert trtexec(script).returncode == 2
    assert trtexec(script, "9").returncode == 2


# --- probe ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("child", "timeout_s", "reason"),
    [
        ("import os\nos.abort()\n", 30, "the child process ended with status"),
        ("import time\ntime.sleep(60)\n", 0.5, "no answer within 0.5 seconds"),
        ("print('hello')\n", 30, "gave no answer"),
        ("print('[1]')\n", 30, "gave no answer"),
        ("", 30, "gave no answer"),
    ],
)
def test_a_probe_that_crashes_or_hangs_harms_nothing(
    child: str, timeout_s: float, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "child.py").write_text(child)
    monkeypatch.setattr(availability, "CHILD", tmp_path / "child.py")
    found = probe(timeout_s)
    assert not found.ready
    assert found.gpu is None
    assert reason in found.missing[0]
    assert "NVIDIA GPU" in found.missing[0]


def test_an_old_gpu_and_an_old_tensorrt_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"gpu": "Tesla V100, compute capability 7.0", "tensorrt": "8.6.1", "pycuda": "2025.1"}
    monkeypatch.setattr(availability, "_child", lambda what, _: (answers[what], ""))
    monkeypatch.setattr(availability, "_installed", lambda _: True)
    found = probe()
    assert found.missing[0] == "the GPU Tesla V100 has compute capability 7.0; INT8 needs 7.5 or more"
    assert found.missing[1].startswith("TensorRT 8.6.1 is too old: pip install")
    answers |= {"gpu": "NVIDIA T4, compute capability 7.5", "tensorrt": "11.4.0.106"}
    assert probe() == Probe("NVIDIA T4, compute capability 7.5", "11.4.0.106", found.polygraphy, "2025.1", ())


# --- build ----------------------------------------------------------------------------------------------------------


def test_build_leaves_everything_for_a_gpu_machine(model: Path) -> None:
    if probe().ready:
        pytest.skip("this machine can build TensorRT engines")
    with pytest.raises(Unavailable) as caught:
        tensorrt.build(model, model.parent, TensorRTSettings())
    text = str(caught.value)
    assert "this machine cannot build a TensorRT engine:" in text
    assert (
        f"Everything before this is done; copy {model.parent} to a GPU machine and run: python build_engine.py" in text
    )
    assert sorted(path.name for path in model.parent.iterdir()) == ["build_engine.py", "model.onnx", "trtexec.sh"]


def test_collect_reads_an_engine_built_elsewhere(model: Path) -> None:
    with pytest.raises(BuildError, match=r"model.plan does not exist; build it with: python .*build_engine.py"):
        tensorrt.collect(model, model.parent, TensorRTSettings())
    (model.parent / "model.plan").write_bytes(b"not looked into")
    (model.parent / "layer_info.json").write_text(json.dumps({"Layers": [gemm("l0", "Int8")]}))
    built = tensorrt.collect(model, model.parent, TensorRTSettings(), MatmulNames(("l0",), ()))
    assert [path.name for path in built.files] == ["model.plan", "layer_info.json"]
    assert built.int8 is not None
    assert built.int8.encoder_linear == (1, 1)
    assert built.inputs == (TensorInfo("input_ids", "int64", ("batch", "sequence")),)
    assert built.settings["sequence_opt"] == 128
    json.dumps(built.settings)  # recorded in build.json


def test_interface_of_a_damaged_file(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\xff" * 20)
    for path in (tmp_path / "model.onnx", tmp_path / "absent.onnx"):
        with pytest.raises(BuildError, match="cannot be read as ONNX"):
            interface(path)


def test_runner_says_why_a_plan_does_not_load(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="build the engine first"):
        tensorrt.TensorRTRunner(tmp_path / "model.plan")
    (tmp_path / "model.plan").write_bytes(b"no plan")
    with pytest.raises(BuildError, match="cannot be loaded"):
        tensorrt.TensorRTRunner(tmp_path / "model.plan")


def test_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, engines.tensorrt; print([m for m in ('tensorrt','polygraphy','onnx','torch') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- read back ------------------------------------------------------------------------------------------------------
# Layers as the inspector writes them at DETAILED verbosity in TensorRT 10; `in_11` respells them.


def tensor(name: str, datatype: str, *sizes: int) -> dict[str, Any]:
    return {"Name": name, "Dimensions": list(sizes), "Format/Datatype": datatype}


def layer(name: str, kind: str, nodes: list[str], inputs: list[dict[str, Any]], tactic: str = "") -> dict[str, Any]:
    metadata = "\x1f".join(f"[ONNX Layer: {node}]" for node in nodes)
    outputs = [tensor("out", "Half", -1, -1, 384)]
    described = {"Name": name, "LayerType": kind, "Inputs": inputs, "Outputs": outputs, "Metadata": metadata}
    return {**described, "TacticName": tactic, "StreamId": 0} if tactic else described


def gemm(node: str, datatype: str, tactic: str = "") -> dict[str, Any]:
    scalars = [tensor("alpha", "Float", 1), tensor("bias", "Float", 1, 1, 384)]
    return layer(f"{node}_myl0_3", "gemm", [node], [tensor("x", datatype, -1, -1, 384), *scalars], tactic)


def attention(nodes: list[str], *datatypes: str) -> dict[str, Any]:
    inputs = [tensor(name, datatype, -1, 12, -1, 32) for name, datatype in zip("qkvm", datatypes, strict=False)]
    return layer("_gemm_mha_v2_myl0_17", "kgen", [*nodes, "softmax"], inputs, "_gemm_mha_v2_0x957a2fe2")


def in_11(layer_info: dict[str, Any]) -> dict[str, Any]:
    """The same information as TensorRT 11 spells it."""
    text: dict[str, Any] = json.loads(json.dumps(layer_info))
    for described in text["Layers"]:
        for one in described["Inputs"] + described["Outputs"]:
            one.update({"Datatype": one.pop("Format/Datatype"), "Format": "kLINEAR"})
    text["I/O Tensors"] = text.pop("Bindings", [])
    return text


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
            "sm80_xmma_gemm_i8i8_i8i32_f32_tn_n_tilesize128x128x64_stage3",
        ),
        attention(MATMULS, "Int8", "Int8", "Int8", "Half"),
        gemm(LINEARS[3], "Row major Int8 format"),
        gemm(LINEARS[4], "Half", "sm75_xmma_gemm_f16f16_f16f32_f32_tn_n_tilesize64x64x32"),
        layer("down_myl0_9", "kgen", [LINEARS[5]], [tensor("x", "Int8", -1, 1536), tensor("r", "Half", -1, 384)]),
        gemm("pooler/MatMul", "Float"),
    ],
    "Bindings": ["input_ids", "logits"],
}


@pytest.mark.parametrize("layer_info", [ENGINE, in_11(ENGINE)], ids=["10.x", "11.x"])
def test_precision_is_read_in_both_spellings(layer_info: dict[str, Any]) -> None:
    pooler = NotInt8("pooler/MatMul", "float by default")
    report = read_back(layer_info, LINEARS, MATMULS, [pooler])
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
        report = read_back({"Layers": [gemm("l0", datatype)]}, ["l0"], [])
        assert report.encoder_linear == (0, 1), datatype
        assert report.not_int8[0].name == "l0"


def test_weights_alone_in_int8_do_not_count() -> None:
    inputs = [tensor("x", "Half", -1, -1, 384), tensor("weight", "Int8", 384, 384)]
    report = read_back({"Layers": [layer("l0", "gemm", ["l0"], inputs)]}, ["l0"], [])
    assert report.encoder_linear == (0, 1)
    assert "takes half, int8" in report.not_int8[0].reason


@pytest.mark.parametrize("types", [("Half",) * 4, ("Int8", "Int8", "Half", "Half"), ("Int8", "Half")])
def test_fused_attention_counts_only_when_all_operands_are_int8(types: tuple[str, ...]) -> None:
    report = read_back({"Layers": [attention(MATMULS, *types)]}, [], MATMULS)
    assert report.attention_matmul == (0, 2)
    assert report.inferred == ()
    assert "not all INT8" in report.not_int8[0].reason


def test_unfused_attention_matmuls_are_read_each() -> None:
    operands = [tensor("a", "Int8", -1, 12, -1, 32), tensor("b", "Int8", -1, 12, -1, 32)]
    half = [tensor("a", "Half", -1, 12, -1, 32), tensor("b", "Int8", -1, 12, -1, 32)]
    layers = [layer("qk", "gemm", [MATMULS[0]], operands), layer("av", "gemm", [MATMULS[1]], half)]
    report = read_back({"Layers": layers}, [], MATMULS)
    assert report.attention_matmul == (1, 2)
    assert report.inferred == ()


def test_names_stand_in_for_missing_metadata() -> None:
    """Without metadata Myelin's kernel names are the trace: joined by "+", dots turned to "_", a suffix added."""
    fused = layer(
        "encoder_layer_0_query/MatMul+encoder_layer_0_key/MatMul_myl0_16", "gemm", [], [tensor("x", "Int8", -1, 384)]
    )
    assert read_back({"Layers": [fused]}, LINEARS[:2], []).encoder_linear == (2, 2)


def test_what_the_engine_does_not_name_is_not_counted() -> None:
    block = layer("{ForeignNode[a...b]}", "Myelin", [], [tensor("input_ids", "Int64", -1, -1)])
    assert "hidden in the block" in read_back({"Layers": [block]}, ["l0"], []).not_int8[0].reason
    assert read_back({"Layers": []}, ["l0"], []).not_int8 == (NotInt8("l0", "no engine layer names 'l0'"),)


def test_layer_information_without_types_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="build with DETAILED profiling verbosity"):
        read_back({"Layers": ["l0 + relu"]}, ["l0"], [])
    path = tmp_path / "layer_info.json"
    with pytest.raises(DeployError, match="does not exist"):
        tensorrt.load_layer_info(path)
    path.write_text('{"layers": 3}')
    with pytest.raises(BuildError, match="has no list of layers"):
        tensorrt.load_layer_info(path)
