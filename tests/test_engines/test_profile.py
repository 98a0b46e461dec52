"""`qdq profile`: what the engines' counters say about a small encoder; the table and the picture made of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from engines.instructions import int8_sums
from engines.onnxruntime.build import OnnxRuntimeSettings
from engines.openvino import OpenVINOSettings, build
from engines.profile.command import ProfileSettings, profile_command, subjects_of
from engines.profile.feeds import token_feeds
from engines.profile.layers import GROUPS, Layer, Profiled, Profiler
from engines.profile.onnxruntime import OnnxRuntimeProfiler
from engines.profile.openvino import OpenVINOProfiler
from engines.profile.peak import measure_peak
from engines.profile.picture import draw_profile
from engines.profile.report import profile_report
from engines.profile.table import render_profile
from qdq.cli.arguments import parse
from qdq.cli.file_commands import run_file_command
from qdq.errors import ConfigError

BATCH, SEQUENCE, HIDDEN, INNER = 2, 16, 64, 128
# query, key, value and output projection, and the two linears behind them
LINEARS = BATCH * SEQUENCE * (4 * HIDDEN * HIDDEN + 2 * HIDDEN * INNER)


@pytest.fixture
def encoder(write_encoder: Callable[..., Path], tmp_path: Path) -> Path:
    path = write_encoder("engine/model.onnx")
    build(path, path.parent, OpenVINOSettings(threads=1), None)
    return path


def profile(profiler: Profiler, file: Path) -> Profiled:
    for _ in range(3):
        profiler.run(token_feeds(file, BATCH, SEQUENCE))
    return profiler.result()


def of(group: str, profiled: Profiled) -> list[Layer]:
    return [layer for layer in profiled.layers if layer.group == group]


@pytest.mark.parametrize("suffix", [".xml", ".onnx"])
def test_openvino_layers_are_grouped_and_their_work_counted(encoder: Path, suffix: str) -> None:
    file = encoder.with_suffix(suffix)
    profiled = profile(OpenVINOProfiler(file, OpenVINOSettings(threads=1)), file)
    assert sum(layer.multiply_adds for layer in of("gemm", profiled)) == LINEARS
    assert len(of("gemm", profiled)) == 6
    assert all(layer.int8 for layer in of("gemm", profiled))
    assert of("attention", profiled)
    assert of("layernorm", profiled)
    assert of("embeddings", profiled)
    assert len(of("residual", profiled)) == 2
    assert sum(layer.milliseconds for layer in profiled.layers) > 0
    assert profiled.call_ms > 0


def test_onnxruntime_layers_are_grouped_and_their_work_counted(encoder: Path) -> None:
    profiled = profile(OnnxRuntimeProfiler(encoder, OnnxRuntimeSettings(1)), encoder)
    assert sum(layer.multiply_adds for layer in of("gemm", profiled)) == LINEARS
    assert of("layernorm", profiled)
    assert of("embeddings", profiled)
    assert {layer.group for layer in profiled.layers} <= set(GROUPS)


def test_a_kernel_below_the_clocks_resolution_is_not_dropped(encoder: Path) -> None:
    profiler = OpenVINOProfiler(encoder.with_suffix(".xml"), OpenVINOSettings(threads=1))
    measured = profile(profiler, encoder.with_suffix(".xml"))
    profiler._times = {name: [0.0, 0.0] for name in profiler._times}  # as a faster machine's counters read
    assert [layer.name for layer in profiler.result().layers if layer.group in ("residual", "gemm", "layernorm")] == [
        layer.name for layer in measured.layers if layer.group in ("residual", "gemm", "layernorm")
    ]


@pytest.mark.parametrize("suffix", [".xml", ".onnx"])
def test_feeds_fit_the_table_of_the_model(encoder: Path, suffix: str) -> None:
    feeds = token_feeds(encoder.with_suffix(suffix), 4, 9)
    assert sorted(feeds) == ["attention_mask", "input_ids"]
    assert feeds["input_ids"].max() < 50  # rows of the table
    assert np.unique(feeds["input_ids"]).size > 10
    assert feeds["attention_mask"].sum(axis=1).tolist() == [9, 6, 9, 6]


def test_the_peak_of_int8_is_above_that_of_floats_where_the_cpu_has_an_instruction_for_it() -> None:
    """Without VNNI, OpenVINO's INT8 kernel reached 58 billion operations a second beside 70 in FP32."""
    peak = measure_peak(1)
    assert min(peak.values()) > 1  # a laptop core of 2010 multiplied more than a billion floats a second
    assert peak["int8"] > peak["fp32"] or int8_sums().saturate


