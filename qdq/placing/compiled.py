"""Engines of placements as NVIDIA's compiler builds them, without a GPU: what leaving units out adds to them.

Kernels and megabytes are facts of the compiled engine; nothing is timed. Datacenter TensorRT chooses its own kernels.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qdq.placing.latency import some_placements
from qdq.placing.search import Search
from qdq.placing.units import Unit

if TYPE_CHECKING:
    from engines.tensorrt_rtx import Compiled
    from export.passes import LowerOptions


@dataclass(frozen=True)
class Setting:
    """Conditions of a compilation: compute capability, one shape, the middle axis of multiple choice, and lowering."""

    sm: int
    batch: int
    sequence: int
    lowering: LowerOptions
    choices: int = 2


def compiled_without(graph: Path, left_out: Mapping[int, Collection[str]], setting: Setting) -> dict[int, Compiled]:
    """Lower and compile a canonical graph once for each entry of `left_out`: the points that are floating point in it.

    Raises Unavailable without the compiler, BuildError when it refuses a graph.
    """
    import onnx

    from engines.tensorrt_rtx import Compiler, Shapes
    from export.lint.removal import without_points
    from export.passes import lower
    from export.to_onnx import save_proto

    canonical, found = onnx.load(graph), {}
    shapes = Shapes.fixed(setting.batch, setting.sequence, setting.choices)
    with tempfile.TemporaryDirectory(prefix="qdq-search-") as name, Compiler() as compiler:
        folder = Path(name)
        for number, points in left_out.items():
            save_proto(without_points(canonical, points), folder / "canonical.onnx")
            lower(folder / "canonical.onnx", "tensorrt", folder, options=setting.lowering)
            found[number] = compiler.compile(folder / "model.onnx", (setting.sm,), shapes)
    return found


def with_compiled(found: Search, units: Sequence[Unit], graph: Path, setting: Setting) -> Search:
    """`found` with kernels and megabytes of some placements as compiled.

    `graph`: canonical, with every point of `units`. Raises as `compiled_without`.
    """
    engines = compiled_without(graph, some_placements(found, units), setting)
    curve = [
        replace(
            tried,
            compiled_kernels=len(engines[tried.dropped].kernels),
            compiled_megabytes=round(engines[tried.dropped].megabytes, 2),
        )
        if tried.dropped in engines
        else tried
        for tried in found.curve
    ]
    return replace(found, curve=tuple(curve))
