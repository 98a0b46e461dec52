"""Both builders run to their end against a stand-in of each TensorRT release, which knows that release's names only."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from engines.tensorrt.script import build_script, trtexec_script
from engines.tensorrt.settings import TensorRTSettings
from engines.types import TensorInfo

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = Path(__file__).parent / "data" / "stand_in_tensorrt.py"
NAMES = STAND_IN.with_name("trt_api.json")
RELEASES: list[str] = json.loads(NAMES.read_text(encoding="utf-8"))["releases"]
PAIR = [TensorInfo("input_ids", "int32", ("batch", "sequence"))]
ALL_OPTIONS = ("--version-compatible", "--hardware-compatibility", "ampere_plus", "--timing-cache", "timing.cache")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``stand_in(release)``: a module that has the names of that release, in place of `tensorrt`."""

    def load(release: str) -> Any:
        monkeypatch.setenv("STAND_IN_RELEASE", release)
        monkeypatch.setenv("STAND_IN_NAMES", str(NAMES))
        spec = importlib.util.spec_from_file_location("tensorrt", STAND_IN)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        monkeypatch.chdir(tmp_path)
        return module

    return load


def run_script(folder: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, model: str = "model.onnx") -> int:
    """Run the generated script in this process; its exit status."""
    script = folder / "build_engine.py"
    script.write_text(build_script(model, PAIR, TensorRTSettings()), encoding="utf-8")
    (folder / model).write_bytes(b"")
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    return int(ended.value.code or 0)


@pytest.mark.parametrize("release", RELEASES)
def test_generated_script_runs_to_its_end_in_every_release(
    release: str, stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = stand_in(release).RECORD
    assert run_script(tmp_path, monkeypatch, *ALL_OPTIONS) == 0
    assert record["flags"] == ["VERSION_COMPATIBLE"]
    assert record["hardware_compatibility_level"] == "AMPERE_PLUS"
    assert (record["network_flags"] == 0) == release.startswith("11")
    assert record["timings_reused"] is False
    assert (tmp_path / "model.plan").read_bytes() == b"a plan"
    assert run_script(tmp_path, monkeypatch, *ALL_OPTIONS) == 0
    assert record["timings_reused"] is True
    (tmp_path / "timing.cache").write_bytes(b"timings of 8.6.1")
    assert run_script(tmp_path, monkeypatch, *ALL_OPTIONS) == 0
    assert record["timings_reused"] is False
    assert "measured by another TensorRT version or on another GPU model" in capsys.readouterr().err
    assert (tmp_path / "timing.cache").read_text() == f"timings of {release}"


@pytest.mark.parametrize(("release", "status"), [("10.7.0", 3), ("10.9.0.34", 0), ("11.4.0.106", 0)])
def test_generated_script_guards_same_compute_capability(
    release: str,
    status: int,
    stand_in: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in(release)
    assert run_script(tmp_path, monkeypatch, "--hardware-compatibility", "same_compute_capability") == status
    assert ("needs TensorRT 10.9 or later, this is 10.7.0" in capsys.readouterr().err) == bool(status)


def test_generated_script_names_the_refused_nodes(
    stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in("11.4.0.106")
    assert run_script(tmp_path, monkeypatch, model="refused.onnx") == 1
    shown = capsys.readouterr().err
    assert "MatMul node 'encoder.layer.0.MatMul': types of inputs differ" in shown
    assert "25 messages, the first are above" in shown and "layer.20." not in shown


BUILD = """
import json, logging, sys
from pathlib import Path
from engines.tensorrt import Probe, TensorRTSettings, build, builder
from qdq.errors import QdqError
logging.basicConfig(level=logging.WARNING, format="%(message)s")
gpu, folder = sys.argv[1], Path(sys.argv[2])
import tensorrt as trt
builder.probe = lambda: Probe(gpu, trt.__version__, "0.53.6")
for options in json.loads(sys.argv[3]):
    options["timing_cache"] = folder / "timing.cache"
    try:
        build(folder / options.pop("model", "model.onnx"), folder, TensorRTSettings(**options))
        print(json.dumps(trt.RECORD))
    except QdqError as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
"""


def polygraphy_builds(folder: Path, release: str, *runs: dict[str, Any]) -> tuple[list[Any], str]:
    """What builds with these settings were told, or their errors; and the log. In a child: polygraphy keeps modules."""
    (folder / "tensorrt.py").write_bytes(STAND_IN.read_bytes())
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT32, ["batch", "sequence"])
    out = helper.make_tensor_value_info("out", TensorProto.INT32, ["batch", "sequence"])
    graph = helper.make_graph([helper.make_node("Identity", ["input_ids"], ["out"])], "tiny", [ids], [out])
    for name in ("model.onnx", "refused.onnx"):
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), folder / name)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, "NVIDIA T4, compute capability 7.5", str(folder), json.dumps(runs)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))),
            "STAND_IN_RELEASE": release,
            "STAND_IN_NAMES": str(NAMES),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith(("{", '"'))], done.stderr


