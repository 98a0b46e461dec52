"""Latency estimates: the fit is reproducible, held-out rows are met, and every figure is labelled an estimate."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.estimate import estimate, find_device, render_estimate
from engines.estimate.devices import DEVICES
from engines.estimate.kernels import graph_ops
from engines.estimate.model import (
    LIGHT_OVERHEAD,
    VALIDATION,
    Setting,
    kernels_ms,
    load_coefficients,
    op_ms,
    setting,
    tile_share,
    total_ms,
)
from engines.estimate.published import Row, fitted, held_out_groups, published_rows
from engines.estimate.workload import ENCODERS, Encoder, LayerRecord, Op, encoder_layers
from qdq.base.artifacts import read_json, to_json
from qdq.errors import ConfigError
from qdq.studies.estimate.fit import coefficients_json, predicted_ms, validate

ROOT = Path(__file__).resolve().parents[2]
SMALL = Encoder(2, 384, 12, 1536)
# Operations of one multiprocessor per clock, dense FP16, from the architecture whitepapers: SM version -> operations.
FLOAT16_PER_CLOCK = {75: 1024, 80: 2048, 89: 1024, 90: 4096}


# Errors in percent, mean and worst, that the model had when it was fitted on predicted kernels alone.
MOST_ERROR = {
    "T4 BERT-large": (3.9, 11.6),
    "T4 BERT-base, other batch sizes": (2.0, 4.1),
    "batch 1": (4.2, 8.2),
    "A100": (4.1, 8.2),
    "A100, newer TensorRT (10.11)": (4.8, 8.9),
}


@pytest.fixture(scope="module")
def validation() -> dict[str, Any]:
    return validate()


def int8_base() -> tuple[LayerRecord, ...]:
    return encoder_layers(ENCODERS["bert-base"], "int8")


def encoder_ops(encoder: Encoder, precision: str, batch: int, sequence: int) -> tuple[Op, ...]:
    """Kernels of a whole encoder (embedding and SQuAD head included) in one precision."""
    return graph_ops(encoder_layers(encoder, precision), batch, sequence)


def total_of(report: dict[str, Any]) -> float:
    """The estimate of the graph as it is."""
    return float(report["estimate_ms"]["lowered"])


def efficiency(op: Op, on: Setting) -> float:
    """Share of the datasheet peak an op reaches, overhead included."""
    return op.operations / (on.device.peak(op.precision) * 1e-3 * op_ms(op, on))


# ---- the split, the fit, and what it is judged by ----


def test_no_held_out_row_is_fitted_and_every_row_is_used() -> None:
    rows = published_rows()
    held_out = [row for group in held_out_groups(rows).values() for row in group]
    assert not any(fitted(row) for row in held_out)
    assert {row.encoder for row in rows if fitted(row)} == {"bert-base"}
    # Only shapes of the newer release that the older one was fitted at are left out of both.
    left = {row for row in rows if not fitted(row)} - set(held_out)
    assert {(row.source, row.encoder, row.batch) for row in left} == {
        ("trt-10.11", "bert-base", 8),
        ("trt-10.11", "bert-base", 128),
    }


def test_a_new_fit_gives_the_committed_coefficients() -> None:
    again = coefficients_json()
    assert again["coefficients"] == pytest.approx(asdict(load_coefficients()), rel=5e-3)  # another libm steps elsewhere
    assert len(again["coefficients"]) == 5
    assert len(again["fitted_rows"]) == 13


@pytest.mark.parametrize("group", MOST_ERROR)
def test_held_out_rows_are_met(validation: dict[str, Any], group: str) -> None:
    [score] = [score for score in validation["groups"] if score["name"] == group]
    mean, worst = MOST_ERROR[group]
    for kernels in ("compiled", "predicted"):
        assert score[kernels]["mean_error_percent"] <= mean
        assert abs(score[kernels]["worst_error_percent"]) <= worst


def test_bert_base_batch_40_ratio_on_t4(validation: dict[str, Any]) -> None:
    on, base = setting(find_device("t4"), load_coefficients()), ENCODERS["bert-base"]
    int8, wide = (total_ms(encoder_ops(base, precision, 40, 128), on) for precision in ("int8", "float16"))
    assert 1.7 <= wide / int8 <= 2.0
    assert 20 <= int8 <= 25  # published: 18.18 ms at batch 32 and 34.27 ms at batch 64
    assert validation["target"]["ratio"] == pytest.approx(wide / int8, abs=0.01)


def test_the_committed_validation_is_what_the_command_gives(validation: dict[str, Any]) -> None:
    committed = read_json(VALIDATION)
    assert committed["rows"] == validation["rows"]
    for found, kept in zip(validation["groups"], committed["groups"], strict=True):
        assert found["name"] == kept["name"]
        for kernels in ("compiled", "predicted"):
            mean = kept[kernels]["mean_error_percent"]
            assert found[kernels]["mean_error_percent"] == pytest.approx(mean, abs=0.5)


def test_published_rows_name_their_source() -> None:
    data = read_json(VALIDATION.with_name("published.json"))
    assert {row["source"] for row in data["rows"]} == set(data["sources"])
    for source in data["sources"].values():
        assert source["where"].startswith("https://github.com/NVIDIA/")
        assert source["engine"]
        assert source["method"]


# ---- devices and the model ----


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: str(device.name))
def test_datasheet_peaks_agree_with_the_clock(device: Any) -> None:
    per_clock = FLOAT16_PER_CLOCK[device.compute_capability]
    assert device.multiprocessors * per_clock * device.boost_mhz * 1e6 == pytest.approx(
        device.peak("float16"), rel=0.01
    )
    assert device.peak("int8") == pytest.approx(2 * device.peak("float16"), rel=0.01)
    assert "datasheet" in device.source


def test_unknown_device_names_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown value 'a10'; did you mean 'a100'\? \(valid: a100, a30, h200, l4, t4\)"
    ):
        estimate(int8_base(), "a10", 1, 128)
    assert find_device("T4").name == "t4"


@given(
    device=st.sampled_from(DEVICES),
    precision=st.sampled_from(["int8", "float16", "float32"]),
    batch=st.integers(1, 200),
    sequence=st.integers(1, 512),
    more=st.integers(0, 64),
)
def test_more_work_is_never_faster(device: Any, precision: str, batch: int, sequence: int, more: int) -> None:
    on = setting(device, load_coefficients())

    def ms(batch: int, sequence: int) -> float:
        return total_ms(encoder_ops(SMALL, precision, batch, sequence), on)

    assert ms(batch, sequence) <= ms(batch + more, sequence)
    assert ms(batch, sequence) <= ms(batch, sequence + more)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: str(device.name))
def test_kernels_add_up_and_a_free_one_costs_its_overhead(device: Any) -> None:
    on, ops = setting(device, load_coefficients()), encoder_ops(ENCODERS["bert-base"], "int8", 40, 128)
    times = kernels_ms(ops, on)
    assert math.fsum(times) == pytest.approx(total_ms(ops, on), rel=1e-9)
    assert all(ms > 0 for ms in times)
    empty = Op("transpose", "nothing", "float16")
    assert op_ms(empty, on) == pytest.approx(1e-3 * LIGHT_OVERHEAD * on.overhead_us)


def test_three_readers_of_one_tensor_have_the_cache_between_them() -> None:
    on = setting(find_device("t4"), load_coefficients())
    alone = Op("transpose", "k", "int8", activation_bytes=12_000_000)
    assert op_ms(replace(alone, sharing=3), on) > op_ms(alone, on)


@given(device=st.sampled_from(DEVICES), m=st.integers(1, 20000), n=st.integers(16, 4096), k=st.integers(16, 4096))
def test_int8_gemm_is_never_slower_and_no_op_beats_the_datasheet(device: Any, m: int, n: int, k: int) -> None:
    on = setting(device, load_coefficients())
    narrow = Op("int8_gemm", "g", "int8", m, n, k, 1, n * k, m * (n + k))
    wide = Op("float_gemm", "g", "float16", m, n, k, 1, 2 * n * k, 2 * m * (n + k))
    assert op_ms(narrow, on) <= op_ms(wide, on)
    assert 0 < efficiency(narrow, on) < 1
    assert 0 < efficiency(wide, on) < 1
    if m >= 4096 and min(n, k) >= 768:  # without the fixed time of a launch, most of a small product on a fast GPU
        fixed = 1e-3 * on.overhead_us
        assert (op_ms(wide, on) - fixed) / (op_ms(narrow, on) - fixed) > 1.9


def test_bigger_tiles_are_more_efficient() -> None:
    assert tile_share(32, 32) < tile_share(64, 64) < tile_share(128, 128) < tile_share(256, 128) < 1


def test_a_power_limit_only_ever_slows() -> None:
    fitted_ones, ops = load_coefficients(), encoder_ops(SMALL, "int8", 40, 128)
    for device in DEVICES:
        free, limited = (total_ms(ops, setting(device, fitted_ones, flag)) for flag in (False, True))
        assert free <= limited


def test_operations_of_bert_base() -> None:
    gigas = sum(op.operations for op in encoder_ops(ENCODERS["bert-base"], "int8", 40, 128)) / 1e9
    assert gigas == pytest.approx(894, rel=0.005)  # 870 in linears, 24 in attention


# ---- what is refused ----


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (LayerRecord("int8_gem", "x", "int8", 8, 8), "kind: unknown value 'int8_gem'; did you mean 'int8_gemm'"),
        (LayerRecord("gelu", "x", "int9"), "precision: unknown value 'int9'; did you mean 'int8'"),
        (LayerRecord("int8_gemm", "x", "int8"), "layer x: k and n are not known"),
        (LayerRecord("unfused", "x", "fp16"), "layer x: heads and head size are not known"),
    ],
)
def test_bad_layers_are_named(layer: LayerRecord, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        estimate([layer], "t4", 1, 128)


def test_impossible_shapes_are_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1, found 0 x 128"):
        estimate(int8_base(), "t4", 0, 128)
    with pytest.raises(ConfigError, match="no layer"):
        estimate([], "t4", 1, 128)


# ---- what a user sees ----


def test_layers_add_up_and_json_is_labelled() -> None:
    report = estimate(int8_base(), "t4", 40, 128)
    value = json.loads(to_json(report))
    assert value["estimate"] is True
    assert set(value) == {
        "estimate", "device", "batch", "sequence", "estimate_ms", "estimate_sequences_per_s", "estimate_speedup",
        "kernels", "layers", "quantizers", "validation",
    }  # fmt: skip
    assert value["kernels"]["from"] == "predicted"
    assert value["kernels"]["count"] == len(value["layers"])
    assert value["kernels"]["predicted_estimate_ms"] == total_of(value)
    total = total_of(value)
    assert math.fsum(layer["estimate_ms"] for layer in value["layers"]) == pytest.approx(total, abs=1e-6)
    assert total < value["estimate_ms"]["float16"] < value["estimate_ms"]["float32"]
    assert value["estimate_speedup"]["float16"] == pytest.approx(value["estimate_ms"]["float16"] / total)
    assert {layer["bound"] for layer in value["layers"]} <= {"compute", "memory", "overhead"}
    assert report == estimate(int8_base(), "t4", 40, 128)


def test_report_agrees_with_what_was_validated() -> None:
    of_row = partial(predicted_ms, coefficients=load_coefficients(), compiled=False)
    row = Row("trt-8.5.1", "t4", "bert-base", 64, 128, "int8", 34.27)
    report = estimate(int8_base(), "t4", 64, 128)
    assert report["estimate_ms"]["lowered"] == pytest.approx(of_row(row), abs=1e-4)
    wide = of_row(replace(row, precision="float16"))
    assert report["estimate_ms"]["float16"] == pytest.approx(wide, abs=1e-4)


def test_every_quantizer_pays_and_losing_attention_costs_most_when_unfused() -> None:
    report = estimate(int8_base(), "t4", 40, 128)
    assert len(report["quantizers"]) == 12 * (4 + 2 + 2)  # GEMMs, attention in two ways, residuals
    assert all(point["estimate_cost_ms"] > 0 for point in report["quantizers"])
    costs = [point["estimate_cost_ms"] for point in report["quantizers"]]
    assert costs == sorted(costs, reverse=True)
    attention = {
        p["if_lost"]: p["estimate_cost_ms"] for p in report["quantizers"] if p["name"] == "encoder.layer.0.attention"
    }
    assert attention["one of q, k, a, v: unfused"] > attention["all four: float fused"]


def test_a_float_graph_has_no_quantizer_to_lose() -> None:
    report = estimate(encoder_layers(ENCODERS["bert-base"], "float16"), "a100", 8, 128)
    assert report["quantizers"] == []
    assert report["estimate_ms"]["lowered"] == report["estimate_ms"]["float16"]
    assert "quantizer" not in render_estimate(report)


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: str(device.name))
def test_text_is_labelled_and_marks_what_is_unvalidated(device: Any) -> None:
    report = estimate(int8_base(), device.name, 40, 384)
    text = render_estimate(report)
    assert all(len(line) <= 80 for line in text.splitlines())
    heads = [block.splitlines()[0] for block in text.split("\n\n")]
    assert all("estimate" in head.lower() for head in heads)
    assert "sequence 384 is extrapolated" in re.sub(r"\s+", " ", text)
    has_rows = any(row.device == device.name for row in published_rows())
    assert report["validation"]["validated"] == has_rows == (device.name in ("t4", "a100"))
    assert text.startswith("Estimate, " if has_rows else "Unvalidated estimate, ")
    if has_rows:
        assert f"at worst {report['validation']['worst_error_percent']:+} %" in re.sub(r"\s+", " ", text)
        assert report["validation"]["range_ms"] is None
    else:
        assert report["validation"]["rows"] == 0
        assert report["validation"]["range_ms"] is not None
        low, high = report["validation"]["range_ms"]
        assert low <= report["estimate_ms"]["lowered"] <= high


def test_shapes_outside_the_published_ones_are_noted() -> None:
    notes = " ".join(estimate(encoder_layers(SMALL, "int8"), "t4", 200, 128)["validation"]["notes"])
    assert "batch 200 is extrapolated" in notes
    assert "width 384 is extrapolated" in notes
    assert estimate(int8_base(), "t4", 40, 128)["validation"]["notes"] == []


def test_layers_of_an_encoder_share_one_line() -> None:
    layers = [
        LayerRecord("int8_gemm", f"bert.encoder.layer.{i}.output.dense.MatMul", "int8", 64, 64) for i in (0, 1, 10)
    ]
    text = render_estimate(estimate(layers, "t4", 1, 128))
    assert re.search(r"^\*\.output\.dense int8_gemm +3 ", text, flags=re.MULTILINE)


def test_estimating_needs_neither_torch_nor_scipy() -> None:
    code = "import engines.estimate, sys; print([m for m in ('torch', 'onnx', 'scipy', 'export') if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
