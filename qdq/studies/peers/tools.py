"""ONNX Runtime's and OpenVINO's own ways from an FP32 ONNX file to a quantized one: as their documentation says.

Every tool gets the same file, the same calibration batches and the same number of threads, and is otherwise left at its
defaults. ONNX Runtime: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html; NNCF:
https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training.html.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engines.opening import Opening
from qdq.base.types import Feeds
from qdq.errors import BuildError, Unavailable

Calibration = Sequence[Feeds]  # of real text, int64 [b, S]

FLOAT = "float.onnx"  # the file every tool starts from
COMPILED_ONLY = ("modelopt.onnx", "onnxruntime-static-s8.onnx")  # of `qdq.studies.peers.compiled`; no race


def build_artifact(model: Path, calibration: Calibration, path: Path) -> None:
    """Quantize the FP32 ONNX file `model`, of dynamic batch and sequence, as the file `path` of ARTIFACTS.

    Raises Unavailable without the tool, BuildError when the tool fails.
    """
    try:
        ARTIFACTS[path.name](model, calibration, path)
    except ImportError as error:
        by = "make compare-compiled" if path.name in COMPILED_ONLY else "make bench-peers"
        raise Unavailable(f"{path.stem}: {error.name or error} is not installed; '{by}' installs it") from error
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise BuildError(f"{path.stem}: the tool failed on {model}: {error}") from error


def _onnxruntime_dynamic(model: Path, calibration: Calibration, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(model), str(path), weight_type=QuantType.QInt8, per_channel=True)


def _onnxruntime_static(model: Path, calibration: Calibration, path: Path) -> None:
    """Q/DQ, u8 activations and per-channel s8 weights of every MatMul and Gemm: its best for x86 transformers."""
    _quantize_static(model, calibration, path, "QUInt8", {})


def _onnxruntime_static_s8(model: Path, calibration: Calibration, path: Path) -> None:
    """The same in the form that TensorRT takes: symmetric s8 on both sides, biases in float."""
    options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False}
    _quantize_static(model, calibration, path, "QInt8", options)


def _quantize_static(
    model: Path, calibration: Calibration, path: Path, activations: str, options: Mapping[str, bool]
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime carries no types
        feeds = iter(calibration)

        def get_next(self) -> Any:
            return next(self.feeds, None)

    # Everything that is not said is the tool's default.
    quantize(
        str(model),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        calibrate_method=CalibrationMethod.MinMax,
        activation_type=QuantType[activations],
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
        extra_options=dict(options),
    )


def _modelopt(model: Path, calibration: Calibration, path: Path) -> None:
    """INT8 with everything at its defaults, which are an FP16 body and entropy calibration; on the CPU.

    https://nvidia.github.io/Model-Optimizer/guides/_onnx_quantization.html
    """
    import numpy as np
    from modelopt.onnx.quantization import quantize

    data = {name: np.concatenate([feeds[name] for feeds in calibration]) for name in calibration[0]}
    quantize(
        onnx_path=str(model),
        quantize_mode="int8",
        calibration_data=data,
        calibration_eps=["cpu"],
        output_path=str(path),
        log_level="ERROR",
    )


def _nncf(model: Path, calibration: Calibration, path: Path) -> None:
    os.environ.setdefault("NNCF_TELEMETRY", "0")
    import nncf
    import openvino

    quantized = nncf.quantize(
        openvino.Core().read_model(str(model)),
        nncf.Dataset(list(calibration)),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(calibration),
    )
    openvino.save_model(quantized, str(path), compress_to_fp16=False)


ARTIFACTS: Mapping[str, Callable[[Path, Calibration, Path], None]] = {
    "onnxruntime-dynamic.onnx": _onnxruntime_dynamic,
    "onnxruntime-static.onnx": _onnxruntime_static,
    "onnxruntime-static-s8.onnx": _onnxruntime_static_s8,
    "modelopt.onnx": _modelopt,
    "nncf.xml": _nncf,
}

# How each tool's file is loaded, in the order of the table; no hint is that of the run. ONNX Runtime FP32 and NNCF are
# what everything is related to. NNCF's documentation has the dynamic model; the static one is the same file with what
# our engine gets, so that its share of the lead shows.
_ONNXRUNTIME = Opening("onnxruntime", FLOAT, 0, "", defaults=True)
_OPENVINO = Opening("openvino", FLOAT, 0, "")
TOOLS: Mapping[str, Opening] = {
    "onnxruntime-fp32": _ONNXRUNTIME,
    "onnxruntime-dynamic": replace(_ONNXRUNTIME, model="onnxruntime-dynamic.onnx"),
    "onnxruntime-static": replace(_ONNXRUNTIME, model="onnxruntime-static.onnx"),
    "openvino-fp32": replace(_OPENVINO, hint="f32"),
    "openvino-bf16": replace(_OPENVINO, hint="bf16"),
    "nncf": replace(_OPENVINO, model="nncf.xml"),
    "nncf-static": replace(_OPENVINO, model="nncf.xml", static=True),
}
