"""`python -m qdq.accuracy`: measure accuracy after quantization on real tasks, and write docs/accuracy.md.

Figures are JSON files in docs/results/accuracy/, one per run; other commands may add theirs in the form of `Figure`.
The page is made of whatever is there. Models and data beside the repository are research-only and may be absent; their
figures then stay as they are.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.artifacts import write_json, write_text
from qdq.config import nearest
from qdq.errors import ConfigError

if TYPE_CHECKING:
    from qdq.tasks.evaluation import Scores

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "accuracy"
PAGE = ROOT / "docs" / "accuracy.md"
CALIBRATION_TEXTS = 128
SIMULATED = "torch, fake-quantized"


@dataclass(frozen=True)
class Case:
    """One model with its data, relative to the shared folder; training rows calibrate and decide, dev rows score."""

    model: str
    train: str
    dev: str
    samples: int | None = None
    sequence: int = 128
    overlap: int | None = None


CASES: Mapping[str, Case] = {
    "minilm-mrpc": Case("minilm-mrpc", "mrpc/train.tsv", "mrpc/dev.tsv"),
    "minilm-conll": Case("minilm-conll", "conll2003/train.txt", "conll2003/valid.txt"),
    "minilm-squad": Case(
        "minilm-squad", "squad/squadshifts_new_wiki_v1.0.json", "squad/dev-v1.1.json", 2000, 384, overlap=-1
    ),
}


@dataclass(frozen=True)
class Figure:
    """One run: the content of one JSON file.

    Attributes:
        engine: what ran: `SIMULATED`, openvino, onnxruntime.
        treatment: what was done to the model beside calibrating it, "" for nothing.
        kept: points placed, and candidates of the twenty per layer.
        metrics: name -> fp32, int8, drop_points and drop_interval (95 %, paired bootstrap).
        main: the metric that decides.
        notes: anything a reader must know.
    """

    model: str
    engine: str
    placement: str
    calibrator: str
    treatment: str
    kept: tuple[int, ...]
    samples: int
    main: str
    metrics: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def measure(case: Case, placement: str, target: str, shared: Path) -> Figure:
    """Calibrate `placement` on 128 training texts and score it fake-quantized on dev. Raises QdqError."""
    import torch

    from qdq.calibrate.calibrate import CalibrationSettings, calibrate, default_percentile
    from qdq.data import TextSource, read_records
    from qdq.encode import calibration_batches
    from qdq.inject import inject
    from qdq.model import load_model
    from qdq.placing import base_spec
    from qdq.placing.decide import decide_placement
    from qdq.runner import TorchRunner
    from qdq.tasks.loading import EvaluationSettings, load_evaluation

    loaded = load_model(str(shared / "models" / case.model))
    settings = EvaluationSettings(case.sequence, 32, case.overlap, required=True)
    evaluation = load_evaluation(str(shared / "data" / case.dev), loaded, settings, case.samples)
    floating = evaluation.score(TorchRunner(loaded.module()))
    spec = base_spec(placement, target)
    placed = inject(loaded.model, spec)
    records, _ = read_records(TextSource(str(shared / "data" / case.train)), CALIBRATION_TEXTS)
    feeds = calibration_batches(loaded.tokenizer, records, loaded.inputs, case.sequence)
    batches = [{name: torch.from_numpy(array) for name, array in feed.items()} for feed in feeds]
    calibrate(loaded.module(), batches, spec, CalibrationSettings("percentile", default_percentile(spec)))
    if placement == "auto":
        spec, placed, _ = decide_placement(loaded, spec, records, target, case.sequence)
    scores = evaluation.score(TorchRunner(loaded.module()))
    return Figure(
        model=case.model,
        engine=SIMULATED,
        placement=f"{placement} ({target})" if placement == "auto" else placement,
        calibrator=f"percentile {default_percentile(spec):g}",
        treatment="",
        kept=kept_of(placed),
        samples=evaluation.samples,
        main=floating.main,
        metrics=compared(floating, scores),
        notes=evaluation.notes,
    )


def kept_of(placement: Any) -> tuple[int, int]:
    """(placed, candidates) of the encoder's twenty points per layer."""
    from qdq.sensitivity.groups import layer_of

    points = [point for point in placement.points if layer_of(point.name) is not None]
    return sum(point.placed for point in points), len(points)


