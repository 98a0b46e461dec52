"""On a machine with TensorRT: engines are built, are what was predicted, compute what the graph says, and are fast.

`make test-gpu` runs these. Elsewhere they are skipped, with what is missing as the reason.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from engines.tensorrt import (
    TensorRTRunner,
    TensorRTSettings,
    build,
    collect,
    inspect_command,
    load_layer_info,
    probe,
    verdict,
)
from engines.types import BuiltEngine
from export.lint import fusion_map
from qdq.pipeline.stages.build import multiplications

# A deprecation in a TensorRT release that came after these tests says nothing about the engine.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

SHAPES = ((1, 1), (3, 17), (8, 64))  # least, odd, largest of the tiny profile
ROUNDS = 200
TRITON_START_S = 120.0


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TensorRTSettings:
    cache = tmp_path_factory.mktemp("timings") / "timing.cache"
    return TensorRTSettings(batch_opt=8, batch_max=8, sequence_opt=64, sequence_max=64, timing_cache=cache)


@pytest.fixture(scope="module")
def tiny_engine(tiny: Any, settings: TensorRTSettings) -> BuiltEngine:
    return build(tiny.int8, tiny.int8.parent, settings, multiplications(tiny.int8))


def compute_capability() -> int:
    """75 for a T4."""
    return round((probe().capability or 7.5) * 10)


def check_prediction(model: Path, sequence: int) -> None:
    """Every multiplication and every attention of the engine beside `model` is what the linter predicted."""
    predicted = fusion_map(onnx.load(model), compute_capability(), sequence)
    layer_info = model.parent / "layer_info.json"
    text, _ = inspect_command(layer_info, predicted)
    sys.stdout.write(text)  # shown with -s, and in the report of a failure
    differences = verdict(load_layer_info(layer_info), predicted).differences
    wrong = [item for item in differences if item.kind in ("gemm", "attention")]
    assert not wrong, "\n".join(f"{item.name}: predicted {item.predicted}; {item.found}" for item in wrong)


def check_parity(model: Path, plan: Path, shapes: Any, tools: Any) -> None:
    """The plan computes what ONNX Runtime computes on the same graph, at every shape."""
    with TensorRTRunner(plan) as run:
        for batch, sequence in shapes:
            feeds = tools.feeds_of(model, batch, sequence)
            cosine = tools.least_cosine(run(feeds), tools.reference(model, feeds))
            assert cosine > tools.tolerance, f"{batch} x {sequence}: least cosine {cosine:.5f}"


def test_tiny_engine_runs_its_linears_in_int8(tiny_engine: BuiltEngine) -> None:
    assert tiny_engine.int8 is not None
    assert tiny_engine.int8.encoder_linear == (12, 12), tiny_engine.int8.not_int8


def test_tiny_engine_is_what_was_predicted(tiny: Any, tiny_engine: BuiltEngine) -> None:
    check_prediction(tiny.int8, 64)


def test_tiny_engine_computes_what_the_graph_says(tiny: Any, tiny_engine: BuiltEngine, tools: Any) -> None:
    check_parity(tiny.int8, tiny_engine.files[0], SHAPES, tools)


def test_timings_are_kept_for_the_next_build(
    tiny: Any, tiny_engine: BuiltEngine, settings: TensorRTSettings, caplog: pytest.LogCaptureFixture
) -> None:
    assert settings.timing_cache is not None and settings.timing_cache.stat().st_size > 0
    with caplog.at_level(logging.WARNING):
        build(tiny.int8, tiny.int8.parent, settings)
    assert "measured by another TensorRT version" not in caplog.text


@pytest.mark.parametrize(
    "asked",
    [{"version_compatible": True}, {"hardware_compatibility": "same_compute_capability"}],
    ids=["version_compatible", "same_compute_capability"],
)
def test_portable_plans_load_and_compute(
    asked: dict[str, Any], tiny: Any, settings: TensorRTSettings, tools: Any, tmp_path: Path
) -> None:
    if "hardware_compatibility" in asked and probe().release < (10, 9):
        pytest.skip("same_compute_capability needs TensorRT 10.9 or later")
    model = Path(shutil.copy(tiny.int8, tmp_path))
    built = build(model, tmp_path, replace(settings, **asked, timing_cache=None))
    check_parity(model, built.files[0], SHAPES, tools)


def test_generated_script_builds_the_same_engine(
    tiny: Any, settings: TensorRTSettings, tools: Any, tmp_path: Path
) -> None:
    from engines.interface import interface
    from engines.tensorrt import write_build_files

    model = Path(shutil.copy(tiny.int8, tmp_path))
    script, _ = write_build_files(model, tmp_path, interface(model)[0], replace(settings, timing_cache=None))
    subprocess.run([sys.executable, str(script)], check=True, timeout=1200)
    built = collect(model, tmp_path, settings, multiplications(model))
    assert built.int8 is not None and built.int8.encoder_linear == (12, 12)
    check_parity(model, built.files[0], SHAPES, tools)


def test_default_model(default_model: Any, tools: Any) -> None:
    model = default_model.int8
    built = build(model, model.parent, TensorRTSettings(), multiplications(model))
    assert built.int8 is not None and built.int8.encoder_linear == (36, 36), built.int8
    check_parity(model, built.files[0], ((1, 16), (40, 128)), tools)
    check_prediction(model, 128)


@pytest.fixture(scope="module")
def base_plans(base_sized: Any) -> dict[str, Path]:
    """BERT-base with random weights, built in both precisions."""
    for model in (base_sized.int8, base_sized.fp16):
        build(model, model.parent, TensorRTSettings())
    return {name: getattr(base_sized, name).parent / "model.plan" for name in ("int8", "fp16")}


def test_int8_is_faster_than_fp16_on_bert_base(
    base_sized: Any, base_plans: dict[str, Path], tools: Any, record_property: Any
) -> None:
    """Batch 40, sequence 128, both with the transfers of ids and logits, a few hundred KB in all; measured in turns."""
    feeds = tools.feeds_of(base_sized.int8, 40, 128)
    with TensorRTRunner(base_plans["int8"]) as int8, TensorRTRunner(base_plans["fp16"]) as fp16:
        found = tools.medians({"int8": int8, "fp16": fp16}, feeds, ROUNDS)
    sys.stdout.write(f"BERT-base, 40 x 128: INT8 {found['int8']:.2f} ms, FP16 {found['fp16']:.2f} ms\n")
    record_property("milliseconds", found)
    assert found["int8"] < found["fp16"], found


@pytest.mark.parametrize("switches", [(), ("--no-cuda-graph", "--transfers", "--no-spin-wait", "--streams", "2")])
def test_the_benchmark_command_on_a_real_device(
    base_plans: dict[str, Path], tools: Any, tmp_path: Path, switches: tuple[str, ...]
) -> None:
    from qdq.base.artifacts import read_json
    from qdq.cli.main import main

    engines = [word for name, plan in base_plans.items() for word in ("--engine", f"{name}={plan}")]
    # The random checkpoint knows fewer words than the command's random ids go to, but text has its tokenizer.
    text = ("--model", str(base_plans["fp16"].parents[2] / "checkpoint"), "--eval-data", str(tools.texts(tmp_path)))
    assert main(["bench", *engines, *text, *switches, "--iterations", "200", "--out", str(tmp_path)]) == 0
    report = read_json(tmp_path / "benchmark-gpu.json")
    int8 = report["contestants"]["int8"]
    assert report["gpu"]["clock"] == "CUDA events" and report["gpu"]["device"] in (probe().gpu or "")
    assert int8["latency_ms"]["p50"] <= int8["latency_ms"]["p90"] <= int8["latency_ms"]["p99"]
    assert int8["speedup"]["tensorrt-fp16"] > 1


def free_port() -> int:
    with socket.socket() as probing:
        probing.bind(("127.0.0.1", 0))
        return int(probing.getsockname()[1])


@pytest.mark.skipif(shutil.which("tritonserver") is None, reason="tritonserver is not on PATH")
def test_triton_loads_the_plan(tiny: Any, tiny_engine: BuiltEngine, tools: Any, tmp_path: Path) -> None:
    from engines.triton import TritonSettings, write_repository

    sample = {name: array[0] for name, array in tools.feeds_of(tiny.int8, 1, 32).items()}
    serving = TritonSettings("tiny", "tensorrt", max_batch_size=8)
    write_repository(tiny_engine, serving, [sample], tmp_path / "model_repository")
    port = free_port()
    command = ["tritonserver", f"--model-repository={tmp_path / 'model_repository'}", "--exit-on-error=true"]
    command += ["--http-address=127.0.0.1", f"--http-port={port}", "--allow-grpc=false", "--allow-metrics=false"]
    server = subprocess.Popen(command, env=os.environ)
    try:
        tools.wait_until_ready(f"http://127.0.0.1:{port}/v2/models/tiny/ready", server, TRITON_START_S)
    finally:
        server.terminate()
        server.wait(timeout=60)