def synthetic() -> dict[str, Any]:
    layers = (
        Layer("a", "FullyConnected", "gemm", True, 2.0, 1_000_000_000),
        Layer("b", "FullyConnected", "gemm", False, 1.0, 50_000_000),
        Layer("c", "Subgraph", "attention", True, 0.5),
    )
    profiles = {"before": ("openvino", Profiled(layers, 4.0)), "after": ("onnxruntime", Profiled(layers[2:], 0.6))}
    return profile_report(profiles, {"int8": 2000.0, "fp32": 400.0}, {"batch": 4, "sequence": 16, "threads": 2})


def test_efficiency_is_operations_per_second_over_the_peak() -> None:
    before, after = synthetic()["profiles"]
    assert before["gemm"]["int8"] == {"ms": 2.0, "giga_operations_per_s": pytest.approx(1000), "of_peak": 0.5}
    assert before["gemm"]["float"]["of_peak"] == pytest.approx(0.25)
    assert before["layers_ms"] == pytest.approx(3.5)
    assert after["gemm"] == {"int8": None, "float": None}
    text = render_profile(synthetic())
    assert "50%" in text and "25%" in text
    assert max(map(len, text.splitlines())) <= 80 + len(synthetic()["machine"]["cpu"])


def test_the_picture_has_a_bar_per_engine(tmp_path: Path) -> None:
    svg = draw_profile(synthetic(), tmp_path / "profile.svg").read_text(encoding="utf-8")
    assert svg.count("<!-- before -->") == 1
    assert svg.count("<!-- after -->") == 1
    assert "<!-- gemm -->" in svg
    assert "<!-- softmax -->" not in svg  # no time, no entry in the legend


def test_the_command_writes_what_it_prints(encoder: Path, tmp_path: Path) -> None:
    settings = ProfileSettings(batch=2, sequence=16, threads=1, rounds=1)
    files = [f"ov={encoder.with_suffix('.xml')}", f"ort={encoder}"]
    rounds: list[tuple[int, int]] = []
    subjects = subjects_of(files, None, False)

    def progress(done: int, of: int) -> None:
        rounds.append((done, of))

    text = profile_command(subjects, settings, tmp_path / "out", as_json=True, progress=progress)
    assert rounds == [(0, 2), (1, 2)]
    report = json.loads((tmp_path / "out" / "profile.json").read_text(encoding="utf-8"))
    assert json.loads(text) == report
    assert [(entry["label"], entry["engine"]) for entry in report["profiles"]] == [
        ("ov", "openvino"),
        ("ort", "onnxruntime"),
    ]
    layers = json.loads((tmp_path / "out" / "layers.json").read_text(encoding="utf-8"))
    assert sum(layer["milliseconds"] for layer in layers["ov"]) == pytest.approx(report["profiles"][0]["layers_ms"])
    assert (tmp_path / "out" / "profile.png").read_bytes()[1:4] == b"PNG"


def test_every_pass_of_the_lowering_gets_a_bar(encoder: Path) -> None:
    options = ["profile", str(encoder), "--steps", "--json", "--batch", "2", "--sequence", "16"]
    _, typed, _ = parse([*options, "--threads", "1", "--rounds", "1"])
    text, code = run_file_command("profile", typed, typed.pop("json"))
    assert code == 0
    labels = [entry["label"] for entry in json.loads(text)["profiles"]]
    assert labels == ["canonical", "pack_tokens", "recode_linears_unsigned", "static shape"]
    with pytest.raises(ConfigError, match="absent: is not a file; --steps takes a canonical graph"):
        run_file_command("profile", {"file": ("absent",), "steps": True}, as_json=False)


def test_bad_input_is_named(encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.xml: is not a file"):
        subjects_of([str(tmp_path / "absent.xml")], None, False)
    with pytest.raises(ConfigError, match="two files are called 'engine'; name them"):
        subjects_of([str(encoder), str(encoder.with_suffix(".xml"))], None, False)
    with pytest.raises(ConfigError, match="neither an OpenVINO IR"):
        subjects_of([str(encoder.with_suffix(".bin"))], None, False)
    with pytest.raises(ConfigError, match="did you mean 'openvino'"):
        subjects_of([str(encoder)], "openvin", False)
    with pytest.raises(ConfigError, match="--rounds: 0 must be at least 1"):
        ProfileSettings(rounds=0)
    assert onnx.load(encoder).graph.node  # untouched
