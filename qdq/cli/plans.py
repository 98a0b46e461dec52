"""`qdq bench --engine`: built TensorRT plans timed side by side on this machine's GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.targets import TARGETS
from qdq.base.artifacts import to_json, write_json
from qdq.base.config import nearest
from qdq.base.option import flag, option
from qdq.errors import ConfigError
from qdq.pipeline.options import CompileOptions

if TYPE_CHECKING:
    from engines.bench_gpu import GpuBenchSettings
    from qdq.base.screen import Screen
    from qdq.base.types import Feeds

Answer = tuple[str, int]  # text for standard output, exit code

PLAN = TARGETS["tensorrt"].engine
TEXT_OPTIONS = (
    "model",
    "task",
    "model_class",
    "allow_pickle",
    "eval_data",
    "eval_samples",
    "text_columns",
    "label_column",
    "header",
    "labels",
)
SHARED_OPTIONS = ("batch", "sequence", "out", *TEXT_OPTIONS)  # what plans take of the other commands' options
IN_WORK_DIRECTORY = {"int8": "", "fp16": "fp16", "bf16": "bf16", "fp32": "fp32"}  # name -> folder below tensorrt/
REPORT = "benchmark-gpu.json"
BATCHES = 5  # different ones, taken in turns
RANDOM_IDS = range(5, 1000)  # every supported vocabulary has these


@dataclass(frozen=True)
class PlanOptions:
    """Options of `qdq bench --engine` beside those of CompileOptions.

    The defaults are those of `engines.bench_gpu.settings`, repeated so that the command line needs no numpy.
    """

    engine: tuple[str, ...] = option(
        (),
        "a plan, such as fp16=model.plan, or a work directory with all its plans; repeat it to compare several"
        " (default: the engine of the work directory)",
        metavar="[NAME=]PLAN",
        repeated=True,
    )
    warmup: int = option(100, "launches of each plan before the measurement")
    iterations: int = option(1000, "timed launches of each plan")
    in_flight: int = option(2, "launches a stream holds: 1, or 2 as trtexec")
    device: int = option(0, "index of the GPU")
    cuda_graph: bool = option(True, "launch as one CUDA graph")
    spin_wait: bool = option(True, "poll for the end of a launch")
    transfers: bool = option(False, "time copies to and from the GPU, too")


PLAN_OPTIONS = tuple(declared.name for declared in fields(PlanOptions))


def bench_engines(typed: Mapping[str, Any], as_json: bool, screen: Screen) -> Answer:
    """Race the plans of ``--engine``; the report goes to benchmark-gpu.json in ``--out``, or beside the first plan.

    Raises ConfigError for options that mean nothing here and for plans that are not there, Unavailable naming what this
    machine lacks (before it looks for any plan), and what `engines.bench_gpu.bench_plans` raises.
    """
    from engines.bench_gpu import bench_plans, render_gpu_table, require_gpu

    if "engine" not in typed:
        first = flag(next(name for name in typed if name in PLAN_OPTIONS))
        raise ConfigError(f"{first}: is about plans on a GPU; name one with --engine, or leave it out")
    settings = _settings(typed)
    names = _named(typed["engine"])
    require_gpu()
    plans = _plans(names)
    feeds, text = _workload(typed, settings, screen)
    with screen.stage("bench", undisturbed=True) as stage:
        report = bench_plans(plans, feeds, settings, stage.progress)
        stage.say(f"{len(plans)} plan{'s' * (len(plans) > 1)} on {report['gpu']['device']}")
    report["workload"]["text"] = text
    out = Path(typed["out"]) if "out" in typed else next(iter(plans.values())).parent
    path = write_json(out / REPORT, report)
    return (to_json(report) if as_json else f"{render_gpu_table(report)}\n{path}\n"), 0


def _settings(typed: Mapping[str, Any]) -> GpuBenchSettings:
    from engines.bench_gpu import GpuBenchSettings

    known = (*PLAN_OPTIONS, "streams", *SHARED_OPTIONS)
    for name in typed:
        if name not in known:
            raise ConfigError(f"{flag(name)}: says nothing about a built plan; leave it out, or leave --engine out")
    CompileOptions(**{name: typed[name] for name in SHARED_OPTIONS if name in typed}).validate()
    taken = {field.name for field in fields(GpuBenchSettings)} & typed.keys()
    return GpuBenchSettings(**{name: typed[name] for name in taken})


def _named(engines: Sequence[str]) -> dict[str, str]:
    """Name -> path as typed, "" for a work directory's name. Raises ConfigError for a name given twice."""
    found: dict[str, str] = {}
    for text in engines:
        name, equals, path = text.partition("=")
        if not equals:
            name, path = "", text
        if not path:
            raise ConfigError(f"--engine: '{text}' names no file; write NAME=PLAN, such as fp16=model.plan")
        name = name or _name_of(Path(path))
        if name in found:
            raise ConfigError(
                f"--engine: {found[name]} and {path} would both be called '{name}'; name them, as in "
                f"--engine fp16={path}"
            )
        found[name] = path
    return found


