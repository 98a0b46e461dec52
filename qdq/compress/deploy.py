"""Compile every model that `compress()` made: engines, benchmarks, and Triton repositories.

    python -m qdq.compress.deploy OUTPUT_DIR --target openvino --eval-data dev.tsv
    python -m qdq.compress.deploy OUTPUT_DIR --model-class my_model.py:MyClass --task text-classification

`CompressionArguments.deploy` does the same at the end of `compress()`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from engines.targets import TARGETS as TARGET_TABLE
from engines.targets import EngineOptions
from qdq.base.artifacts import read_json, write_json
from qdq.base.edge import Parser, run_script
from qdq.base.option import flag, help_of
from qdq.base.screen import Screen
from qdq.compress.deployed_graph import deploy_graph
from qdq.compress.engine_module import Scoring
from qdq.compress.materials import of_checkpoint, of_file
from qdq.compress.torch_dynamic import DESCRIPTION
from qdq.errors import DeployError, Unavailable
from qdq.loading.source import QUANT_SPEC
from qdq.pipeline.compile import compile_model
from qdq.pipeline.options import TARGETS, CompileOptions, candidates
from qdq.pipeline.outcome import Outcome
from qdq.pipeline.workdir import WorkDirectory

# Options of `qdq compile` that the command line takes, with the reading of a value
FLAGS: Mapping[str, Callable[[str], Any]] = {
    **dict.fromkeys(("task", "model_class", "eval_data", "label_column"), str),
    **dict.fromkeys(("text_columns", "header", "labels"), lambda text: tuple(text.split(","))),
    **dict.fromkeys(("eval_samples", "batch", "sequence", "threads"), int),
    "bench_seconds": float,
}
CANDIDATES, DEPLOYMENT, ENGINES = "compression.json", "deployment.json", "engines"


def deploy(
    output: Path, targets: Sequence[str], screen: Screen, scoring: Scoring | None = None, **options: Any
) -> dict[str, Any]:
    """Make engines of every model of `output` for every target, in ``output/engines/<name>/``.

    A quantized checkpoint is compiled as `qdq compile` would. A floating-point one (width pruning alone) becomes an
    FP32 engine, a quantized ONNX file an engine that is compared with the file as it was. torch.ao's baseline is no
    graph and is listed with that reason.

    `scoring` is the evaluator of `compress()`; without it the metric of an engine is that of labelled text in
    `eval_data`. `options` are those of CompileOptions; input_dtype is what `compress()` was asked for, unless given.
    Returns and writes deployment.json: per model and target the metric of the engine, the latency and its speedups, and
    which is the best: the highest metric of its engines, of `compress()` where an engine has none. Raises DeployError
    when `output` holds no models, and what compiling raises.
    """
    if not (output / CANDIDATES).is_file():
        raise DeployError(f"{output}: has no {CANDIDATES}; give the output_dir of a finished compress()")
    compression = read_json(output / CANDIDATES)
    asked = CompileOptions(**{"input_dtype": compression["input_dtype"], **options})
    asked.validate()
    # One row per model and target.
    rows: list[dict[str, Any]] = []
    for made in compression["candidates"]:
        folder = output / str(made["folder"])
        common = {"name": made["name"], "candidate_metric": made["metric"], "metric": None}
        if (folder / DESCRIPTION).is_file():
            rows.append({**common, "skipped": "torch.ao's model runs in torch only"})
            continue
        for target in targets:
            found = _engine(Candidate(output, folder, made), replace(asked, target=target), screen, scoring)
            rows.append({**common, "work": str(output / ENGINES / made["name"]), **found})
    best = _best(rows) or str(compression["best"])
    rows = [{**row, "best": row["name"] == best} for row in rows]
    report = {"best": best, "engines": rows}
    write_json(output / DEPLOYMENT, report)
    _show(screen, rows)
    return report


@dataclass(frozen=True)
class Candidate:
    """A model that `compress()` left in `folder` below `output`; `row` is that of compression.json."""

    output: Path
    folder: Path
    row: Mapping[str, Any]

    @property
    def work(self) -> Path:
        """Folder of its engines."""
        return self.output / ENGINES / str(self.row["name"])


def _engine(candidate: Candidate, asked: CompileOptions, screen: Screen, scoring: Scoring | None) -> dict[str, Any]:
    """The row of one model's engine; a target that cannot be built here is a reason in it."""
    folder, work = candidate.folder, candidate.work
    if (folder / QUANT_SPEC).is_file():
        outcome = compile_model(replace(asked, model=str(folder), out=str(work)), screen)
        row = {"target": outcome.target, "missing": outcome.missing, "precision": "int8", **_measured(outcome)}
        built = TARGET_TABLE[outcome.target]
        # A plan takes no batch beyond its profile, and the evaluator's are whatever the data are.
        if scoring is not None and not outcome.missing and not built.gpu:
            runner = built.open(work / outcome.target / built.engine, EngineOptions(asked.threads))
            row |= _named(compressed_by=scoring.of(runner))
        return row
    # A graph that no compile makes.
    with WorkDirectory(work):
        if (folder / "config.json").is_file():
            material, options, metric = of_checkpoint(folder, work, asked)
        else:
            material, options, metric = of_file(folder, candidate.output, candidate.row, asked)
        rows = []
        for target in candidates(asked.target):
            try:
                row, runner = deploy_graph(material, target, work, options, screen)
            except Unavailable as error:
                rows.append({"target": target, "missing": str(error), "precision": material.precision})
                continue
            scored = None if scoring is None else scoring.of(runner)
            named = metric(runner) if scored is None else None
            row |= _named(named, scored)
            rows.append({"target": target, "missing": "", **row})
    return min(rows, key=lambda row: row.get("p50_ms", math.inf))


