"""Attention points for TensorRT: whole and within the fused kernels' limits, or not at all; always with the reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from export.lint.limits import int8_attention_limits
from qdq.inject import decided, inject
from qdq.inject.spec import QuantSpec, named_spec
from qdq.loading.model import LoadedModel
from qdq.placing import base_spec
from qdq.placing.attention import fitting

Load = Callable[..., LoadedModel]
TURING = "INT8 fused attention with heads of 64 takes at most 384 on SM 7.5"


def matmuls(loaded: LoadedModel, spec: QuantSpec, longest: int = 128, sm: int = 75) -> tuple[int, list[str]]:
    """Attention points that are left of an injected model's, and what is said about the others."""
    inject(loaded.model, spec)
    found, said = fitting(loaded.model, spec, partial(int8_attention_limits, longest=longest, sm=sm))
    points = [point for point in decided(loaded.model, found).points if point.kind == "matmul"]
    assert all(point.placed or point.reason for point in points)
    return sum(point.placed for point in points), said


@pytest.mark.parametrize(
    ("head", "longest", "sm", "problem"),
    [
        (16, 512, 75, ""),
        (32, 512, 75, ""),
        (64, 384, 75, ""),
        (64, 385, 75, f"its profile reaches sequence 385, {TURING}"),
        (64, 512, 80, ""),
        (32, 513, 86, "its sequence is 513, INT8 fused attention takes at most 512"),
        (24, 128, 80, "its head size is 24, INT8 fused attention takes 16, 32 or 64"),
        (128, 128, 120, "its head size is 128, INT8 fused attention takes 16, 32 or 64"),
        (None, 128, 75, ""),
    ],
)  # every row is what TensorRT for RTX 1.7.1 compiled
def test_limits_of_the_fused_kernels(head: int | None, longest: int, sm: int, problem: str) -> None:
    assert int8_attention_limits(head, longest, sm) == ((problem,) if problem else ())


def test_a_fixed_shape_has_no_profile_limit() -> None:
    assert int8_attention_limits(64, 512, 75, fixed=True) == ()


def test_auto_leaves_out_what_cannot_fuse(load_tiny: Load) -> None:
    auto = base_spec("auto", "tensorrt")
    assert matmuls(load_tiny(), auto) == (8, [])  # heads of 16
    left, said = matmuls(load_tiny(hidden_size=48), auto)
    assert left == 0 and said == [
        "2 of 2 attentions cannot be INT8: its head size is 24, INT8 fused attention takes 16, 32 or 64"
    ]
    assert matmuls(load_tiny(), auto, longest=1024)[0] == 0
    assert [matmuls(load_tiny(hidden_size=128), auto, 512, sm)[0] for sm in (75, 80)] == [0, 8]


@pytest.mark.parametrize("operands", [("q", "k"), ("a",), ("q", "k", "v")])
def test_attention_quantized_in_part_is_left_float(load_tiny: Load, operands: tuple[str, ...]) -> None:
    left, said = matmuls(load_tiny(), named_spec("qdqbert", matmul=operands))
    assert left == 0 and len(said) == 1
    assert f"this placement has {' and '.join(operands)} alone" in said[0]


def test_named_points_stay_and_it_is_said(load_tiny: Load) -> None:
    left, said = matmuls(load_tiny(hidden_size=48), named_spec("qdqbert"))
    assert left == 8 and "the points stay as qdqbert names them" in said[0]
    left, said = matmuls(load_tiny(), named_spec("linear", enable_layers="matmul_q"))
    assert left == 2 and "the points stay" in said[0]
    assert matmuls(load_tiny(), named_spec("linear")) == (0, [])


@pytest.mark.parametrize(
    ("target", "placement", "placed", "said"),
    [
        ("tensorrt", "linear+qk", 12, "this placement has q and k alone"),
        ("openvino", "linear+qk", 14, ""),
        ("tensorrt", "linear", 12, ""),
    ],
)
def test_a_run_says_it_once_and_writes_it_down(
    workplace: Path,
    qdq: Callable[..., Any],
    small: tuple[str, ...],
    target: str,
    placement: str,
    placed: int,
    said: str,
) -> None:
    source = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--out", "limits")
    ran = qdq("calibrate", *source, "--target", target, "--placement", placement, *small)
    assert ran.code == 0, ran.err
    report = json.loads(Path("limits/placement.json").read_text())
    assert sum(point["placed"] for point in report["points"]) == placed
    assert said in " ".join(ran.err.split()) and ("limits" in report) == bool(said)
    assert ran.err.count("cannot be INT8") == (1 if said else 0)
    if said:
        declined = [point for point in report["points"] if point["name"].endswith("matmul_q_input_quantizer")]
        assert all(said in point["reason"] for point in declined)
