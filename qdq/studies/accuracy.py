"""`python -m qdq.studies.accuracy`: measure accuracy after quantization on real tasks, and write docs/accuracy.md.

Figures are JSON files in docs/results/accuracy/, one per run; `qdq.studies.accuracy_page` makes the page of
whatever is there. Models and data beside the repository are research-only; where they are absent their figures stay.

A figure goes the way of `qdq compile`: calibrate, decide, export, lower and build in a work directory, then score what
came out of it on the development rows.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import read_json, sha256_file, sha256_json, write_json
from qdq.errors import ConfigError
from qdq.studies.accuracy_page import RESULTS, ROOT, Figure, write_page

if TYPE_CHECKING:
    from qdq.tasks.closeness import Scored
    from qdq.tasks.evaluation import Evaluation

CALIBRATION_TEXTS = 128
CHECKPOINT, GRAPH, OPENVINO = "torch, fake-quantized", "ONNX Runtime, exported graph", "OpenVINO engine"
FILES = {CHECKPOINT: "checkpoint", GRAPH: "model.qdq.onnx", OPENVINO: "openvino/model.xml"}


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
class Way:
    """What is compiled and what of it is scored."""

    placement: str
    target: str
    engines: tuple[str, ...]

    @property
    def label(self) -> str:
        """The placement as the page names it: `auto` decides for a target."""
        return f"auto ({self.target})" if self.placement == "auto" else self.placement


WAYS = (
    Way("auto", "openvino", (OPENVINO,)),
    Way("qdqbert", "tensorrt", (CHECKPOINT, GRAPH)),
    Way("auto", "tensorrt", (CHECKPOINT, GRAPH)),
)
# Every other named placement, on one model: presets for TensorRT are scored by fake quantization.
NAMED = (
    Way("linear", "openvino", (OPENVINO,)),
    Way("linear+qk", "openvino", (OPENVINO,)),
    *(Way(preset, "tensorrt", (CHECKPOINT,)) for preset in ("ft1", "ft2", "ft3", "trt")),
)


class Measured:
    """One model, its floating-point answers computed once."""

    def __init__(self, case: Case, shared: Path, work: Path) -> None:
        from qdq.load.model import load_model
        from qdq.tasks.loading import EvaluationSettings, load_evaluation

        self._case, self._shared, self._work = case, shared, work
        loaded = load_model(str(shared / "models" / case.model))
        settings = EvaluationSettings(case.sequence, 32, case.overlap, required=True)
        self._evaluation: Evaluation = load_evaluation(str(shared / "data" / case.dev), loaded, settings, case.samples)
        self._loaded = loaded
        self._floating: Scored | None = None
        self._scored: dict[str, Scored] = {}  # by content: `auto` may keep every point of a named placement

    def floating(self) -> Scored:
        """The FP32 model's scores."""
        from qdq.load.runner import TorchRunner
        from qdq.tasks.closeness import scored

        if self._floating is None:
            self._floating = scored(self._evaluation, TorchRunner(self._loaded.module()))
        return self._floating

    def figures(self, way: Way) -> Iterator[tuple[str, Figure]]:
        """(engine, figure) of everything the way scores. Raises QdqError."""
        from qdq.cli.contestants import contestants
        from qdq.pipeline.options import available_cores
        from qdq.tasks.closeness import compared, scored

        work = self._compiled(way)
        calibration = read_json(work / "calibration.json")
        for engine in way.engines:
            content = _content(work / FILES[engine])
            if content not in self._scored:
                (contestant,) = contestants(str(work / FILES[engine]), available_cores(), "f32")
                self._scored[content] = scored(self._evaluation, contestant.open(), self.floating())
            found = self._scored[content]
            yield (
                engine,
                Figure(
                    model=self._case.model,
                    engine=engine,
                    placement=way.label,
                    calibrator=calibration["algorithm"],
                    kept=_kept(read_json(work / "placement.json")),
                    samples=self._evaluation.samples,
                    main=found.scores.main,
                    metrics=compared(self.floating().scores, found.scores),
                    closeness=found.closeness,
                    notes=self._evaluation.notes,
                ),
            )

    def _compiled(self, way: Way) -> Path:
        """The work directory after every stage that the way's engines need."""
        from qdq.base.screen import Screen
        from qdq.pipeline.compile import run_stage

        case, data = self._case, self._shared / "data"
        out = self._work / f"{case.model}-{way.placement}-{way.target}".replace("+", "-")
        typed = {
            "model": str(self._shared / "models" / case.model),
            "calibration": str(data / case.train),
            "eval_data": str(data / case.dev),
            "samples": CALIBRATION_TEXTS,
            "sequence": case.sequence,
            "placement": way.placement,
            "target": way.target,
            "out": str(out),
        }
        stages = ["calibrate", "export", *(("lower", "build") if OPENVINO in way.engines else ())]
        for stage in stages:
            run_stage(stage, typed if stage == "calibrate" else {"out": str(out), "target": way.target}, Screen())
        return out


def _content(file: Path) -> str:
    """Hash of what decides the answers: an engine's weights too, of a checkpoint its tensors."""
    weights = file.with_suffix(".bin")
    tensors = [file / "model.safetensors"] if file.is_dir() else [file, *([weights] if weights.is_file() else [])]
    return sha256_json([sha256_file(part) for part in tensors])


def _kept(placement: Mapping[str, Any]) -> tuple[int, int]:
    """(placed, candidates) of the encoder's twenty points per layer."""
    from qdq.placing.sensitivity.groups import layer_of

    points = [point for point in placement["points"] if layer_of(point["name"]) is not None]
    return sum(point["placed"] for point in points), len(points)


def path_of(model: str, way: Way, engine: str) -> Path:
    """Where a figure is kept."""
    return RESULTS / f"{model}-{way.placement}-{way.target}-{engine.split()[0].strip(',').lower()}.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(prog="python -m qdq.studies.accuracy", description=__doc__, allow_abbrev=False)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder with models/ and data/")
    parser.add_argument("--model", choices=[*CASES], action="append", help="only these (default: all)")
    parser.add_argument("--placement", action="append", help="only these placements (default: all)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "accuracy", help="work directories")
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    parser.add_argument("--page-only", action="store_true", help="measure nothing")
    options = parser.parse_args(arguments)
    if not options.page_only:
        if not options.shared.is_dir():
            raise ConfigError(f"{options.shared}: is not there; name the folder with models/ and data/ with --shared")
        for name in options.model or CASES:
            _measure(name, options)
    write_page()
    return 0


def _measure(name: str, options: argparse.Namespace) -> None:
    measured: Measured | None = None
    for way in (*WAYS, *(NAMED if name == "minilm-mrpc" else ())):
        wanted = not options.placement or way.placement in options.placement
        if not wanted or not (options.again or any(not path_of(name, way, e).is_file() for e in way.engines)):
            continue
        measured = measured or Measured(CASES[name], options.shared, options.work)
        for engine, figure in measured.figures(way):
            write_json(path_of(name, way, engine), asdict(figure))
            sys.stderr.write(f"{name} {way.label} {engine}: {figure.summary}\n")


if __name__ == "__main__":
    sys.exit(main())
