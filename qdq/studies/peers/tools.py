"""ONNX Runtime's and OpenVINO's own ways from an FP32 ONNX file to a quantized one: as their documentation says.

Every tool gets the same file, the same calibration batches and the same number of threads, and is otherwise left at its
defaults. ONNX Runtime: https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html; NNCF:
https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training.html.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.opening import Opening
from engines.openvino import has_bf16
from engines.types import Feeds
from qdq.base.config import choice
from qdq.errors import BuildError, Unavailable

NO_BF16 = "this CPU has no BF16 instructions, and OpenVINO's emulation is slower than FP32"


@dataclass(frozen=True)
class Material:
    """What every tool is given.

    Attributes:
        model: FP32 ONNX file with a dynamic batch and sequence.
        calibration: feeds of real text, int64 [b, S].
    """

    model: Path
    calibration: Sequence[Feeds]


@dataclass(frozen=True)
class Tool:
    """A contestant: which runtime loads which artifact, and how.

    `hint` None is the run's precision hint; `static`: compiled for the benchmark's shape, as our engine is.
    """

    engine: str
    artifact: str
    hint: str | None = None
    static: bool = False

    def opening(self, model: Path, threads: int, hint: str) -> Opening:
        """How `model`, its artifact, is loaded in a run with `hint`. Raises Unavailable for BF16 that is emulated."""
        if self.hint == "bf16" and not has_bf16():
            raise Unavailable(f"OpenVINO in BF16: {NO_BF16}")
        return Opening(self.engine, str(model), threads, self.hint or hint, self.static, defaults=True)


def build_artifact(name: str, material: Material, path: Path) -> None:
    """Write an artifact to `path`.

    Raises ConfigError for an unknown name, Unavailable without the tool, BuildError when the tool fails.
    """
    build = ARTIFACTS[choice(name, ARTIFACTS, "artifact")][1]
    try:
        build(material, path)
    except ImportError as error:
        raise Unavailable(f"{name}: {error.name or error} is not installed; 'make bench-peers' installs it") from error
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise BuildError(f"{name}: the tool failed on {material.model}: {error}") from error


def _onnxruntime_dynamic(material: Material, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(material.model), str(path), weight_type=QuantType.QInt8, per_channel=True)


def _onnxruntime_static(material: Material, path: Path) -> None:
    """Q/DQ, u8 activations and per-channel s8 weights of every MatMul and Gemm: its best for x86 transformers."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime carries no types
        def __init__(self) -> None:
            self.feeds: Iterator[Feeds] = iter(material.calibration)

        def get_next(self) -> Any:
            return next(self.feeds, None)

    quantize(
        str(material.model),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        calibrate_method=CalibrationMethod.MinMax,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        op_types_to_quantize=["MatMul", "Gemm"],
    )


def _nncf(material: Material, path: Path) -> None:
    os.environ.setdefault("NNCF_TELEMETRY", "0")
    import nncf
    import openvino

    model = nncf.quantize(
        openvino.Core().read_model(str(material.model)),
        nncf.Dataset(list(material.calibration)),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(material.calibration),
    )
    openvino.save_model(model, str(path), compress_to_fp16=False)


FLOAT = "fp32"  # the file every tool starts from

# Artifact: file name and who writes it.
ARTIFACTS: Mapping[str, tuple[str, Callable[[Material, Path], None]]] = {
    "onnxruntime-dynamic": ("onnxruntime-dynamic.onnx", _onnxruntime_dynamic),
    "onnxruntime-static": ("onnxruntime-static.onnx", _onnxruntime_static),
    "nncf": ("nncf.xml", _nncf),
}

# In the order of the table: ONNX Runtime FP32 and NNCF are what everything is related to. NNCF's documentation has the
# dynamic model; the static one is the same file with what our engine gets, so that its share of the lead shows.
TOOLS: Mapping[str, Tool] = {
    "onnxruntime-fp32": Tool("onnxruntime", FLOAT),
    "onnxruntime-dynamic": Tool("onnxruntime", "onnxruntime-dynamic"),
    "onnxruntime-static": Tool("onnxruntime", "onnxruntime-static"),
    "openvino-fp32": Tool("openvino", FLOAT, "f32"),
    "openvino-bf16": Tool("openvino", FLOAT, "bf16"),
    "nncf": Tool("openvino", "nncf"),
    "nncf-static": Tool("openvino", "nncf", static=True),
}
