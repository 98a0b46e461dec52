"""Engines of a graph that no compile makes: an FP32 candidate's, or one quantized as an ONNX file.

The same steps as `qdq compile` has behind its canonical graph: lower, build, compare, bench, deploy.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.cores import numa_nodes
from engines.targets import BASELINE, CPU_TARGETS, TARGETS, EngineOptions
from qdq.base.artifacts import PARTIAL_PREFIX, write_json
from qdq.base.screen import Screen
from qdq.base.versions import versions
from qdq.errors import Unavailable
from qdq.pipeline.options import CompileOptions

if TYPE_CHECKING:
    from engines.types import BuiltEngine, MatmulNames, Runner
    from qdq.base.types import Feeds

INT8, FP32 = "int8", "fp32"
REPOSITORY = "model_repository"


@dataclass(frozen=True)
class Material:
    """A candidate's graph, and what its engines are compared with, timed on and served with.

    Attributes:
        name: of the model that Triton serves.
        graph: with Q/DQ pairs, or in floating point.
        floating: the same model in floating point; `graph` itself for an FP32 candidate.
        reference: the floating-point model as its own library computes it.
        feeds: batches to compare on.
        timed: batches of one shape to time with.
        task: as `engines.compare` calls it.
        token_level: outputs with a value per token, None where their form tells.
        cuts: of a multi-label model, see `engines.compare.Reading`.
        labels: class names for Triton.
        names: the multiplications to look for in an INT8 engine.
    """

    name: str
    graph: Path
    floating: Path
    reference: Runner
    feeds: Sequence[Feeds]
    timed: Sequence[Feeds]
    task: str
    token_level: tuple[str, ...] | None = None
    cuts: tuple[float, ...] = ()
    labels: tuple[str, ...] = ()
    names: MatmulNames | None = None

    @property
    def precision(self) -> str:
        """int8 or fp32."""
        return FP32 if self.graph == self.floating else INT8

    @cached_property
    def shape(self) -> tuple[int, int]:
        """Batch and sequence of the timed batches."""
        batch, *_, sequence = self.timed[0]["input_ids"].shape
        return batch, sequence


def deploy_graph(
    material: Material, target: str, work: Path, options: CompileOptions, screen: Screen
) -> tuple[dict[str, Any], Runner]:
    """Build, compare, time and serve one engine below ``work/target/``; returns its row and its runner.

    `options` are resolved. Raises Unavailable for a GPU target, and what building and comparing raise.
    """
    from engines.compare import Reading, compare, headline

    if TARGETS[target].gpu:
        raise Unavailable(
            f"{material.precision} engines of {material.name} are built for {' and '.join(CPU_TARGETS)} here; for "
            f"{target} give 'qdq compile' the candidate, and 'qdq variants' for a floating-point plan"
        )
    folder = work / target
    chosen = EngineOptions(options.threads, options.precision_hint, nodes=numa_nodes())
    # The engine, and how far it is from floating point.
    with screen.stage(f"{target} {material.precision}") as stage:
        built = _build(material, target, folder, chosen)
        report: dict[str, Any] = {"target": target, "precision": material.precision, "settings": dict(built.settings)}
        report |= {"int8": built.int8.as_json() if built.int8 else None}
        write_json(folder / "build.json", report | {"engine_files": [file.name for file in built.files]})
        runner = TARGETS[target].open(built.files[0], chosen)
        reading = Reading(material.task, material.cuts, material.token_level)
        accuracy = compare(material.reference, runner, material.feeds, reading, progress=stage.progress)
        write_json(folder / "accuracy.json", accuracy)
        stage.say(headline(accuracy))
    # Its time beside floating point, and a repository for Triton.
    timing = _bench(material, target, built, replace(chosen, shape=material.timed[0]["input_ids"].shape), options)
    write_json(folder / "benchmark.json", timing)
    own = timing["contestants"][INT8 if material.precision == INT8 else f"{target}-{FP32}"]
    row = {"precision": material.precision, "p50_ms": own["latency_ms"]["p50"], "speedup": own["speedup"]}
    row |= {"accuracy": {"cosine_mean": accuracy["cosine_mean"]}, "shape": list(material.shape)}
    return row | {"triton": _serve(material, target, built, folder, options)}, runner


def _build(material: Material, target: str, folder: Path, chosen: EngineOptions) -> BuiltEngine:
    """The lowered graph, in floating point the graph itself, as ``model.onnx`` in `folder`, and its engine."""
    from engines.interface import graph_files
    from export.passes import LowerOptions, lower

    folder.mkdir(parents=True, exist_ok=True)
    graph = folder / "model.onnx"
    if material.precision == INT8:
        lower(material.graph, target, folder, options=LowerOptions())
        return TARGETS[target].build(graph, folder, chosen, material.names)
    for file in graph_files(material.graph):
        shutil.copyfile(file, folder / file.name.replace(material.graph.name, graph.name))
    return TARGETS[target].build(graph, folder, chosen, None)


def _bench(
    material: Material, target: str, built: BuiltEngine, chosen: EngineOptions, options: CompileOptions
) -> Mapping[str, Any]:
    """benchmark.json: the engine and the floating-point engines of every CPU runtime that is installed."""
    from engines.bench import BenchSettings, Contestant, bench

    entries = []
    if material.precision == INT8:
        entries.append(Contestant(INT8, target, TARGETS[target].open(built.files[0], chosen)))
    for name in CPU_TARGETS:
        own = name == target and material.precision == FP32
        try:
            file = built.files[0] if own else material.floating
            entries.append(Contestant(f"{name}-{FP32}", name, TARGETS[name].open(file, chosen)))
        except Unavailable:
            if name in (target, BASELINE):
                raise
    batch, sequence = material.shape
    settings = BenchSettings(batch, sequence, budget_s=options.bench_seconds, threads=options.threads)
    return bench(entries, material.timed, settings, versions())


def _serve(material: Material, target: str, built: BuiltEngine, folder: Path, options: CompileOptions) -> str | None:
    """Write Triton's repository of the engine, of one for another runtime where that serves the target."""
    from engines.triton import TritonSettings, write_repository

    backend = options.triton_backend or TARGETS[target].backends[0]
    settings = TritonSettings(
        name=material.name,
        backend=backend,  # type: ignore[arg-type]  # validated by CompileOptions
        max_batch_size=options.batch,
        threads=options.threads,
        labels=material.labels,
    )
    sample = {name: array[:1] for name, array in material.timed[0].items()}
    with tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=folder) as scratch:
        served = built
        if backend != target:
            served = _build(material, backend, Path(scratch), EngineOptions(options.threads, options.precision_hint))
        write_repository(served, settings, [sample], folder / REPOSITORY)
    return str(folder / REPOSITORY)
