"""`python -m qdq.studies.accuracy`: measure accuracy after quantization on real tasks, for docs/accuracy.md.

Results are JSON files in docs/results/accuracy/, one per run; what is there is not measured again. Models and data
beside the repository are research-only; where they are absent their results stay.

A figure goes the way of `qdq compile`: calibrate, decide, export, lower and build in a work directory, then score what
came out of it on the development rows. The folder effects/ has the worth of every treatment and algorithm. For one
model decisions/ has the points that hurt, by `qdq sensitivity --metric` over all twenty points per layer, and the
placements that `qdq calibrate --search` finds for the CPU and for TensorRT, on training rows that did not calibrate.
"""

from __future__ import annotations

import copy
import shutil
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.cores import available_cores
from qdq.base.artifacts import atomic_path, read_json, write_json
from qdq.calibrate.algorithms import Algorithm, algorithm_named
from qdq.calibrate.treatments.settings import PLAIN, Treatments
from qdq.errors import ConfigError
from qdq.pipeline.options import CompileOptions
from qdq.studies import pages
from qdq.studies.accuracy_page import DECISIONS, EFFECTS, MEASURED, WHOLE
from qdq.studies.models import CONLL, MRPC, SQUAD, Case, micro_batches, run_stages, scored_in_fp32
from qdq.studies.study import add_places, exit_code, parser

if TYPE_CHECKING:
    from qdq.tasks.closeness import Scored

PLACEMENT = "qdqbert"  # whose treatments and algorithms are compared
ALGORITHMS = ("max", "percentile:99.99", "percentile:99.999", "KL", "mse", "emd", "avg", "moving_average")
SAMPLES = 128  # rows that points and placements are judged on
CHECKPOINT, GRAPH, OPENVINO = "torch, fake-quantized", "ONNX Runtime, lowered graph", "OpenVINO engine"
FILES = {CHECKPOINT: "checkpoint", GRAPH: "{target}/model.onnx", OPENVINO: "openvino/model.xml"}


@dataclass(frozen=True)
class Way:
    """A placement for a target, and the engines of it that are scored."""

    placement: str
    target: str
    engines: tuple[str, ...]

    def file(self, case: Case, engine: str, folder: Path) -> Path:
        """The file of a figure in `folder`."""
        name = engine.split()[0].strip(",").lower()
        return folder / f"{case.model}-{self.placement}-{self.target}-{name}.json"


WAYS = (
    Way("auto", "openvino", (OPENVINO,)),
    Way("qdqbert", "tensorrt", (CHECKPOINT, GRAPH)),
    Way("auto", "tensorrt", (CHECKPOINT, GRAPH)),
)
JUDGED = Way("auto", "tensorrt", (GRAPH,))  # on every question of SQuAD, too, where 2000 leave the loss open
# Every other named placement, on one model: presets for TensorRT are scored by fake quantization.
NAMED = (
    Way("linear", "openvino", (OPENVINO,)),
    Way("linear+qk", "openvino", (OPENVINO,)),
    *(Way(preset, "tensorrt", (CHECKPOINT,)) for preset in ("ft1", "ft2", "ft3", "trt")),
)


def measure_figures(case: Case, ways: Sequence[Way], shared: Path, work: Path, folder: Path) -> None:
    """Write every figure of `ways` that is not in `folder` yet; each way is compiled in a work directory of its own.

    A figure has the points placed and the candidates of the twenty per layer (`kept`), every metric with its drop and
    the drop's 95 % interval by a paired bootstrap, the metric that decides (`main`), closeness to FP32 as output_mse
    and agreement, and notes of what was cut off. Raises QdqError.
    """
    from qdq.cli.contestants import contestants
    from qdq.tasks.closeness import compared, scored

    missing = [way for way in ways if not all(way.file(case, engine, folder).is_file() for engine in way.engines)]
    if not missing:
        return
    # Floating-point answers once, then every way beside them.
    _, evaluation, floating = scored_in_fp32(case, shared)
    for way in missing:
        out = work / f"{case.model}-{way.placement}-{way.target}".replace("+", "-")
        chosen = {"placement": way.placement, "target": way.target, "out": str(out)}
        stages = ("calibrate", "export", "lower", *(("build",) if OPENVINO in way.engines else ()))
        run_stages(stages, case.typed(shared) | chosen)
        for engine in way.engines:
            (open_runner,) = contestants(
                str(out / FILES[engine].format(target=way.target)), available_cores(), "f32"
            ).values()
            found = scored(evaluation, open_runner(), floating)
            figure = {
                "model": case.model,
                "engine": engine,
                "placement": f"auto ({way.target})" if way.placement == "auto" else way.placement,
                "calibrator": read_json(out / "calibration.json")["algorithm"],
                "kept": _kept(read_json(out / "placement.json")),
                "samples": evaluation.samples,
                "main": found.scores.main,
                "metrics": compared(floating.scores, found.scores),
                "closeness": found.closeness,
                "notes": list(evaluation.notes),
            }
            sys.stderr.write(f"wrote {write_json(way.file(case, engine, folder), figure)}\n")


def _kept(placement: Mapping[str, Any]) -> list[int]:
    """Points placed, and candidates, of the encoder's twenty points per layer."""
    from qdq.placing.units import layer_of

    points = [point for point in placement["points"] if layer_of(point["name"]) is not None]
    return [sum(point["placed"] for point in points), len(points)]


