"""From the output folder of `compress()` to engines: every candidate compiled, benchmarked and made ready for Triton.

    python -m qdq.compress.deploy OUTPUT_DIR --target openvino --eval-data dev.tsv

`CompressionArguments.deploy` does the same at the end of `compress()`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.table import Table

from qdq.base.artifacts import read_json, write_json
from qdq.base.screen import Screen
from qdq.compress.torch_dynamic import DESCRIPTION
from qdq.errors import DeployError
from qdq.pipeline.compile import compile_model
from qdq.pipeline.options import CompileOptions
from qdq.pipeline.outcome import Outcome

CANDIDATES, DEPLOYMENT, ENGINES = "compression.json", "deployment.json", "engines"


@dataclass(frozen=True)
class DeploySettings:
    """How the engines are made; names and meaning as in CompileOptions, None is its default.

    `input_dtype` None is what `compress()` was asked for.
    """

    targets: tuple[str, ...] = ("auto",)
    eval_data: str | None = None
    batch: int = CompileOptions.batch
    sequence: int = CompileOptions.sequence
    threads: int = CompileOptions.threads
    bench_seconds: float = CompileOptions.bench_seconds
    input_dtype: str | None = None


def deploy(output: Path, settings: DeploySettings, screen: Screen) -> dict[str, Any]:
    """Compile every candidate of `output` for every target into ``output/engines/<candidate>/``.

    A candidate without quantizers (width pruning alone) is calibrated as `qdq compile` would; torch.ao's baseline is no
    graph and is listed with that reason. Returns and writes deployment.json: per candidate and target the metric, the
    latency and its speedups, and which candidate is the best (the highest metric of `compress()`). Raises DeployError
    when `output` holds no candidates, and what compiling raises.
    """
    if not (output / CANDIDATES).is_file():
        raise DeployError(f"{output}: has no {CANDIDATES}; give the output_dir of a finished compress()")
    compression = read_json(output / CANDIDATES)
    settings = replace(settings, input_dtype=settings.input_dtype or compression["input_dtype"])
    rows = []
    for candidate in compression["candidates"]:
        folder = output / str(candidate["folder"])
        common = {name: candidate[name] for name in ("name", "metric")}
        common["best"] = candidate["name"] == compression["best"]
        if (folder / DESCRIPTION).is_file():
            rows.append({**common, "skipped": "torch.ao's model runs in torch only"})
            continue
        for target in settings.targets:
            work = output / ENGINES / candidate["name"]
            rows.append({**common, **_compiled(folder, work, target, settings, screen)})
    report = {"best": compression["best"], "engines": rows}
    write_json(output / DEPLOYMENT, report)
    _show(screen, rows)
    return report


def _compiled(folder: Path, work: Path, target: str, settings: DeploySettings, screen: Screen) -> dict[str, Any]:
    """One engine: where it is, and what it measured."""
    outcome = compile_model(
        CompileOptions(
            model=str(folder),
            target=target,
            out=str(work),
            eval_data=settings.eval_data,
            batch=settings.batch,
            sequence=settings.sequence,
            threads=settings.threads,
            bench_seconds=settings.bench_seconds,
            input_dtype=settings.input_dtype or CompileOptions.input_dtype,
        ),
        screen,
    )
    return {"work": str(work), "target": outcome.target, "missing": outcome.missing, **_measured(outcome)}


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


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="output_dir of compress()")
    parser.add_argument("--target", nargs="+", default=["auto"], help="openvino, onnxruntime, tensorrt (default: auto)")
    parser.add_argument("--eval-data", help="text to compare and to time with (default: bundled text)")
    for name in ("batch", "sequence", "threads"):
        parser.add_argument(f"--{name}", type=int, default=getattr(CompileOptions, name))
    parser.add_argument("--bench-seconds", type=float, default=CompileOptions.bench_seconds)
    typed = vars(parser.parse_args(arguments))
    output, targets = typed.pop("output"), tuple(typed.pop("target"))
    deploy(output, DeploySettings(targets=targets, **typed), Screen())
    return 0


if __name__ == "__main__":
    sys.exit(main())
