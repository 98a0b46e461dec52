"""Compile from end to end on a tiny checkpoint: every file with its keys, both targets side by side, one answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.instructions import int8_sums
from qdq.errors import DeployError

CheckpointFactory = Callable[..., Path]
TARGETS = ("openvino", "onnxruntime")
STAGES = ("load", "inject", "calibrate", "export", "lower", "build", "verify", "bench", "deploy", "report")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_files_of_the_work_directory(compiled: Path) -> None:
    work = compiled / "work"
    points = read(work / "placement.json")["points"]
    assert {point["kind"] for point in points} == {"linear_input", "linear_weight", "matmul", "residual", "embedding"}
    assert all(isinstance(point["placed"], bool) and point["reason"] and point["name"] for point in points)
    calibration = read(work / "calibration.json")
    placed = {point["name"] for point in points if point["placed"]}
    assert placed == calibration["activations"].keys() | calibration["weights"].keys()
    assert calibration["source"] == "text.jsonl (text), 16 texts"
    assert (work / "checkpoint" / "model.safetensors").is_file()
    assert (work / "checkpoint" / "tokenizer.json").is_file()
    for graph in ("model.qdq.onnx", "model.fp32.onnx"):
        onnx.checker.check_model(work / graph, full_check=True)
    manifest = read(work / "manifest.json")
    assert manifest["seed"] == 0
    assert {"torch", "transformers", "onnx", "openvino", "onnxruntime"} <= manifest["versions"].keys()
    assert manifest["options"]["sequence"] == 32
    assert manifest["model"] == {"name": "tiny-bert"}
    digest = hashlib.sha256((work / "model.qdq.onnx").read_bytes()).hexdigest()
    assert manifest["stages"]["export"]["outputs"]["model.qdq.onnx"] == digest


@pytest.mark.parametrize("target", TARGETS)
def test_the_files_of_a_target(compiled: Path, target: str) -> None:
    folder = compiled / "work" / target
    onnx.checker.check_model(folder / "model.onnx", full_check=True)
    passes = read(folder / "passes.json")
    canonical = (compiled / "work" / "model.qdq.onnx").read_bytes()
    assert passes["canonical_sha256"] == hashlib.sha256(canonical).hexdigest()
    build = read(folder / "build.json")
    assert build["target"] == target
    assert all((folder / name).is_file() for name in build["engine_files"])
    assert build["int8"]["encoder_linear"] == [6, 6]
    # ONNX Runtime's flash attention multiplies floats, whatever the placement says; where INT8 products saturate,
    # OpenVINO's does, too.
    saturate = int8_sums().saturate
    assert build["int8"]["attention_matmul"] == [1 if target == "openvino" and not saturate else 0, 2]
    assert build["settings"]["int8_sums"].items() >= int8_sums().as_json().items()
    assert ("fitted" in build["settings"]["int8_sums"]) == (target == "openvino" and saturate)
    assert all(item["name"] and item["reason"] for item in build["int8"]["not_int8"])
    accuracy = read(folder / "accuracy.json")
    assert accuracy["cosine_mean"] > 0.99
    assert -1 <= accuracy["cosine_min"] <= accuracy["cosine_mean"] <= 1
    assert accuracy["max_abs_error"] > 0
    assert accuracy["samples"] == 20
    metric = accuracy["metric"]
    assert metric["name"] == "accuracy"
    assert metric["drop_points"] == pytest.approx(100 * (metric["fp32"] - metric["int8"]))
    bench = read(folder / "benchmark.json")
    assert target != "openvino" or 0.5 <= bench["unpacked_from"] <= 2.0
    assert (bench["batch"], bench["sequence"]) == (2, 32)
    names = {"int8", "openvino-fp32", "onnxruntime-fp32"}
    assert names <= set(bench["contestants"]) <= names | {"torch-fp32"}  # the last where the budget had room
    cropped = {f"{name}-cropped" for name in names}
    assert {"int8", *cropped} <= set(bench["texts"]["contestants"]) <= names | cropped
    assert bench["workload"]["padding_share"] == 0 < bench["texts"]["workload"]["padding_share"]
    assert bench["contestants"]["int8"]["engine"] == target
    for entry in (*bench["contestants"].values(), *bench["texts"]["contestants"].values()):
        assert entry["samples"] >= 3
        assert entry["sequences_per_s"] > 0
        assert set(entry["latency_ms"]) == {"mean", "p50", "p90", "p95", "p99"}
        assert entry["latency_ms"]["p99"] is None or entry["samples"] >= 100
    assert bench["machine"]["cpu"]
    assert bench["versions"]["openvino"]
    served = folder / "model_repository" / "tiny-bert"
    assert (served / "config.pbtxt").is_file()
    engine = {"openvino": ("model.xml", "model.bin"), "onnxruntime": ("engine.onnx",)}[target]
    for name in engine:  # the very engine that was verified and timed
        assert (served / "1" / name).read_bytes() == (folder / name).read_bytes()
    assert json.loads((served / "1" / "text.json").read_text())["labels"] == ["LABEL_0", "LABEL_1"]
    assert (served / "config.pbtxt").read_text().startswith("# PROBABILITIES are the softmax of LOGITS")


def test_both_targets_give_the_same_answers(compiled: Path, sentences: tuple[str, ...]) -> None:
    """One graph, two codings (s8, u8 with zero-point 128): the same values but for the order of float sums."""
    from engines.onnxruntime import OnnxRuntimeRunner, OnnxRuntimeSettings
    from engines.openvino import OpenVINORunner, OpenVINOSettings
    from qdq.loading.model import load_model
    from qdq.text.data import Record
    from qdq.text.encode import encode_batch

    loaded = load_model(str(compiled / "tiny-bert"))
    feeds = encode_batch(loaded.tokenizer, [Record(text) for text in sentences], loaded.inputs, 32)
    one = OpenVINORunner(compiled / "work/openvino/model.xml", OpenVINOSettings(1))(feeds)["logits"]
    other = OnnxRuntimeRunner(compiled / "work/onnxruntime/model.onnx", OnnxRuntimeSettings(1))(feeds)["logits"]
    # A sum in another order can put a value on the other side of a rounding boundary: one step of one point.
    assert np.abs(one - other).max() < 0.05
    assert np.abs(one - other).mean() < 0.01
    assert (one.argmax(-1) == other.argmax(-1)).all()


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_printed(compiled: Path, target: str) -> None:
    """The resolved configuration comes first, the artifacts last, and no line is wider than a terminal."""
    err = (compiled / f"{target}.err").read_text().splitlines()
    settings = [line.split()[0] for line in err[: err.index("")]]
    assert settings == ["model", "target", "placement", "calibration", "evaluation", "benchmark", "also", "out"]
    assert err[1].split() == ["target", f"{target},", "1", "thread,", "precision", "hint", "f32"]
    stages = [words[0] for line in err[err.index("") :] if (words := line.split()) and words[0] in STAGES]
    assert tuple(dict.fromkeys(stages)) == STAGES  # a slow one says in between that it works
    out = (compiled / f"{target}.out").read_text().splitlines()
    last = out.index(f"work/{target}/model_repository")
    assert out[last + 1 : last + 2] in ([], [""])  # nothing more, or that INT8 is not faster here
    artifacts = out[last + 1 - out[last::-1].index("") : last + 1]
    assert all((compiled / path).exists() for path in artifacts)
    assert {"work/placement.json", "work/checkpoint", f"work/{target}/build.json"} <= set(artifacts)
    assert any("6 of 6 encoder linears" in line for line in out)
    assert all(len(line) <= 80 for line in (*err, *out))


def test_the_result_is_shown_before_anything_is_made_of_it(
    workplace: Path, qdq: Callable[..., Any], small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise DeployError("the disk is full")

    monkeypatch.setattr("qdq.pipeline.stages.deploy._deploy_text", broken)
    source = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--out", "work", "--target", "openvino")
    ran = qdq("compile", *source, *small, "--queue-size", "7")  # which nothing before stage 9 depends on
    assert (ran.code, states(ran.err)["bench"]) == (1, "up to date")
    assert "6 of 6 encoder linears" in ran.out and "full rows" in ran.out and "cosine to FP32" in ran.out
    assert "model_repository" not in ran.out  # where things are comes last


def test_a_second_run_does_nothing(workplace: Path, qdq: Callable[..., Any], small: tuple[str, ...]) -> None:
    before = contents(workplace / "work")
    source = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--out", "work")
    for target in TARGETS:
        ran = qdq("compile", *source, "--target", target, *small)
        assert ran.code == 0
        # The one page is of the last target, so it is made anew for the other one.
        assert states(ran.err) == dict.fromkeys(STAGES[:-1], "up to date") | {"report": "ran"}
    assert states(qdq("compile", *source, "--target", target, *small).err) == dict.fromkeys(STAGES, "up to date")
    after = contents(workplace / "work")
    del before["manifest.json"], after["manifest.json"]  # names the target of the last run
    assert after == before


def test_json_is_one_document(workplace: Path, qdq: Callable[..., Any], small: tuple[str, ...]) -> None:
    source = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--out", "work")
    ran = qdq("compile", *source, "--target", "openvino", *small, "--json")
    outcome = json.loads(ran.out)
    assert outcome["exit_code"] == ran.code == 0
    assert outcome["build"]["int8"]["encoder_linear"] == [6, 6]
    assert outcome["accuracy"]["samples"] == 20
    assert outcome["benchmark"]["batch"] == 2
    assert outcome["artifacts"][-1] == "work/openvino/model_repository"
    assert outcome["warnings"] == []


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by relative name; timings are left out."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "benchmark.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def states(err: str) -> dict[str, str]:
    """Stage -> "up to date" or "ran", in the order they are shown."""
    rows = [line.split(maxsplit=1) for line in err.splitlines() if line.startswith("  ") and line.split()]
    return {row[0]: "up to date" if row[1:] == ["up to date"] else "ran" for row in rows if row[0] in STAGES}
