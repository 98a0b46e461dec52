"""Our TensorRT graph beside those of other tools, in NVIDIA's own compiler: one checkpoint, one calibration text.

``python -m qdq.studies.peers.compiled --model M --calibration TRAIN --eval-data DEV --json OUT`` (`make
compare-compiled` does so in an environment that has ModelOpt). Written, per graph and compute capability: kernels,
megabytes, INT8 linears and attentions, and products whose scale is an FP32 number, or the node that the compiler
refuses and why; once per graph its accuracy in ONNX Runtime without optimizations, which is what the graph says and no
engine's own. Nothing runs on a GPU. A graph that lies in --work is not built again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.tensorrt_rtx import Refused, Shapes, compile_graph, coverage, installed_version
from engines.tensorrt_rtx.coverage import INT8
from export.names import one_by_one
from qdq.base.artifacts import write_json
from qdq.base.choices import CAPABILITIES
from qdq.base.screen import Screen
from qdq.errors import BuildError, QdqError
from qdq.loading.source import short_name
from qdq.pipeline.run import FLOAT as OWN_FLOAT
from qdq.studies.models import batches, run_stages
from qdq.studies.peers import build
from qdq.studies.peers.build import OUT, TASK, Material
from qdq.studies.peers.compiled_table import render_compiled
from qdq.studies.peers.tools import FLOAT, build_artifact
from qdq.studies.study import exit_code, parser

if TYPE_CHECKING:
    from engines.types import Runner

SHAPE = (40, 128)
TEXTS = 8  # of a batch that is scored
# Graph: its file in the work directory. "fp16" is the model unquantized, as `TARGET=tensorrt` compares with.
OURS, HALF = "qdq", "fp16"
TOOLS = ("modelopt", "onnxruntime-static", "onnxruntime-static-s8")
TARGET = "tensorrt"


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Build, score and compile every graph; the object `render_compiled` shows. Raises QdqError."""
    screen = Screen()
    material = build.prepare(options)
    with screen.stage("graphs"):
        made = {name: _graph(material, name) for name in (OURS, HALF, *TOOLS)}
    # Each graph in ONNX Runtime, and for every compute capability through the compiler.
    rows: dict[str, Any] = {}
    score = _scorer(material)
    with screen.stage("compile") as stage:
        for done, (name, graph) in enumerate(made.items()):
            stage.progress(done, len(made))
            rows[name] = {"failed": graph} if isinstance(graph, str) else _row(graph, options, score)
    tools = {name: metadata.version(name) for name in ("onnxruntime", "nvidia-modelopt") if _installed(name)}
    return {
        "model": short_name(options.model),
        "shape": options.shapes[0],
        "compiler": installed_version(),
        "tools": tools,
        "rows": rows,
    }