def variants() -> Iterator[tuple[str, Algorithm, Treatments]]:
    """(name, algorithm, treatments): the default, it without each treatment, and plain ranges by every algorithm."""
    own, default = CompileOptions().algorithm(None), Treatments()
    yield "default", own, default
    for name in (name for name, value in asdict(default).items() if value is True):
        yield f"without {name}", own, replace(default, **{name: False})  # type: ignore[arg-type]  # a switch
    for round_type in ("round", "adaround"):
        yield f"round_type {round_type}", own, replace(default, round_type=round_type)
    for name in ALGORITHMS:
        algorithm = algorithm_named(name)
        yield f"plain {algorithm.label}", algorithm, PLAIN
    for name in ("max", "percentile:99.99", "mse"):
        algorithm = algorithm_named(name)
        yield f"treated {algorithm.label}", algorithm, replace(default, clip_search=False)


def measure_effects(case: Case, shared: Path, only: Collection[str] | None = None) -> dict[str, Any]:
    """The report of every variant, or of those named in `only`. Raises QdqError.

    Each is built by fake quantization from the same calibration text and scored on the same labelled data: task metric,
    closeness of the outputs to FP32, agreement.
    """
    from qdq.calibrate.treatments.order import finish, prepare
    from qdq.inject import inject
    from qdq.inject.spec import named_spec
    from qdq.loading.runner import TorchRunner
    from qdq.pipeline.run import prepare_torch
    from qdq.tasks.closeness import scored

    # The floating-point model, and the texts that calibrate and score every variant of it.
    prepare_torch(available_cores())
    floating, evaluation, reference = scored_in_fp32(case, shared)
    batches = micro_batches(floating, str(shared / "data" / case.train), case.texts, case.sequence)
    spec = named_spec(PLACEMENT)
    rows: list[dict[str, Any]] = [{"placement": "–", "variant": "FP32", **_row(reference)}]
    for name, algorithm, treatments in variants():
        if only is not None and name not in only:
            continue
        loaded = replace(floating, model=copy.deepcopy(floating.model))
        inject(loaded.model, spec)
        started = time.process_time()
        # Only calibrating counts as this variant's cost, not scoring it.
        finish(prepare(loaded.module(), batches, spec, [algorithm], treatments), algorithm)
        cost = {"algorithm": algorithm.label, "cpu_seconds": round(time.process_time() - started, 1)}
        found = scored(evaluation, TorchRunner(loaded.module()), reference)
        rows.append({"placement": PLACEMENT, "variant": name, **cost, **_row(found)})
        sys.stderr.write(f"{rows[-1]}\n")
    return {
        "model": floating.name,
        "samples": case.texts,
        "source": evaluation.source,
        "evaluated": evaluation.samples,
        "rows": rows,
    }


def _row(found: Scored) -> dict[str, Any]:
    return {"metrics": found.scores.values, "metric": found.scores.main, **found.closeness}


def measure_decisions(case: Case, shared: Path, work: Path) -> None:
    """Write every report of the points that hurt and of the searches that is not there yet. Raises QdqError."""
    from qdq.base.screen import Screen
    from qdq.cli.sensitivity import SensitivityOptions, sensitivity

    typed = case.typed(shared)
    name = f"{case.model}-sensitivity"
    if not (DECISIONS / f"{name}.json").is_file():
        out = str(work / f"{case.model}-qdqbert-tensorrt")
        run_stages(("calibrate",), typed | {"placement": "qdqbert", "target": "tensorrt", "out": out})
        rows = {"data": typed["calibration"], "skip": case.texts, "samples": SAMPLES, "sequence": case.sequence}
        _, folder = sensitivity(SensitivityOptions(out, **rows, metric=True, out=str(work / name)), Screen())
        source = f"training rows {case.texts + 1} to {case.texts + SAMPLES}"
        _keep(folder / "sensitivity.json", name, {"source": source})
    for target in ("openvino", "tensorrt"):
        name = f"{case.model}-search-{target}"
        if not (DECISIONS / f"{name}.json").is_file():
            run_stages(("calibrate",), typed | {"search": True, "target": target, "out": str(work / name)})
            _keep(work / name / "search.json", name, {})


def _keep(report: Path, name: str, changed: Mapping[str, str]) -> None:
    """Copy a report, with what is `changed` in it, and its picture."""
    write_json(DECISIONS / f"{name}.json", {**read_json(report), **changed})
    with atomic_path(DECISIONS / f"{name}.png") as partial:
        shutil.copyfile(report.with_suffix(".png"), partial)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, then write the page."""
    command = parser("accuracy", __doc__)
    add_places(command, "accuracy")
    options = command.parse_args(arguments)
    if not options.shared.is_dir():
        raise ConfigError(f"{options.shared}: is not there; name the folder with models/ and data/ with --shared")
    for case in (MRPC, CONLL, SQUAD):
        measure_figures(case, (*WAYS, *(NAMED if case is MRPC else ())), options.shared, options.work, MEASURED)
    measure_figures(replace(SQUAD, samples=None), (JUDGED,), options.shared, options.work, WHOLE)
    for case, only in ((MRPC, None), (SQUAD, ("default", "without value_centering"))):
        if not (EFFECTS / f"{case.model}.json").is_file():
            write_json(EFFECTS / f"{case.model}.json", measure_effects(case, options.shared, only))
    measure_decisions(MRPC, options.shared, options.work)
    pages.main()


if __name__ == "__main__":
    sys.exit(exit_code(main))
