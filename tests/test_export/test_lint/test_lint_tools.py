"""What ONNX Runtime's own quantizer writes, and what the linter says of it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from export.lint import LintReport, lint

from .graphs import fired

quantization = pytest.importorskip("onnxruntime.quantization", reason="needs the cpu extra: onnxruntime")
Quantize = Callable[..., LintReport]
INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    """Two random batches."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        ids, ones, zeros = rng.integers(0, 100, (2, 12)), np.ones((2, 12), np.int64), np.zeros((2, 12), np.int64)
        self.batches = [dict(zip(INPUTS, (ids, ones, zeros), strict=True))] * 2

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.batches.pop() if self.batches else None


@pytest.fixture(scope="module")
def fp32(edited: Callable[..., onnx.ModelProto], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT without quantization, with its attention scale behind the first BMM as transformers writes it."""

    def as_exported(graph: Any) -> None:
        graph.strip()
        graph.set("scale", np.array(0.25, np.float32))
        for layer in (0, 1):
            add = graph.node(f"bert.encoder.layer.{layer}.attention.self.Add")
            add.input[0] = graph.insert(add.name, "Mul", [add.input[0], "scale"], f"scaled.{layer}")

    path = tmp_path_factory.mktemp("ort") / "fp32.onnx"
    onnx.save(edited(as_exported), path)
    return path


@pytest.fixture(scope="module")
def quantize(fp32: Path) -> Quantize:
    """Lint what quantize_static makes of the FP32 file."""

    def run(**settings: Any) -> LintReport:
        logging.disable(logging.WARNING)  # advice to pre-process, which changes nothing here
        try:
            quantization.quantize_static(fp32, fp32.with_name("quantized.onnx"), Reader(), **settings)
        finally:
            logging.disable(logging.NOTSET)
        return lint(onnx.load(fp32.with_name("quantized.onnx")), "trt11", 75)

    return run


def test_unsigned_activations_are_errors(quantize: Quantize) -> None:
    """The form ONNX Runtime recommends on x86: UINT8 activations, INT8 weights per channel, linears only."""
    unsigned, signed = quantization.QuantType.QUInt8, quantization.QuantType.QInt8
    report = quantize(
        activation_type=unsigned, weight_type=signed, per_channel=True, op_types_to_quantize=["MatMul", "Gemm"]
    )
    assert {finding.rule for finding in report.of("error")} == {"QDQ-E101", "QDQ-E102"}
    assert any(finding.reason.startswith("a bias stored as INT32") for finding in report.of("error"))
    # Q/DQ behind every MatMul parts it from its bias; the scale is late
    assert set(fired(report)) >= {"QDQ-P206", "QDQ-P211", "QDQ-P212"}
    separated = [finding for finding in report.findings if "product and its bias" in finding.reason]
    assert len(separated) == 12


def test_symmetric_int8_still_quantizes_biases_and_between_fused_ops(quantize: Quantize) -> None:
    signed = quantization.QuantType.QInt8
    report = quantize(
        activation_type=signed,
        weight_type=signed,
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True},
    )
    assert {finding.reason.split(":")[0] for finding in report.of("error")} == {"a bias stored as INT32"}
    assert set(fired(report)) >= {"QDQ-P203", "QDQ-P205", "QDQ-P206", "QDQ-P212"}
    assert sum(layer.kind == "int8_gemm" for layer in report.layers if layer.role) == 12
    assert [layer.kind for layer in report.layers if layer.heads] == ["unfused", "unfused"]


def test_integer_ops_are_errors(quantize: Quantize, fp32: Path) -> None:
    report = quantize(quant_format=quantization.QuantFormat.QOperator)
    assert any("QLinearMatMul" in finding.reason for finding in report.of("error") if finding.rule == "QDQ-E121")
    quantization.quantize_dynamic(fp32, fp32.with_name("dynamic.onnx"))
    report = lint(onnx.load(fp32.with_name("dynamic.onnx")), "trt11", 75)
    unsupported = " ".join(finding.reason for finding in report.of("error") if finding.rule == "QDQ-E121")
    assert "MatMulInteger" in unsupported
    assert "DynamicQuantizeLinear" in unsupported
