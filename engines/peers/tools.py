"""ONNX Runtime's and OpenVINO's own ways from an FP32 ONNX file to a running model: as their documentation says.

Every tool gets the same file, the same calibration batches and the same number of threads. ONNX Runtime:
https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html; NNCF:
https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training.html.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.onnxruntime import OnnxRuntimeRunner, OnnxRuntimeSettings
from engines.openvino import OpenVINORunner, OpenVINOSettings
from engines.types import Feeds, Runner
from qdq.config import choice
from qdq.errors import Unavailable


@dataclass(frozen=True)
class Material:
    """What every tool is given.

    Attributes:
        model: FP32 ONNX file with a dynamic batch and sequence.
        calibration: feeds of real text, int64 [b, S].
        folder: where the tools write their files.
        threads: inference threads.
        hint: what OpenVINO computes outside INT8 in, f32 or bf16.
    """

    model: Path
    calibration: Sequence[Feeds]
    folder: Path
    threads: int
    hint: str = "f32"


@dataclass(frozen=True)
class Built:
    """A tool's model, ready to call: bytes of its weights on disk and seconds from the FP32 file to the first call."""

    engine: str
    run: Runner
    bytes: int
    build_s: float


def build_tool(name: str, material: Material) -> Built:
    """Run one tool. Raises ConfigError for an unknown name, Unavailable when the tool is not installed."""
    engine, build = TOOLS[choice(name, TOOLS, "peer")]
    begin = time.perf_counter()
    try:
        run, files = build(material)
    except ImportError as error:
        raise Unavailable(f"{name}: {error.name or error} is not installed; 'make bench-peers' installs it") from error
    return Built(engine, run, sum(file.stat().st_size for file in files), time.perf_counter() - begin)


def _onnxruntime(model: Path, material: Material) -> tuple[Runner, list[Path]]:
    return OnnxRuntimeRunner(model, OnnxRuntimeSettings(material.threads)), [model]


def _onnxruntime_fp32(material: Material) -> tuple[Runner, list[Path]]:
    return _onnxruntime(material.model, material)


def _onnxruntime_dynamic(material: Material) -> tuple[Runner, list[Path]]:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model = material.folder / "onnxruntime-dynamic.onnx"
    quantize_dynamic(str(material.model), str(model), weight_type=QuantType.QInt8, per_channel=True)
    return _onnxruntime(model, material)


def _onnxruntime_static(material: Material) -> tuple[Runner, list[Path]]:
    """Q/DQ, u8 activations and per-channel s8 weights of every MatMul and Gemm: its best for x86 transformers."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime carries no types
        def __init__(self) -> None:
            self.feeds: Iterator[Feeds] = iter(material.calibration)

        def get_next(self) -> Any:
            return next(self.feeds, None)

    model = material.folder / "onnxruntime-static.onnx"
    quantize(
        str(material.model),
        str(model),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        calibrate_method=CalibrationMethod.MinMax,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
    )
    return _onnxruntime(model, material)


def _openvino(material: Material, hint: str) -> tuple[Runner, list[Path]]:
    return OpenVINORunner(material.model, OpenVINOSettings(material.threads, hint)), [material.model]


def _openvino_fp32(material: Material) -> tuple[Runner, list[Path]]:
    return _openvino(material, "f32")


def _openvino_bf16(material: Material) -> tuple[Runner, list[Path]]:
    return _openvino(material, "bf16")


def _nncf(material: Material) -> tuple[Runner, list[Path]]:
    os.environ.setdefault("NNCF_TELEMETRY", "0")
    import nncf
    import openvino

    model = nncf.quantize(
        openvino.Core().read_model(str(material.model)),
        nncf.Dataset(list(material.calibration)),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(material.calibration),
    )
    path = material.folder / "nncf.xml"
    openvino.save_model(model, str(path), compress_to_fp16=False)
    run = OpenVINORunner(path, OpenVINOSettings(material.threads, material.hint))
    return run, [path.with_suffix(".bin")]


# In the order of the table: ONNX Runtime FP32 is what everything is related to.
TOOLS: Mapping[str, tuple[str, Callable[[Material], tuple[Runner, list[Path]]]]] = {
    "onnxruntime-fp32": ("onnxruntime", _onnxruntime_fp32),
    "onnxruntime-dynamic": ("onnxruntime", _onnxruntime_dynamic),
    "onnxruntime-static": ("onnxruntime", _onnxruntime_static),
    "openvino-fp32": ("openvino", _openvino_fp32),
    "openvino-bf16": ("openvino", _openvino_bf16),
    "nncf": ("openvino", _nncf),
}