def _named(by_text: tuple[str, float] | None = None, compressed_by: float | None = None) -> dict[str, Any]:
    """The metric of an engine and the data it is of, where there is one."""
    if compressed_by is not None:
        return {"metric": compressed_by, "metric_name": "that of compress()"}
    return {} if by_text is None else {"metric": by_text[1], "metric_name": by_text[0]}


def _best(rows: Sequence[Mapping[str, Any]]) -> str | None:
    """The model whose engine has the highest metric, by that of `compress()` where an engine has none; None of none."""
    built = [row for row in rows if row.get("p50_ms") is not None]
    scored = all(row["metric"] is not None for row in built)
    ranked = max(built, key=lambda row: (row["metric"] if scored else 0, row["candidate_metric"]), default=None)
    return None if ranked is None else str(ranked["name"])


def _measured(outcome: Outcome) -> dict[str, Any]:
    """Latency, speedups and the engine's task metric; nothing where this machine cannot build the target."""
    reports = outcome.as_json()
    found: dict[str, Any] = {}
    if reports["benchmark"] is not None:
        int8 = reports["benchmark"]["contestants"]["int8"]
        found |= {"p50_ms": int8["latency_ms"]["p50"], "speedup": int8["speedup"]}
    if reports["accuracy"] is not None:
        found["accuracy"] = {key: reports["accuracy"].get(key) for key in ("metric", "cosine_mean")}
        if (metric := reports["accuracy"].get("metric")) is not None:
            found |= _named((metric["name"], metric["int8"]))
    repository = Path(outcome.out) / outcome.target / "model_repository"
    return found | {"triton": str(repository) if repository.is_dir() else None}


def _show(screen: Screen, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    left = ("candidate", "target", "precision", "")
    for column in ("candidate", "target", "precision", "metric", "p50 ms", "x ORT FP32", ""):
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    for row in rows:
        measured = "p50_ms" in row
        table.add_row(
            row["name"] + (" *" if row["best"] else ""),
            row.get("target", "-"),
            row.get("precision", "-"),
            "–" if row["metric"] is None else f"{row['metric']:.4f}",
            f"{row['p50_ms']:.1f}" if measured else "-",
            f"{row['speedup']['onnxruntime-fp32']:.2f}" if measured else "-",
            row.get("skipped", "") or row.get("missing", ""),
        )
    screen.console.print(table)
    without = any(row["metric"] is None for row in rows if "p50_ms" in row)
    screen.line(
        "* best" + (" of compress(); engines have a metric with labelled --eval-data" if without else " engine")
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Deploy as the command line above says."""
    parser = Parser(prog="python -m qdq.compress.deploy", description=__doc__)
    parser.add_argument("output", type=Path, help="output_dir of compress()")
    parser.add_argument("--target", nargs="+", default=["auto"], help=f"{', '.join(TARGETS)} (default: auto)")
    for declared in fields(CompileOptions):
        if (name := declared.name) in FLAGS:
            parser.add_argument(flag(name), type=FLAGS[name], default=declared.default, help=help_of(declared))
    typed = vars(parser.parse_args(arguments))
    deploy(typed.pop("output"), typed.pop("target"), Screen(), **typed)


if __name__ == "__main__":
    sys.exit(run_script(main))
