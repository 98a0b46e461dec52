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
    report = None
    with tempfile.TemporaryDirectory(prefix="qdq-ort-") as scratch:
        optimized = Path(scratch) / "optimized.onnx"
        options = settings.session_options()
        options.optimized_model_filepath = str(optimized)
        open_session(lowered, options)
        if names is not None:
            report = assemble(names, _verdicts(optimized))
    inputs, outputs = interface(lowered)
    return BuiltEngine("onnxruntime", _files(lowered), inputs, outputs, report, recorded_settings(settings))


def open_session(model: Path, options: Any) -> Any:
    """An InferenceSession on the CPU. Raises BuildError with the runtime's reason."""
    runtime = _runtime()
    # Not exported under a public name; every failure to load or run derives from it or from RuntimeError.
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    failures = (state.Fail, state.InvalidArgument, state.InvalidGraph, state.InvalidProtobuf, state.NoSuchFile,
                state.NotImplemented, state.RuntimeException, RuntimeError)
    try:
        return runtime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except failures as error:
        raise BuildError(f"ONNX Runtime cannot load {model}: {str(error).splitlines()[0]}") from error


def recorded_settings(settings: OnnxRuntimeSettings) -> Mapping[str, Any]:
    """What build.json keeps: the settings and the runtime's version."""
    return {"threads": settings.threads, "onnxruntime": _runtime().__version__}


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise Unavailable("onnxruntime is not installed; run: pip install 'qdq[cpu]'") from error
    return onnxruntime


def _files(lowered: Path) -> tuple[Path, ...]:
    data = lowered.with_name(lowered.name + ".data")
    return (lowered, data) if data.is_file() else (lowered,)


def _verdicts(optimized: Path) -> Callable[[str], Verdict]:
    """A lookup from the lowered graph's node names to the operators of the optimized graph, which keeps the names."""
    import onnx

    operators = {node.name: node.op_type for node in onnx.load(optimized, load_external_data=False).graph.node}

    def verdict(name: str) -> Verdict:
        operator = operators.get(name) or operators.get(f"fused {name}")
        if operator is None:
            return Verdict(False, False, "ONNX Runtime fused it into an operator of another name")
        return Verdict(operator in INT8_OPERATORS, False, f"ONNX Runtime runs it as {operator}")

    return verdict
