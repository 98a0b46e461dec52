"""An engine to open as plain values, which can be handed to a process of its own that measures its memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engines.targets import TARGETS, EngineOptions
from engines.types import Runner


@dataclass(frozen=True)
class Opening:
    """An engine file and its options."""

    engine: str  # a target; qdq/studies/peers/build.py knows torch's, too
    model: str  # file (torch: checkpoint folder)
    threads: int
    hint: str = "f32"  # what OpenVINO computes in outside INT8
    static: bool = False  # OpenVINO compiles for exactly the shape it is fed, as `qdq bench` has it
    defaults: bool = False  # ONNX Runtime with its own session options


def open_runner(opening: Opening, shape: tuple[int, ...]) -> Runner:
    """A contestant that will be fed `shape` [batch, sequence]. Raises BuildError when it cannot be loaded."""
    fixed = shape if opening.static else None
    options = EngineOptions(opening.threads, opening.hint, fixed, defaults=opening.defaults)
    return TARGETS[opening.engine].open(Path(opening.model), options)
