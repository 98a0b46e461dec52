"""The recorded steps of a run in order: what each depends on, and the stage functions that write its files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from engines.instructions import int8_sums
from engines.targets import TARGETS
from qdq.base.artifacts import sha256_file
from qdq.pipeline.options import CompileOptions
from qdq.pipeline.run import CANONICAL, FLOAT, Run
from qdq.pipeline.stages import (
    bench,
    build,
    calibrate,
    deploy,
    export,
    inject,
    load,
    lower,
    race,
    report,
    variants,
    verify,
)
from qdq.pipeline.texts import source_fingerprint
from qdq.pipeline.workdir import fingerprint

MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "pytorch_model*.bin", "*/config.json")
# Timings, and what TensorRT chooses by timing.
VARYING = ("benchmark.json", race.REPORT, "search.json", "search.png", build.PLAN, "layer_info.json")

# A stage's name and its function of (run, screen's stage, *what the part before it returned).
Part = tuple[str, Callable[..., Sequence[Any]]]


@dataclass(frozen=True)
class Step:
    """Stages that are recorded together: what they depend on, and their functions.

    A part gets what the part before it returned; the last one, which has the step's name, writes and returns the files.
    So an error in an earlier one leaves everything as it was.
    """

    name: str
    inputs: Callable[[Run], Mapping[str, Any]]
    parts: tuple[Part, ...]


def _calibrate_inputs(run: Run) -> Mapping[str, Any]:
    options, folder = run.options, run.folder
    files = (path for pattern in MODEL_FILES for path in sorted(folder.glob(pattern)))
    return {
        "model": {path.relative_to(folder).as_posix(): sha256_file(path) for path in files},
        "task": options.task,
        **_own_class(options),
        "placement": sha256_file(Path(options.spec)) if options.spec else _placement(options),
        **_capability(options),
        "embedding_tables": options.embedding_tables,
        "calibrator": [options.calibrator, options.percentile, options.samples, options.sequence],
        "ptq": [options.ptq_json(), asdict(options.treatments)],
        "sweep": _sweep_inputs(run),
        "text": source_fingerprint(options, options.calibration),
    }


def _own_class(options: CompileOptions) -> Mapping[str, Any]:
    """A class of the user's own, with the file it stands in."""
    if options.model_class is None:
        return {}
    file = Path(options.model_class.rpartition(":")[0])
    return {"class": [options.model_class, sha256_file(file) if file.is_file() else None]}


def _sweep_inputs(run: Run) -> Mapping[str, Any] | None:
    """A sweep also depends on what it is scored with."""
    options = run.options
    if not options.sweeps:
        return None
    text = source_fingerprint(options, options.eval_data)
    return {"text": text, "labels": [options.label_column, *options.labels], "samples": options.eval_samples}


def _placement(options: CompileOptions) -> Any:
    """`auto` decides for a kind of target; every other placement is the same for all."""
    if options.placement != "auto":
        return options.placement
    kind = TARGETS[options.target].placement
    return [options.placement, kind, options.max_drop if options.search else None]


def _capability(options: CompileOptions) -> Mapping[str, Any]:
    """Compute capability that decides what can fuse on a GPU target; a CPU target knows none."""
    if not TARGETS[options.target].gpu:
        return {}
    return {"sm": options.sm} | ({"body": options.body} if options.body == "bf16" else {})


def _export_inputs(run: Run) -> Mapping[str, Any]:
    return {"checkpoint": fingerprint(run.checkpoint)}


def _lower_inputs(run: Run) -> Mapping[str, Any]:
    options, canonical = run.options, {"canonical": fingerprint(run.work.path / CANONICAL)}
    if not TARGETS[options.target].gpu:
        return {**canonical, "input_dtype": options.input_dtype, "packing": options.packing}
    text = [source_fingerprint(options, options.calibration), options.samples, options.sequence]
    form = {} if options.batch_form == "padded" else {"form": [options.batch_form, options.batch]}
    return {**canonical, "body": options.body, "ranges": text, "product_codes": options.product_codes, **form}