def _row(graph: Path, options: argparse.Namespace, score: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    compiled = {str(sm): _compiled(graph, sm, options.shapes[0]) for sm in options.sm}
    return {"accuracy": score(graph), "sm": compiled}


def _installed(package: str) -> bool:
    return any(True for _ in metadata.distributions(name=package))


def _graph(material: Material, name: str) -> Path | str:
    """The file of a graph, built if it is not there, or why it cannot be built."""
    work: Path = material.options.work
    if name in (OURS, HALF):
        return _our_graph(material, name)
    path = work / f"{name}.onnx"
    try:
        if not path.is_file():
            build.alone(build_artifact, work / FLOAT, material.calibration, path)
    except QdqError as error:
        return str(error)
    return path


def _our_graph(material: Material, name: str) -> Path:
    """Our graph lowered with the default placement, or the unquantized one in FP16."""
    work: Path = material.options.work
    lowered, half = work / OUT / TARGET / "model.onnx", work / HALF / "model.onnx"
    if name == OURS:
        if not lowered.is_file():
            build.alone(run_stages, ("calibrate", "export", "lower"), {**material.typed, "target": TARGET})
        return lowered
    if not half.is_file():
        from export.passes import float_variant

        half.parent.mkdir(parents=True, exist_ok=True)
        float_variant(work / OUT / OWN_FLOAT, "fp16", half.parent, None)
    return half


def _compiled(graph: Path, sm: int, shape: tuple[int, int]) -> dict[str, Any]:
    """Kernels and coverage of a graph for one compute capability, or the first node that is refused."""
    try:
        found = compile_graph(graph, (sm,), Shapes.fixed(*shape))
    except Refused as error:
        first = error.errors[0]
        return {"refused": first.reason, "operator": first.operator, "node": first.node, "nodes": len(error.errors)}
    except BuildError as error:
        return {"refused": str(error).partition("\n")[0], "operator": "", "node": "", "nodes": 0}
    covered = coverage(found, graph)
    return {
        "kernels": len(found.kernels),
        "megabytes": round(found.megabytes, 2),
        "linears": _share(covered.linears, INT8),
        "attentions": _share(covered.attentions, INT8),
        "fp32_scales": _share(covered.scales_in_fp32, True),
    }


def _share(verdicts: Mapping[str, object], good: object) -> tuple[int, int]:
    """Number of nodes that have the verdict, of all; a product that computes several linears counts as those."""
    counts = {name: len(one_by_one(name)) for name in verdicts}
    return sum(counts[name] for name, verdict in verdicts.items() if verdict == good), sum(counts.values())


def _scorer(material: Material) -> Callable[[Path], dict[str, Any]]:
    """Return accuracy.json of a graph against torch FP32, whose answers to the texts are computed once."""
    from engines import compare as engines_compare
    from qdq.loading.runner import TorchRunner
    from qdq.tasks.gold import gold_of

    loaded = material.loaded
    gold = gold_of(material.texts, loaded)
    feeds, labels = batches(loaded, gold.records, (TEXTS, material.options.shapes[0][1]), "longest"), gold.values
    floating = TorchRunner(loaded.module(), material.threads)
    expected = [floating(feed) for feed in feeds]

    def score(graph: Path) -> dict[str, Any]:
        answers = iter(expected)
        return engines_compare.compare(lambda _: next(answers), _runner(graph), feeds, TASK, labels)

    return score


def _runner(graph: Path) -> Runner:
    """A graph in ONNX Runtime without optimizations, which takes the ids in the type that it declares."""
    from export.unoptimized import open_unoptimized

    session = open_unoptimized(str(graph), graph.parent)
    types = {item.name: np.int32 if "int32" in item.type else np.int64 for item in session.get_inputs()}
    outputs = [item.name for item in session.get_outputs()]

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        values = session.run(outputs, {name: feeds[name].astype(kind) for name, kind in types.items()})
        return {name: value.astype(np.float32) for name, value in zip(outputs, values, strict=True)}

    return run


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the report to --json and print its table. Raises QdqError."""
    command = parser("peers.compiled", __doc__)
    add = command.add_argument
    add("--model", required=True, help="sequence-classification checkpoint")
    add("--json", required=True, type=Path, help="where the report goes")
    for name in ("calibration", "eval-data"):
        add(f"--{name}", help="file or folder (default: bundled text)")
    add("--work", type=Path, default=Path("build/peers-compiled"), help="where graphs are built (default: %(default)s)")
    add("--sm", type=int, nargs="+", choices=CAPABILITIES, default=[75, 89], help="compute capabilities")
    for name, default in (("samples", 128), ("eval-samples", 512), ("threads", 0)):
        add(f"--{name}", type=int, default=default, metavar="N", help="(default: %(default)s)")
    add("--shape", nargs=2, type=int, default=SHAPE, metavar=("B", "S"), help="batch and sequence (default: 40 128)")
    options = command.parse_args(arguments)
    options.shapes, options.precision_hint = (tuple(options.shape),), "f32"
    report = compare(options)
    write_json(options.json, report)
    sys.stdout.write(render_compiled(report) + "\n")


if __name__ == "__main__":
    sys.exit(exit_code(main))
