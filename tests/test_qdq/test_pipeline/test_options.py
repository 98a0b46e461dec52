"""Options of a compile run: every wrong value is named with its nearest valid one; defaults depend on the target."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields, replace
from typing import Any

import pytest

from engines.bench_gpu.settings import GpuBenchSettings
from engines.cores import available_cores
from engines.instructions import Int8Sums
from qdq.cli.plans import PlanOptions
from qdq.errors import ConfigError
from qdq.pipeline import options as module
from qdq.pipeline.options import GROUPS, CompileOptions, candidates, resolve


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"target": "openvin"}, r"--target: unknown value 'openvin'; did you mean 'openvino'\? \(valid: auto, "),
        ({"target": "tensorrrt"}, r"did you mean 'tensorrt'\?"),
        ({"precision_hint": "fp32"}, r"--precision-hint: unknown value 'fp32'; did you mean 'f32'\?"),
        ({"calibrator": "mx"}, r"--calibrator: unknown value 'mx'; did you mean 'max'\?"),
        ({"placement": "linear-qk"}, r"--placement: unknown value 'linear-qk'; did you mean 'linear\+qk'\?"),
        ({"buckets": (64, 32, 128)}, "--buckets: 64,32,128 must be increasing lengths"),
        ({"buckets": (32, 128), "triton_backend": "openvino"}, "--buckets: Triton's openvino backend forms no batches"),
        ({"triton_backend": "onnx"}, r"--triton-backend: unknown value 'onnx'; did you mean 'onnxruntime'\?"),
        ({"placement": "linear", "spec": "s.yaml"}, "--placement and --spec both"),
        ({"samples": 0}, r"--samples: 0 is outside 1\.\."),
        ({"eval_samples": 0}, r"--eval-samples: 0 is outside 1\.\."),
        ({"batch": 0}, r"--batch: 0 is outside 1\.\.4096"),
        ({"batch": 5000}, r"--batch: 5000 is outside 1\.\.4096"),
        ({"sequence": 3}, r"--sequence: 3 is outside 4\.\."),
        ({"threads": -1}, r"--threads: -1 is outside 0\.\."),
        ({"calibrator": "KLL"}, r"--calibrator: unknown value 'KLL'; did you mean 'KL'\?"),
        ({"calibrator": "percentile:101"}, r"--calibrator: percentile: 101\.0 is outside \(0, 100\]"),
        ({"calibrator": "mse:3"}, r"--calibrator: 'mse:3': only percentile takes a number"),
        ({"percentile": 0.0}, r"percentile: 0\.0 is outside \(0, 100\]"),
        ({"percentile": 100.5}, r"percentile: 100\.5 is outside"),
        ({"percentile": float("nan")}, "percentile: nan is outside"),
        ({"algo_list": ("mse", "KLL")}, "--algo-list: unknown value 'KLL'; did you mean 'KL'"),
        ({"batch_num_list": (None, 0)}, "--batch-num-list: 0 is outside 1"),
        ({"batch_size_list": (-4,)}, "--batch-size-list: -4 is outside 1"),
        ({"round_type": "adarond"}, "--round-type: unknown value 'adarond'; did you mean 'adaround'"),
        ({"activation_quantize_type": "absmax"}, "--activation-quantize-type: .*did you mean 'abs_max'"),
        ({"activation_quantize_type": "moving_average_abs_max", "moving_rate": 1.5}, r"moving_rate 1\.5 is outside"),
        ({"max_drop": 100.5}, r"--max-drop: 100\.5 is outside 0\.\.100"),
        ({"weight_quantize_type": "channel"}, "--weight-quantize-type: unknown value 'channel'"),
        ({"bench_seconds": 0.0}, r"--bench-seconds: 0\.0 must be positive"),
        ({"bench_seconds": float("nan")}, "--bench-seconds: nan must be positive"),
        ({"hardware_compatibility": "ampere"}, r"--hardware-compatibility: .*did you mean 'ampere_plus'"),
        ({"optimization_level": 6}, r"--optimization-level: 6 is outside 0\.\.5"),
        ({"sm": 90}, "--sm: 90 is none of 75, 80, 86, 89, 120, 121; the nearest is 89"),
        ({"sm": 7}, "--sm: 7 is none of .*; the nearest is 75"),
        ({"workspace_gib": 0.0}, r"--workspace-gib: 0\.0 must be positive"),
        ({"text_columns": ("a", "b", "c")}, "--text-columns: at most two"),
    ],
)
def test_wrong_values_are_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CompileOptions(), **values).validate()


def test_the_defaults_are_valid_and_what_the_issue_says() -> None:
    options = CompileOptions()
    options.validate()
    assert (options.target, options.batch, options.sequence, options.precision_hint) == ("auto", 40, 128, "f32")


def test_every_option_has_a_group_of_the_help() -> None:
    assert {known.metadata["group"] for known in fields(CompileOptions)} == set(GROUPS)


def test_defaults_of_the_gpu_benchmark_are_its_own() -> None:
    """plans.py repeats them so that the command line needs no numpy."""
    settings, declared = GpuBenchSettings(), PlanOptions()
    shared = {known.name for known in fields(GpuBenchSettings)} & {known.name for known in fields(PlanOptions)}
    assert shared == {known.name for known in fields(PlanOptions)} - {"engine"}
    assert {name: getattr(settings, name) for name in shared} == {name: getattr(declared, name) for name in shared}


def test_only_clip_treats_ranges_beside_the_algorithm() -> None:
    assert CompileOptions().treatments.clip_search and CompileOptions().ptq_settings().algo_list == ("max",)
    assert not CompileOptions(calibrator="max").treatments.clip_search
    assert not CompileOptions(activation_quantize_type="abs_max").treatments.clip_search
    off = CompileOptions(smoothing=False, round_type="round")
    assert not off.treatments.smoothing and off.treatments.equalization and off.treatments.round_type == "round"
    assert off.ptq_json()["smoothing"] is False


@pytest.mark.parametrize("target", ["openvino", "onnxruntime", "tensorrt"])
def test_resolve_fills_in_what_is_open(target: str) -> None:
    resolved = resolve(CompileOptions(target=target), "minilm")
    assert resolved.placement == "auto"
    assert resolved.out == "build/minilm"
    assert resolved.threads == available_cores() >= 1


def test_resolve_keeps_what_was_typed() -> None:
    typed = CompileOptions(target="openvino", placement="qdqbert", threads=1, streams=1, out="/tmp/x", model="m")
    assert resolve(typed, "other") == typed


def test_requests_at_once_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "available_cores", lambda: 8)
    monkeypatch.setattr(module, "numa_nodes", lambda: ())
    resolved = resolve(CompileOptions(target="openvino", mode="throughput", threads=2), "m")
    assert (resolved.threads, resolved.streams) == (2, 4)
    with pytest.raises(ConfigError, match="--mode: throughput is about CPU engines"):
        resolve(CompileOptions(target="tensorrt", mode="throughput"), "m")


def test_a_batch_without_padding_is_for_plans_and_needs_no_buckets() -> None:
    with pytest.raises(ConfigError, match="--batch-form: rows is for plans of TensorRT, this run is for openvino"):
        resolve(CompileOptions(target="openvino", batch_form="rows"), "m")
    with pytest.raises(ConfigError, match="--buckets: a batch without padding holds all lengths"):
        resolve(CompileOptions(target="tensorrt", batch_form="gather", buckets=(64, 128)), "m")


def test_the_longest_bucket_is_where_texts_are_cut() -> None:
    with pytest.raises(ConfigError, match="--buckets: 32,64 must end with --sequence 128"):
        resolve(CompileOptions(target="openvino", buckets=(32, 64)), "m")


def test_a_spec_file_takes_the_place_of_a_named_placement() -> None:
    assert resolve(CompileOptions(target="openvino", spec="s.yaml"), "m").placement is None


@pytest.mark.parametrize(
    ("saturate", "racing"), [(False, ("openvino", "onnxruntime")), (True, ("onnxruntime", "openvino"))]
)
def test_auto_without_the_tensorrt_module_is_a_race_whose_likely_winner_comes_first(
    monkeypatch: pytest.MonkeyPatch, saturate: bool, racing: tuple[str, ...]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(module, "int8_sums", lambda: Int8Sums((), saturate))
    assert candidates("auto") == racing
    assert candidates("tensorrt") == ("tensorrt",)
    assert resolve(CompileOptions(), "m").target == racing[0]


def test_options_are_plain_json() -> None:
    options = CompileOptions(text_columns=("a", "b"))
    assert json.loads(json.dumps(options.as_json())) == options.as_json()
    assert options.as_json()["text_columns"] == ["a", "b"]


def test_options_need_no_heavy_import() -> None:
    heavy = "{'torch', 'transformers', 'onnx', 'openvino'}"
    code = f"import sys, qdq.pipeline.options; print(sorted({heavy} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
