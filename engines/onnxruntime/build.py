"""Build the ONNX Runtime engine: the lowered graph in the runtime's own operators, and what it runs in INT8."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.instructions import Int8Sums, int8_sums
from engines.interface import graph_files, interface, read_model
from engines.onnxruntime.fuse import fuse
from engines.precision import Verdict, assemble
from engines.types import BuiltEngine, MatmulNames
from qdq.base.artifacts import PARTIAL_PREFIX
from qdq.base.packing import PLACES
from qdq.errors import BuildError, Unavailable

ENGINE = "engine.onnx"
WEIGHTS = "qdq.weights"  # key of the engine's metadata: the coding of its weights, s8, or u8 where s8 does not fit
ATTENTION = "MultiHeadAttention"  # multiplies floats and keeps the scores in the cache
LARGEST_FILE = 3 << 29  # bytes of weights that go into the file itself; protobuf ends at 2 GiB
# Operators whose CPU kernels multiply 8-bit operands. MatMul, Gemm and the Fused* ones multiply floats.
INT8_OPERATORS = frozenset({"MatMulIntegerToFloat", "QLinearMatMul", "MatMulInteger", "QGemm", "DynamicQuantizeMatMul"})


@dataclass(frozen=True)
class OnnxRuntimeSettings:
    """Settings that sessions are opened with.

    `nodes`: CPUs by NUMA node. With several, the worker threads of a session stay on one (the calling thread is the
    caller's to place). `sums`: the CPU that engines are built for and sessions opened on, this one; where it adds
    products in saturating pairs, weights are multiplied as u8.
    """

    threads: int = 0  # intra-op; 0 lets ONNX Runtime use all physical cores
    defaults: bool = False  # everything else as ONNX Runtime has it, for a fair rival: waiting threads spin
    streams: int = 0  # requests that callers run at once, each on `threads` threads of its own session; 0 is one
    nodes: tuple[tuple[int, ...], ...] = ()
    sums: Int8Sums = field(default_factory=int8_sums)

    def session_options(self, stream: int = 0, model: Path | None = None) -> Any:
        """Quiet SessionOptions with these settings, for any `model`: its s8 weights may not be made for this CPU."""
        options = _runtime().SessionOptions()
        options.intra_op_num_threads = self.threads
        options.log_severity_level = 3  # its warnings are about its own optimizer; errors raise
        # Never session.set_denormal_as_zero: it changes the arithmetic of the calling thread for good, so of whoever
        # computes in this process next (the torch reference among them).
        if self.defaults:
            return options
        if len(self.nodes) > 1 and self.threads > 1:
            # One entry per worker thread, processors counted from 1 (onnxruntime_session_options_config_keys.h).
            node = ",".join(str(cpu + 1) for cpu in self.nodes[stream % len(self.nodes)])
            options.add_session_config_entry(
                "session.intra_op_thread_affinities", ";".join([node] * (self.threads - 1))
            )
        # Of an engine built for another CPU; see engines/onnxruntime/unsigned.py for why not everywhere.
        if self.sums.saturate and (model is None or _built_for(model) != coding(self.sums)):
            options.add_session_config_entry("session.x64quantprecision", "1")
        # Waiting threads burn a core for milliseconds after every call, which whoever shares the machine then lacks.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return options


def build(lowered: Path, folder: Path, settings: OnnxRuntimeSettings, names: MatmulNames | None) -> BuiltEngine:
    """Fuse `lowered` into ``engine.onnx`` in `folder`, let the runtime optimize it and read its operators back.

    `names` None is a floating-point engine: `lowered` itself, as it is. Raises BuildError with the runtime's reason
    when it refuses the graph, Unavailable when onnxruntime is not installed.
    """
    inputs, outputs = interface(lowered)
    recorded: dict[str, Any] = {"threads": settings.threads, "onnxruntime": _runtime().__version__}
    recorded["packing"] = any(node.name == PLACES for node in read_model(lowered).graph.node)
    files = graph_files(lowered)
    if names is not None:
        recorded |= {"fused": _write_engine(lowered, folder / ENGINE, settings.sums)}
        recorded |= {"int8_sums": {**settings.sums.as_json(), "weights": coding(settings.sums)}}
        files = graph_files(folder / ENGINE)
    report = None
    with tempfile.TemporaryDirectory(prefix="qdq-ort-") as scratch:
        optimized = Path(scratch) / "optimized.onnx"
        options = settings.session_options()
        options.optimized_model_filepath = str(optimized)
        # Weights apart: only the operators are looked at, and one file could not hold more than 2 GiB.
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
        open_session(files[0], options)
        if names is not None:
            report = assemble(names, _verdicts(optimized))
    return BuiltEngine("onnxruntime", files, inputs, outputs, report, recorded)


def _write_engine(lowered: Path, engine: Path, sums: Int8Sums) -> dict[str, Any]:
    """Fuse for a CPU with `sums` and write; what was fused.

    The external data of a large model lies beside it as ``engine.onnx.data``.
    """
    import onnx

    try:
        model, fused = fuse(lowered, saturate=sums.saturate)
    except (OSError, onnx.checker.ValidationError) as error:
        raise BuildError(f"ONNX Runtime cannot load {lowered}: {error}; run the lower stage again") from error
    onnx.helper.set_model_props(model, {WEIGHTS: coding(sums)})
    data = engine.with_name(f"{engine.name}.data")
    external = model.ByteSize() > LARGEST_FILE
    with tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=engine.parent) as scratch:
        partial = Path(scratch) / engine.name
        onnx.save(model, partial, save_as_external_data=external, location=data.name if external else None)
        data.unlink(missing_ok=True)
        for file in (data, engine):  # the model last: it is whole when it has its name
            if (Path(scratch) / file.name).exists():
                os.replace(Path(scratch) / file.name, file)
    return fused


def _built_for(model: Path) -> str | None:
    """Coding of the weights of an engine file; None for a graph that is none of ours or cannot be read."""
    try:
        properties = read_model(model).metadata_props
    except BuildError:
        return None
    return next((entry.value for entry in properties if entry.key == WEIGHTS), None)


def coding(sums: Int8Sums) -> str:
    """Coding of weights that is right and fastest with `sums`: u8 products are exact everywhere, s8 ones need VNNI.

    Of u8 those count that do not fit as s8 (`engines.onnxruntime.unsigned`).
    """
    return "u8" if sums.saturate else "s8"


def open_session(model: Path, options: Any) -> Any:
    """An InferenceSession of a file on the CPU.

    Raises BuildError with the runtime's reason.
    """
    runtime = _runtime()
    try:
        return runtime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    except failures() as error:
        raise BuildError(f"ONNX Runtime cannot load {model}: {reason(error)}; run the lower stage again") from error


def failures() -> tuple[type[Exception], ...]:
    """Exceptions of ONNX Runtime for a model it cannot load or run: one class per status, without a common base."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # they have no public name

    names = ("EPFail", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NoSuchFile", "NotImplemented")
    return (*(getattr(state, name) for name in names), state.RuntimeException, RuntimeError)


def reason(error: Exception) -> str:
    """First line of ONNX Runtime's message, without the status it repeats: ``[ONNXRuntimeError] : 1 : FAIL : …``."""
    first = next(iter(str(error).splitlines()), type(error).__name__)
    return first.split(" : ", 3)[-1] if first.startswith("[ONNXRuntimeError]") else first


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise Unavailable("onnxruntime is not installed; run: pip install '.[cpu]'") from error
    return onnxruntime


def _verdicts(optimized: Path) -> Callable[[str], Verdict]:
    """A lookup from the lowered graph's node names to the operators of the optimized graph.

    A fusion keeps the name of the multiplication, or makes ``fused x.MatMul`` or ``x.MatMul/MatMulAddFusion`` of it.
    """
    import onnx

    # The operator that every multiplication of the lowered graph ended up in.
    operators = {
        name: node.op_type
        for node in onnx.load(optimized, load_external_data=False).graph.node
        for name in node.name.removeprefix("fused ").partition("/")[0].split("+")
        if "MatMul" in node.op_type or "Gemm" in node.op_type or node.op_type == ATTENTION
    }

    def verdict(name: str) -> Verdict:
        operator = operators.get(name)
        if operator is None:
            return Verdict(False, False, "ONNX Runtime fused it into an operator of another name")
        says = f"ONNX Runtime runs it {'inside' if operator == ATTENTION else 'as'} {operator}"
        return Verdict(operator in INT8_OPERATORS, False, f"{says}, in float" if operator == ATTENTION else says)

    return verdict
