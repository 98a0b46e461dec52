"""Build the plan of TensorRT for RTX, one file for many GPUs, on any machine; a GPU elsewhere runs it."""

from __future__ import annotations

from pathlib import Path
from typing import NoReturn

from engines.interface import interface
from engines.packed import copy_into
from engines.precision import Verdict, assemble
from engines.tensorrt.settings import TensorRTSettings
from engines.tensorrt_rtx.compiler import Compiler, Shapes
from engines.tensorrt_rtx.coverage import INT8, coverage
from engines.tensorrt_rtx.graph import Graph
from engines.tensorrt_rtx.kernels import Compiled
from engines.tensorrt_rtx.script import PLAN, SCRIPT, write_run_script
from engines.types import BuiltEngine, Int8Report, MatmulNames
from qdq.base.artifacts import atomic_path
from qdq.errors import Unavailable


def build(
    lowered: Path, folder: Path, settings: TensorRTSettings, capability: int, names: MatmulNames | None = None
) -> BuiltEngine:
    """Compile `lowered` into one plan for every compute capability from `capability` on, and write run_engine.py.

    `names` are the matrix multiplications to look for, None for a floating-point engine. Of the settings only the
    profile counts. Raises Unavailable without the compiler, BuildError when it refuses the graph, DeployError when the
    folder cannot be written.
    """
    settings.validate()
    inputs, outputs = interface(lowered)
    with Compiler() as compiler:
        capabilities = tuple(known for known in compiler.capabilities if known >= capability)
        with atomic_path(folder / PLAN) as partial:
            compiled = compiler.compile(lowered, capabilities, profile(settings), partial)
    write_run_script(lowered, folder, inputs, settings, capabilities)
    report = None if names is None else read_back(compiled, lowered, names)
    recorded = {
        "profile": {axis: list(sizes) for axis, sizes in settings.ranges().items()},
        "compute_capabilities": list(capabilities),
        "tensorrt_rtx": compiled.version,
    }
    files = (folder / PLAN, folder / SCRIPT, *copy_into(folder, settings.packing))
    return BuiltEngine("tensorrt-rtx", files, inputs, outputs, report, recorded, compiled)


def profile(settings: TensorRTSettings) -> Shapes:
    """The profile of a TensorRT build as the compiler takes it."""
    return Shapes.of(settings.ranges())


def read_back(compiled: Compiled, model: Path, names: MatmulNames) -> Int8Report:
    """Count the multiplications of `names` that the compiler made INT8; a fused attention's two, by its operands.

    Raises BuildError as `coverage` does.
    """
    found = coverage(compiled, model)
    linears = {**found.outside, **found.linears}
    attentions = {
        node: found.attentions[attention.name]
        for attention in Graph(model).attentions
        for node in (attention.scores, attention.context)
    }

    def verdict(name: str) -> Verdict:
        says = linears.get(name) or attentions.get(name, "the compiler's account does not name it")
        return Verdict(says == INT8, name in attentions, says)

    return assemble(names, verdict)


def open_plan(plan: Path) -> NoReturn:
    """Refuse to run the plan in this process: it belongs on a machine with an RTX GPU, where its script runs it.

    Raises Unavailable, always.
    """
    raise Unavailable(
        f"TensorRT for RTX runs {plan} on an NVIDIA RTX GPU only: copy {plan.parent} there and run 'python {SCRIPT}' "
        "(--help lists its options; --inputs and --outputs compare)"
    )