def compared(floating: Scores, quantized: Scores) -> dict[str, Any]:
    """Every metric of both sides with the drop in points and its interval."""
    return {
        name: {
            "fp32": floating.values[name],
            "int8": quantized.values[name],
            "drop_points": -interval.difference,
            "drop_interval": [-interval.high, -interval.low],
        }
        for name, interval in quantized.difference(floating).items()
    }


def load_figures(folder: Path = RESULTS) -> list[Figure]:
    """Every figure, in the order of the page. Raises ConfigError for a file that is none."""
    found = []
    for path in sorted(folder.glob("*.json")):
        values = json.loads(path.read_text(encoding="utf-8"))
        fields = {field.name for field in dataclasses.fields(Figure)}
        for key in values:
            if key not in fields:
                raise ConfigError(f"{path.name}: unknown key '{key}'; {nearest(key, fields)}")
        try:
            figure = Figure(**values)
        except TypeError as error:
            raise ConfigError(f"{path.name}: is no figure ({error}); write it again with 'make accuracy'") from error
        found.append(figure)
    return sorted(found, key=lambda f: (f.model, f.treatment, f.engine, -f.kept[0], f.placement))


def render(figures: Sequence[Figure]) -> str:
    """docs/accuracy.md."""
    parts = [_HEAD]
    for model in dict.fromkeys(figure.model for figure in figures):
        mine = [figure for figure in figures if figure.model == model]
        parts.append(f"## {model}\n\n{_sentence(mine[0])}\n")
        parts.append(_table(mine))
    return "\n".join(parts)


_HEAD = """\
# Accuracy after quantization

Every figure is of a real task: calibrated on 128 training texts, scored on the development rows by the task's published
metric. `drop` is FP32 minus INT8 in points, with its 95 % bootstrap interval over paired samples; a drop whose interval
holds zero is not told apart from none. `points` counts quantizers placed of the twenty per layer.

This page is written by `make accuracy` from [docs/results/accuracy](results/accuracy), after measuring what is not
there yet.
"""


def _sentence(figure: Figure) -> str:
    fp32 = ", ".join(f"{name} {values['fp32']:.4f}" for name, values in figure.metrics.items())
    return f"FP32 over {figure.samples} samples: {fp32}."


def _table(figures: Iterable[Figure]) -> str:
    head = "| placement | treatment | calibrator | engine | points | metric | INT8 | drop | 95 % interval |"
    rows = [head, "|" + "---|" * 9]
    for figure in figures:
        values = figure.metrics[figure.main]
        low, high = values["drop_interval"]
        points = f"{figure.kept[0]}/{figure.kept[1]}"
        rows.append(
            f"| {figure.placement} | {figure.treatment or '–'} | {figure.calibrator} | {figure.engine} | {points} | "
            f"{figure.main} | {values['int8']:.4f} | {values['drop_points']:+.2f} | {low:+.2f} … {high:+.2f} |"
        )
    return "\n".join(rows) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(prog="python -m qdq.accuracy", description=__doc__, allow_abbrev=False)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder with models/ and data/")
    parser.add_argument("--model", choices=[*CASES], action="append", help="only these (default: all)")
    parser.add_argument("--placement", action="append", help="placements (default: linear+qk, qdqbert and auto)")
    parser.add_argument("--target", default="tensorrt", help="target that auto decides for (default: tensorrt)")
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    options = parser.parse_args(arguments)
    if not options.page_only and not options.shared.is_dir():
        raise ConfigError(f"{options.shared}: is not there; name the folder with models/ and data/ with --shared")
    for name in [] if options.page_only else options.model or CASES:
        for placement in options.placement or ("linear+qk", "qdqbert", "auto"):
            path = RESULTS / f"{name}-{placement}{f'-{options.target}' if placement == 'auto' else ''}.json"
            if options.again or not path.is_file():
                write_json(path, asdict(measure(CASES[name], placement, options.target, options.shared)))
    write_text(PAGE, render(load_figures()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