def _variants_inputs(run: Run) -> Mapping[str, Any]:
    options = run.options
    text = [source_fingerprint(options, options.calibration), options.samples]
    settings = build.tensorrt_settings(run, floating=True).as_json()
    return {"float": fingerprint(run.work.path / FLOAT), "body": options.body, "ranges": text, "settings": settings}


def _build_inputs(run: Run) -> Mapping[str, Any]:
    asked = build.engine_options(run)
    # A CPU engine is built for the way this CPU sums INT8 products.
    machine = asked.plan.as_json() if asked.plan else int8_sums().as_json()
    settings = [asked.threads, asked.precision_hint, machine]
    return {"lowered": fingerprint(run.lowered), "settings": settings, **_capability(run.options)}


def _built(run: Run) -> Any:
    return [fingerprint(run.target / "build.json"), _build_inputs(run)]


def _texts(run: Run) -> Mapping[str, Any]:
    options = run.options
    return {
        "text": [source_fingerprint(options, path) for path in (options.calibration, options.eval_data)],
        "samples": [options.samples, options.eval_samples, options.sequence],
    }


def _evaluation(run: Run) -> Mapping[str, Any]:
    return {"built": _built(run), **_texts(run)}


def _race_inputs(run: Run) -> Mapping[str, Any]:
    return {**_others(run, run.rivals), **_texts(run), "batch": run.options.batch, **_flight(run)}


def _others(run: Run, targets: Iterable[str]) -> Mapping[str, Any]:
    """Engines of other targets that a stage opens or serves beside the run's own."""
    found = {target: _built(run.aimed_at(target)) for target in targets}
    return {"rivals": found} if found else {}


def _verify_inputs(run: Run) -> Mapping[str, Any]:
    return {
        **_evaluation(run),
        "checkpoint": fingerprint(run.checkpoint),
        "labels": [run.options.label_column, *run.options.labels],
    }


def _bench_inputs(run: Run) -> Mapping[str, Any]:
    floating = {"float": fingerprint(run.work.path / FLOAT), "batch": run.options.batch}
    return {**_evaluation(run), **floating, **_flight(run), **_others(run, bench.rivals_beside(run))}


def _flight(run: Run) -> Mapping[str, Any]:
    """Requests at once, where there is more than one."""
    return {"streams": run.options.streams} if run.options.mode == "throughput" else {}


def _deploy_inputs(run: Run) -> Mapping[str, Any]:
    options = run.options
    served = [run.name, options.batch, options.sequence, options.triton_backend, *options.buckets]
    served += [
        options.raw_inputs,
        options.queue_size,
        options.queue_timeout,
        options.queue_delay,
        options.response_cache,
    ]
    found = {**_evaluation(run), "checkpoint": fingerprint(run.checkpoint), "served": served, **_flight(run)}
    backend = deploy.backend_of(run)
    other = [target for target in bench.rivals_beside(run) if target == backend]
    floating = [name for name in dict.fromkeys((options.target, backend)) if name and deploy.serves_float(run, name)]
    return {**found, **_others(run, other)} | ({"floating": floating} if floating else {})


SHARED = (
    Step(
        "calibrate",  # one step: the injected model lives in memory only
        _calibrate_inputs,
        (("load", load.load), ("inject", inject.inject), ("calibrate", calibrate.calibrate)),
    ),
    Step("export", _export_inputs, (("export", export.export),)),
)
BUILDING = (
    Step("lower", _lower_inputs, (("lower", lower.lower),)),
    Step("build", _build_inputs, (("build", build.build),)),
)
RACE = Step("race", _race_inputs, (("race", race.race),))  # between the engines of several targets, for `auto` only
PROVING = (
    Step("verify", _verify_inputs, (("verify", verify.verify),)),
    Step("bench", _bench_inputs, (("bench", bench.bench),)),
)
SERVING = (Step("deploy", _deploy_inputs, (("deploy", deploy.deploy),)),)

STEPS = (*SHARED, *BUILDING, *PROVING, *SERVING)
VARIANTS = Step("variants", _variants_inputs, (("variants", variants.variants),))  # on request only


def report_step(missing: str) -> Step:
    """Last step of a run that has come to an engine, or that ends because the machine lacks what is `missing`."""
    inputs, write = partial(report.sources, missing=missing), partial(report.report, missing=missing)
    return Step("report", inputs, (("report", write),))