@pytest.mark.parametrize("release", ["10.0.1", "11.4.0.106"])
def test_polygraphy_build_runs_to_its_end(release: str, tmp_path: Path) -> None:
    (tmp_path / "timing.cache").write_bytes(b"timings of 8.6.1")
    portable = {"version_compatible": True, "optimization_level": 5}
    told, log = polygraphy_builds(tmp_path, release, {}, portable, {"refit": True, "strip_weights": True})
    first, second, third = told
    assert first["flags"] == ["TF32"] and first["pools"] == {"WORKSPACE": 4 << 30}
    assert "hardware_compatibility_level" not in first
    assert first["shapes"] == {"input_ids": [[1, 1], [40, 128], [40, 128]]}
    assert first["timings_reused"] is False and "measured by another TensorRT version" in log
    assert second["flags"] == ["VERSION_COMPATIBLE", "TF32"] and second["timings_reused"] is True
    assert second["builder_optimization_level"] == 5
    assert third["flags"] == ["REFIT", "STRIP_PLAN", "TF32"]
    assert (tmp_path / "timing.cache").read_text() == f"timings of {release}"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file() and path.suffix != ".onnx") == [
        *("build_engine.py", "layer_info.json", "model.plan", "tensorrt.py", "timing.cache", "trtexec.sh")
    ]


def test_polygraphy_build_names_refused_nodes_and_refuses_a_t4_for_ampere(tmp_path: Path) -> None:
    runs = [
        {"model": "refused.onnx"},
        *({"hardware_compatibility": level} for level in ("ampere_plus", "same_compute_capability")),
    ]
    (refused, ampere, same), _ = polygraphy_builds(tmp_path, "10.7.0", *runs)
    assert refused.startswith("BuildError: TensorRT 10.7.0 cannot parse ")
    assert "MatMul node 'encoder.layer.19.MatMul': types of inputs differ\n  and 5 more" in refused
    assert ampere.startswith("ConfigError: TensorRT hardware_compatibility: ampere_plus needs compute capability 8.0")
    assert "this GPU has 7.5; use same_compute_capability or none" in ampere
    assert "needs TensorRT 10.9 or later, this is 10.7" in same
    assert not (tmp_path / "model.plan").exists()


def test_stand_in_lacks_what_its_release_lacks(stand_in: Any) -> None:
    trt = stand_in("11.0.0.114")
    for name in ("INT8", "FP16"):
        with pytest.raises(AttributeError):
            getattr(trt.BuilderFlag, name)
    with pytest.raises(AttributeError, match=r"has no 'IBuilderConfig\.int8_calibrator' to set"):
        trt.Builder(trt.Logger()).create_builder_config().int8_calibrator = None


def test_the_script_and_trtexec_give_each_bucket_a_profile(
    stand_in: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added: list[Any] = []
    module = stand_in(RELEASES[-1])
    monkeypatch.setattr(module.IBuilderConfig, "add_optimization_profile", lambda _, one: added.append(one) or 0)
    settings = TensorRTSettings(buckets=(32, 64))
    script = tmp_path / "build_engine.py"
    script.write_text(build_script("model.onnx", PAIR, settings), encoding="utf-8")
    (tmp_path / "model.onnx").write_bytes(b"")
    monkeypatch.setattr(sys, "argv", [str(script)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0 and len(added) == 3
    text = trtexec_script("model.onnx", PAIR, settings)
    assert "--profile=2 \\\n    --minShapes=input_ids:1x64" in text and text.count("--maxShapes") == 3
    assert "--profile" not in trtexec_script("model.onnx", PAIR, TensorRTSettings())
