"""Build the OpenVINO engine: ONNX in, IR (model.xml, model.bin) and the INT8 report out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.interface import interface
from engines.precision import Verdict, assemble
from engines.types import BuiltEngine, MatmulNames
from qdq.artifacts import atomic_path
from qdq.config import choice
from qdq.errors import BuildError, Unavailable

PRECISION_HINTS = ("f32", "bf16", "f16")
INT8_PRECISIONS = ("i8", "u8")


@dataclass(frozen=True)
class OpenVINOSettings:
    """How the engine is compiled.

    Attributes:
        threads: inference threads; 0 lets OpenVINO use all cores.
        precision_hint: precision of what is not INT8. Always set: OpenVINO's own default is bf16 on CPUs that have
            it, which changes both speed and numbers behind the user's back.
    """

    threads: int = 0
    precision_hint: str = "f32"

    def __post_init__(self) -> None:
        choice(self.precision_hint, PRECISION_HINTS, "precision hint")

    def properties(self) -> dict[str, Any]:
        """OpenVINO's spelling."""
        return {"INFERENCE_PRECISION_HINT": self.precision_hint, "INFERENCE_NUM_THREADS": self.threads}


def build(
    lowered: Path, folder: Path, settings: OpenVINOSettings, names: MatmulNames | None, stem: str = "model"
) -> BuiltEngine:
    """Convert `lowered` to IR in `folder`, compile it once and read its precisions back.

    `names` None is a floating-point engine. Raises BuildError with OpenVINO's reason when it refuses the graph,
    Unavailable when openvino is not installed.
    """
    core = _core()
    xml, weights = folder / f"{stem}.xml", folder / f"{stem}.bin"
    try:
        model = core.read_model(str(lowered))
        compiled = core.compile_model(model, "CPU", settings.properties())
    except RuntimeError as error:
        raise BuildError(f"OpenVINO cannot build {lowered}: {_last_line(error)}") from error
    _save(model, xml, weights)
    report = None if names is None else assemble(names, _verdicts(compiled.get_runtime_model()))
    inputs, outputs = interface(lowered)
    return BuiltEngine("openvino", (xml, weights), inputs, outputs, report, recorded_settings(settings))


def recorded_settings(settings: OpenVINOSettings) -> Mapping[str, Any]:
    """What build.json keeps: the settings and the runtime's version."""
    import openvino

    return {
        "threads": settings.threads,
        "precision_hint": settings.precision_hint,
        "openvino": openvino.__version__,
    }


def _core() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise Unavailable("openvino is not installed; run: pip install 'qdq[cpu]'") from error
    return openvino.Core()


def _save(model: Any, xml: Path, weights: Path) -> None:
    """OpenVINO writes the weights beside the XML under the same stem, so both go to partial names and are renamed."""
    import openvino

    with atomic_path(weights) as partial_weights, atomic_path(xml) as partial_xml:
        partial_xml.parent.mkdir(parents=True, exist_ok=True)
        try:
            openvino.save_model(model, str(partial_xml), compress_to_fp16=False)
            partial_xml.with_suffix(".bin").rename(partial_weights)
        except RuntimeError as error:
            partial_xml.with_suffix(".bin").unlink(missing_ok=True)
            raise OSError(f"OpenVINO could not write it ({_last_line(error)})") from error


def _verdicts(runtime_model: Any) -> Any:
    """A lookup from ONNX node name to what the compiled model's primitives say about it."""
    found: dict[str, tuple[str, str, int]] = {}
    for node in runtime_model.get_ordered_ops():
        information = node.get_rt_info()
        kind, precision, origins = (
            information[key].astype(str) if key in information else ""
            for key in ("layerType", "runtimePrecision", "originalLayersNames")
        )
        multiplications = [name for origin in origins.split(",") if (name := _multiplication(origin))]
        for name in multiplications:
            found.setdefault(name, (kind, precision, len(set(multiplications))))

    def verdict(name: str) -> Verdict:
        if name not in found:
            return Verdict(False, False, "OpenVINO's compiled model has no operation of this name")
        kind, precision, fused = found[name]
        return Verdict(
            int8=precision in INT8_PRECISIONS,
            inferred=kind == "Subgraph" or fused > 1,
            says=f"OpenVINO runs it as {kind} in {precision}",
        )

    return verdict


def _multiplication(origin: str) -> str:
    """The MatMul or Gemm node an OpenVINO layer name stems from, such as ``x.MatMul/DequantizationMultiply``."""
    name = origin.partition("/")[0]
    return name if name.rpartition(".")[2].startswith(("MatMul", "Gemm")) else ""


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
