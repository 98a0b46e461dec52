"""The TensorRT target where it cannot build: files it writes, what it says, how it reads an engine's precision back."""

from __future__ import annotations

import json
import py_compile
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper

from engines import tensorrt
from engines.interface import interface
from engines.tensorrt import TensorRTSettings, availability, probe, write_build_files
from engines.tensorrt.availability import Probe
from engines.tensorrt.settings import check_machine, profile_shapes
from engines.types import MatmulNames, TensorInfo
from qdq.errors import BuildError, ConfigError, Unavailable

from .triton_parts import INPUTS, tiny_onnx

PAIR = [TensorInfo("input_ids", "int64", ("batch", "sequence")), TensorInfo("attention_mask", "int64", ("b", None))]
CHOICES = [TensorInfo("input_ids", "int64", ("batch", "choices", "sequence"))]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_onnx(tmp_path / "model.onnx")


# --- settings and profile -------------------------------------------------------------------------------------------


def test_buckets_have_profiles_of_their_own() -> None:
    settings = TensorRTSettings(batch_max=16, batch_opt=16, buckets=(32, 128))
    wide, short, long = (profile_shapes(PAIR, one)["input_ids"] for one in settings.profiles())
    assert wide == ((1, 1), (16, 128), (16, 128))
    assert (short, long) == (((1, 32), (16, 32), (16, 32)), ((1, 128), (16, 128), (16, 128)))
    assert settings.as_json()["buckets"] == (32, 128) and "buckets" not in TensorRTSettings().as_json()
    for wrong in ((64, 32), (32, 32), (0, 32), (32, 256)):
        with pytest.raises(ConfigError, match="TensorRT buckets: expected increasing lengths from 1 to 128"):
            TensorRTSettings(buckets=wrong).validate()


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
        (TensorRTSettings(hardware_compatibility="ampere"), "unknown value 'ampere'; did you mean 'ampere_plus'"),
    ],
)
def test_impossible_settings_are_refused(settings: TensorRTSettings, text: str, model: Path) -> None:
    with pytest.raises(ConfigError, match=text):
        write_build_files(model, model.parent, PAIR, settings)
    assert [path.name for path in model.parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("asked", ["refit", "strip_weights"])
def test_refit_is_refused_for_a_graph_with_quantizers(asked: str, model: Path) -> None:
    settings = TensorRTSettings(refit=asked == "refit", strip_weights=asked == "strip_weights")
    write_build_files(model, model.parent, PAIR, settings)  # a floating-point graph may be refitted
    graph = onnx.load(model)
    graph.graph.node.append(helper.make_node("QuantizeLinear", ["masked", "scale"], ["codes"]))
    onnx.save(graph, model)
    with pytest.raises(ConfigError, match=f"TensorRT {asked}: .* holds Q/DQ nodes, and a refittable engine gives up"):
        write_build_files(model, model.parent, PAIR, settings)


@pytest.mark.parametrize(
    ("level", "capability", "release", "text"),
    [
        ("ampere_plus", 7.5, (11, 4), "ampere_plus needs compute capability 8.0"),
        ("same_compute_capability", 7.5, (10, 7), "needs TensorRT 10.9 or later, this is 10.7"),
        ("ampere_plus", 8.0, (10, 0), None),
        ("ampere_plus", None, (10, 0), None),  # an unknown GPU is TensorRT's to judge
        ("same_compute_capability", 7.5, (10, 9), None),
        ("none", 7.5, (10, 0), None),
    ],
)
def test_hardware_compatibility_is_checked_against_the_machine(
    level: str, capability: float | None, release: tuple[int, ...], text: str | None
) -> None:
    settings = TensorRTSettings(hardware_compatibility=level)
    if text is None:
        check_machine(settings, capability, release)
        return
    with pytest.raises(ConfigError, match=text):
        check_machine(settings, capability, release)


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
    assert not {"--versionCompatible", "--refit", "--stripWeights", "--skipInference"} & set(ten)
    assert trtexec(script).returncode == 2
    assert trtexec(script, "9").returncode == 2


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell script")
@pytest.mark.parametrize(
    ("level", "spelled"),
    [("ampere_plus", "ampere+"), ("same_compute_capability", "sameComputeCapability"), ("none", None)],
)
def test_portability_reaches_both_build_files(level: str, spelled: str | None, model: Path) -> None:
    settings = TensorRTSettings(
        version_compatible=True, hardware_compatibility=level, strip_weights=True, optimization_level=5
    )
    script, line = write_build_files(model, model.parent, PAIR, settings)
    options = trtexec(line, "10").stdout.split()
    assert {"--versionCompatible", "--stripWeights", "--skipInference", "--builderOptimizationLevel=5"} <= set(options)
    assert [word for word in options if word.startswith("--hardware")] == (
        [f"--hardwareCompatibilityLevel={spelled}"] if spelled else []
    )
    text = script.read_text()
    assert "VERSION_COMPATIBLE = True" in text
    assert f"HARDWARE_COMPATIBILITY = '{level}'" in text
    assert "REFIT, STRIP_WEIGHTS = False, True" in text
    assert "--version-compatible" in run_script(script, "--help").stdout


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
    assert (probe().capability, probe().release) == (7.5, (11, 4))
    assert (Probe().capability, Probe().release) == (None, ())


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
    operand = {"Name": "x", "Dimensions": [-1, -1, 384], "Format/Datatype": "Int8"}
    layer = {"Name": "l0", "LayerType": "gemm", "Inputs": [operand], "Outputs": [], "Metadata": "[ONNX Layer: l0]"}
    (model.parent / "layer_info.json").write_text(json.dumps({"Layers": [layer]}))
    built = tensorrt.collect(model, model.parent, TensorRTSettings(), MatmulNames(("l0",), ()))
    assert [path.name for path in built.files] == ["model.plan", "layer_info.json"]
    assert built.int8 is not None
    assert built.int8.encoder_linear == (1, 1)
    assert built.inputs == INPUTS
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


class Loaded:
    """What a polygraphy runner of a plan with one INT32 input does."""

    def __init__(self, engine: object) -> None:
        self.fed: dict[str, Any] = {}

    def activate(self) -> None:
        pass

    def get_input_metadata(self, use_numpy_dtypes: bool) -> Any:
        from polygraphy.common import TensorMetadata

        return TensorMetadata().add("input_ids", dtype=np.int32, shape=(-1, -1))

    def infer(self, feeds: dict[str, Any]) -> dict[str, Any]:
        self.fed = feeds
        return {"logits": np.zeros((2, 2), np.float16)}

    def deactivate(self) -> None:
        pass


def test_runner_feeds_what_the_plan_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokenizers give INT64, a lowered graph takes INT32, and other models' inputs may be in the batch."""
    monkeypatch.setattr("polygraphy.backend.trt.TrtRunner", Loaded)
    (tmp_path / "model.plan").write_bytes(b"a plan")
    with tensorrt.TensorRTRunner(tmp_path / "model.plan") as run:
        ids = np.arange(6).reshape(2, 3)
        outputs = run({"input_ids": ids, "token_type_ids": ids})
        fed = run._runner.fed
        with pytest.raises(BuildError, match=r"the batch lacks input\(s\) input_ids"):
            run({"attention_mask": ids})
    assert list(fed) == ["input_ids"] and fed["input_ids"].dtype == np.int32
    assert outputs["logits"].dtype == np.float32


def test_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, engines.tensorrt; print([m for m in ('tensorrt','polygraphy','onnx','torch') if m in sys.modules])"
    )
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