def _name_of(plan: Path) -> str:
    """Name of a plan that was given none: its folder when that is a float type, as in a work directory; else int8."""
    return plan.parent.name if plan.parent.name in IN_WORK_DIRECTORY else "int8" if plan.name == PLAN else plan.stem


def _plans(named: Mapping[str, str]) -> dict[str, Path]:
    """Name -> plan file; a work directory stands for all plans in it. Raises ConfigError for what is not there."""
    plans: dict[str, Path] = {}
    for name, text in named.items():
        path = Path(text)
        if path.is_dir():
            inside = {key: path / "tensorrt" / folder / PLAN for key, folder in IN_WORK_DIRECTORY.items()}
            plans |= {key: plan for key, plan in inside.items() if plan.is_file()}
            if not plans:
                raise ConfigError(f"--engine: {path} holds no plan; build them with 'qdq build' and 'qdq variants'")
        elif path.is_file():
            plans[name] = path
        else:
            beside = sorted(plan.name for plan in path.parent.glob("*.plan"))
            raise ConfigError(f"--engine: {path} is not a file; {nearest(path.name, beside) if beside else 'build it'}")
    return plans


def _workload(typed: Mapping[str, Any], settings: GpuBenchSettings, screen: Screen) -> tuple[list[Feeds], str]:
    """Batches and where their text is from: tokenized text with ``--model``, else random ids as trtexec feeds."""
    if "model" in typed:
        return _tokenized(typed, settings, screen)
    if asked := [name for name in TEXT_OPTIONS if name in typed]:
        raise ConfigError(f"{flag(asked[0])}: text needs a tokenizer; give --model, too")
    import numpy as np

    rng = np.random.default_rng(0)
    shape = (settings.batch, settings.sequence)
    low, high = RANDOM_IDS[0], RANDOM_IDS[-1]
    return [
        {
            "input_ids": rng.integers(low, high, shape, endpoint=True),
            "attention_mask": np.ones(shape, np.int64),
            "token_type_ids": np.zeros(shape, np.int64),
        }
        for _ in range(BATCHES)
    ], "random token ids, no padding"


def _tokenized(typed: Mapping[str, Any], settings: GpuBenchSettings, screen: Screen) -> tuple[list[Feeds], str]:
    from qdq.loading.model import load_model
    from qdq.pipeline.texts import Texts, evaluation_texts
    from qdq.text.workload import workload_of_shape

    options = CompileOptions(**{name: typed[name] for name in TEXT_OPTIONS if name in typed})
    with screen.stage("load"):
        loaded = load_model(options.model, options.task, options.allow_pickle, options.model_class)
    texts = evaluation_texts(options, loaded.task.name, Texts((), ""))
    shape = loaded.task.shape(settings.batch, settings.sequence)
    feeds: list[Feeds] = list(workload_of_shape(loaded.tokenizer, texts.records, loaded.inputs, shape, BATCHES))
    return feeds, texts.source
