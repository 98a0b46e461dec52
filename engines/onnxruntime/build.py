"""Build the ONNX Runtime engine: the lowered ONNX file itself, proved by the graph the runtime optimizes it to."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.interface import interface
from engines.precision import Verdict, assemble
from engines.types import BuiltEngine, MatmulNames
from qdq.errors import BuildError, Unavailable

# Operators whose CPU kernels multiply 8-bit operands. MatMul, Gemm and the Fused* ones multiply floats.
INT8_OPERATORS = frozenset({"MatMulIntegerToFloat", "QLinearMatMul", "MatMulInteger", "QGemm", "DynamicQuantizeMatMul"})


@dataclass(frozen=True)
class OnnxRuntimeSettings:
    """`threads`: intra-op threads; 0 lets ONNX Runtime use all physical cores."""

    threads: int = 0

    def session_options(self) -> Any:
        """Quiet SessionOptions with these settings."""
        options = _runtime().SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3  # its warnings are about its own optimizer; errors raise
        return options


def build(lowered: Path, folder: Path, settings: OnnxRuntimeSettings, names: MatmulNames | None) -> BuiltEngine:
    """Load `lowered`, write the optimized graph to a scratch folder and read its operators back.

    `names` None is a floating-point engine. Raises BuildError with the runtime's reason when it refuses the graph,
    Unavailable when onnxruntime is not installed.
    """
    inputs, outputs = interface(lowered)
    report = None
    with tempfile.TemporaryDirectory(prefix="qdq-ort-") as scratch:
        optimized = Path(scratch) / "optimized.onnx"
        options = settings.session_options()
        options.optimized_model_filepath = str(optimized)
        # Weights apart: only the operators are looked at, and one file could not hold more than 2 GiB.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
        open_session(lowered, options)
        if names is not None:
            report = assemble(names, _verdicts(optimized))
    return BuiltEngine("onnxruntime", _files(lowered), inputs, outputs, report, recorded_settings(settings))


def open_session(model: Path, options: Any) -> Any:
    """An InferenceSession on the CPU. Raises BuildError with the runtime's reason."""
    runtime = _runtime()
    try:
        return runtime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except failures() as error:
        raise BuildError(f"ONNX Runtime cannot load {model}: {reason(error)}; run the lower stage again") from error


def failures() -> tuple[type[Exception], ...]:
    """What ONNX Runtime raises when it cannot load or run a model: one class per status, without a common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # they have no public name

    names = ("EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    return (*(getattr(state, name) for name in names), state.RuntimeException, RuntimeError)


def reason(error: Exception) -> str:
    """First line of ONNX Runtime's message, without the status it repeats: ``[ONNXRuntimeError] : 1 : FAIL : …``."""
    first = next(iter(str(error).splitlines()), type(error).__name__)
    return first.split(" : ", 3)[-1] if first.startswith("[ONNXRuntimeError]") else first


def recorded_settings(settings: OnnxRuntimeSettings) -> Mapping[str, Any]:
    """What build.json keeps: the settings and the runtime's version."""
    return {"threads": settings.threads, "onnxruntime": _runtime().__version__}


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise Unavailable("onnxruntime is not installed; run: pip install '.[cpu]'") from error
    return onnxruntime


def _files(lowered: Path) -> tuple[Path, ...]:
    data = lowered.with_name(lowered.name + ".data")
    return (lowered, data) if data.is_file() else (lowered,)


def _verdicts(optimized: Path) -> Callable[[str], Verdict]:
    """A lookup from the lowered graph's node names to the operators of the optimized graph.

    A fusion keeps the name of the multiplication, or makes ``fused x.MatMul`` or ``x.MatMul/MatMulAddFusion`` of it.
    """
    import onnx

    operators = {
        node.name.removeprefix("fused ").partition("/")[0]: node.op_type
        for node in onnx.load(optimized, load_external_data=False).graph.node
        if "MatMul" in node.op_type or "Gemm" in node.op_type
    }

    def verdict(name: str) -> Verdict:
        operator = operators.get(name)
        if operator is None:
            return Verdict(False, False, "ONNX Runtime fused it into an operator of another name")
        return Verdict(operator in INT8_OPERATORS, False, f"ONNX Runtime runs it as {operator}")

    return verdict
