"""Compile every model that `compress()` made: engines, benchmarks, and Triton repositories.

    python -m qdq.compress.deploy OUTPUT_DIR --target openvino --eval-data dev.tsv

`CompressionArguments.deploy` does the same at the end of `compress()`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from qdq.base.artifacts import read_json, write_json
from qdq.base.edge import Parser, run_script
from qdq.base.screen import Screen
from qdq.compress.torch_dynamic import DESCRIPTION
from qdq.errors import DeployError
from qdq.pipeline.compile import compile_model
from qdq.pipeline.options import TARGETS, CompileOptions
from qdq.pipeline.outcome import Outcome

CANDIDATES, DEPLOYMENT, ENGINES = "compression.json", "deployment.json", "engines"


def deploy(output: Path, targets: Sequence[str], screen: Screen, **options: Any) -> dict[str, Any]:
    """Compile every model of `output` for every target into ``output/engines/<name>/``.

    `options` are those of CompileOptions; input_dtype is what `compress()` was asked for, unless given. A model
    without quantizers (width pruning alone) is calibrated as `qdq compile` would; torch.ao's baseline is no graph and
    is listed with that reason. Returns and writes deployment.json: per model and target the metric, the latency and its
    speedups, and which is the best (the highest metric of `compress()`). Raises DeployError when `output` holds no
    models, and what compiling raises.
    """
    if not (output / CANDIDATES).is_file():
        raise DeployError(f"{output}: has no {CANDIDATES}; give the output_dir of a finished compress()")
    compression = read_json(output / CANDIDATES)
    options = {"input_dtype": compression["input_dtype"], **options}
    # One row per model and target.
    rows = []
    for made in compression["candidates"]:
        folder = output / str(made["folder"])
        common = {"name": made["name"], "metric": made["metric"], "best": made["name"] == compression["best"]}
        if (folder / DESCRIPTION).is_file():
            rows.append({**common, "skipped": "torch.ao's model runs in torch only"})
            continue
        for target in targets:
            work = str(output / ENGINES / made["name"])
            outcome = compile_model(CompileOptions(model=str(folder), target=target, out=work, **options), screen)
            rows.append({**common, "work": work, "target": outcome.target, "missing": outcome.missing})
            rows[-1] |= _measured(outcome)
    report = {"best": compression["best"], "engines": rows}
    write_json(output / DEPLOYMENT, report)
    _show(screen, rows)
    return report


def _measured(outcome: Outcome) -> dict[str, Any]:
    """Latency, speedups and the engine's task metric; nothing where this machine cannot build the target."""
    reports = outcome.as_json()
    found: dict[str, Any] = {}
    if reports["benchmark"] is not None:
        int8 = reports["benchmark"]["contestants"]["int8"]
        found |= {"p50_ms": int8["latency_ms"]["p50"], "speedup": int8["speedup"]}
    if reports["accuracy"] is not None:
        found["accuracy"] = {key: reports["accuracy"].get(key) for key in ("metric", "cosine_mean")}
    repository = Path(outcome.out) / outcome.target / "model_repository"
    return found | {"triton": str(repository) if repository.is_dir() else None}


def _show(screen: Screen, rows: Sequence[dict[str, Any]]) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("candidate", "target", "metric", "p50 ms", "x ORT FP32", ""):
        table.add_column(column, justify="left" if column in ("candidate", "target", "") else "right", no_wrap=True)
    for row in rows:
        measured = "p50_ms" in row
        table.add_row(
            row["name"] + (" *" if row["best"] else ""),
            row.get("target", "-"),
            f"{row['metric']:.4f}",
            f"{row['p50_ms']:.1f}" if measured else "-",
            f"{row['speedup']['onnxruntime-fp32']:.2f}" if measured else "-",
            row.get("skipped", "") or row.get("missing", ""),
        )
    screen.console.print(table)
    screen.line("* best metric")


def main(arguments: Sequence[str] | None = None) -> None:
    """Deploy as the command line above says."""
    parser = Parser(prog="python -m qdq.compress.deploy", description=__doc__)
    parser.add_argument("output", type=Path, help="output_dir of compress()")
    parser.add_argument("--target", nargs="+", default=["auto"], help=f"{', '.join(TARGETS)} (default: auto)")
    parser.add_argument("--eval-data", help="text to compare and to time with (default: bundled text)")
    for name in ("batch", "sequence", "threads"):
        parser.add_argument(f"--{name}", type=int, default=getattr(CompileOptions, name))
    parser.add_argument("--bench-seconds", type=float, default=CompileOptions.bench_seconds)
    typed = vars(parser.parse_args(arguments))
    deploy(typed.pop("output"), typed.pop("target"), Screen(), **typed)


if __name__ == "__main__":
    sys.exit(run_script(main))
