"""How a contestant is loaded, as plain values: the memory of a running one is measured in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.types import Runner


@dataclass(frozen=True)
class Opening:
    """What to load, and how.

    Attributes:
        engine: openvino or onnxruntime; qdq/studies/peers/build.py knows torch's, too.
        model: file (torch: checkpoint folder).
        threads: inference threads.
        hint: what OpenVINO computes in outside INT8.
        static: OpenVINO compiles for exactly the shape it is fed, as `qdq bench` has it.
        defaults: ONNX Runtime with its own session options.
    """

    engine: str
    model: str
    threads: int
    hint: str = "f32"
    static: bool = False
    defaults: bool = False


def open_runner(opening: Opening, shape: tuple[int, ...]) -> Runner:
    """A contestant that will be fed `shape` [batch, sequence]. Raises BuildError when it cannot be loaded."""
    if opening.engine == "openvino":
        from engines.openvino import OpenVINORunner, OpenVINOSettings

        fixed = shape if opening.static else None
        return OpenVINORunner(Path(opening.model), OpenVINOSettings(opening.threads, opening.hint, shape=fixed))
    from engines.onnxruntime import OnnxRuntimeRunner, OnnxRuntimeSettings

    return OnnxRuntimeRunner(Path(opening.model), OnnxRuntimeSettings(opening.threads, opening.defaults))
