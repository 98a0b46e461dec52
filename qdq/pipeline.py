"""The whole flow on one page: which stage runs when, from which inputs, into which files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qdq import measure, stages
from qdq.artifacts import read_json, sha256_file
from qdq.errors import ConfigError, Unavailable
from qdq.inject.spec import QuantSpec
from qdq.options import CompileOptions, resolve
from qdq.screen import Screen, Stage
from qdq.stages import CANONICAL, FLOAT, Run
from qdq.texts import source_fingerprint
from qdq.versions import versions
from qdq.workdir import WorkDirectory, fingerprint

BENCH_SAMPLES = 100  # of `qdq bench`; p99 needs that many
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "pytorch_model*.bin", "1_Pooling/config.json")
STAGES = ("inject", "calibrate", "export", "lower", "build", "verify", "bench", "deploy")


@dataclass
class Outcome:
    """What a run did: exit code, artifacts, and the reports the screen shows."""

    exit_code: int
    out: str
    target: str
    artifacts: list[str] = field(default_factory=list)
    missing: str = ""  # why the exit code is 3

    def as_json(self) -> dict[str, Any]:
        """For --json; the reports are read from their files."""
        reports = {}
        for name in ("build", "accuracy", "benchmark"):
            path = Path(self.out) / self.target / f"{name}.json"
            reports[name] = read_json(path) if str(path) in self.artifacts else None
        return {
            "exit_code": self.exit_code,
            "out": self.out,
            "target": self.target,
            "artifacts": self.artifacts,
            "missing": self.missing,
            **reports,
        }


def compile_model(options: CompileOptions, screen: Screen) -> Outcome:
    """Run every stage that is not up to date. Raises QdqError; Unavailable becomes exit code 3."""
    from qdq.model import resolve as resolve_model

    options.validate()
    folder, name = resolve_model(options.model)
    typed, options = options, resolve(options, name)
    show(options, screen)
    with WorkDirectory(Path(options.out or "")) as work:
        begin(work, options, name)
        run = Run(options, work, screen)
        _calibrated(run, folder, typed)
        _stage(run, "export", {"checkpoint": fingerprint(run.checkpoint)}, stages.export, _graphs(run))
        target = options.target
        lowered = {"canonical": fingerprint(work.path / CANONICAL), "target": target}
        _stage(run, "lower", lowered, stages.lower, [run.target / "model.onnx", run.target / "passes.json"])
        try:
            _built(run)
        except Unavailable as error:
            screen.line()
            screen.line(str(error))
            return Outcome(3, str(work.path), target, artifacts(run), str(error))
        return Outcome(0, str(work.path), target, artifacts(run))


def run_stage(name: str, options: CompileOptions, screen: Screen) -> Outcome:
    """Run one stage again from the previous stage's files. Raises QdqError when those are missing."""
    options.validate()
    if options.out is None:
        raise ConfigError("--out: name the work directory of an earlier run, such as build/all-MiniLM-L6-v2")
    with WorkDirectory(Path(options.out)) as work:
        options = recalled(options, work.manifest.get("options", {}))
        folder, model = _model_of(options, work)
        typed, options = options, resolve(options, model)
        begin(work, options, model)
        run = Run(options, work, screen)
        try:
            _single(run, name, folder, typed)
        except Unavailable as error:
            screen.line(str(error))
            return Outcome(3, str(work.path), options.target, artifacts(run), str(error))
        return Outcome(0, str(work.path), options.target, artifacts(run))


def _single(run: Run, name: str, folder: Path, typed: CompileOptions) -> None:
    """One stage, unconditionally."""
    run.work.forget(_record(run, name))
    if name == "inject":
        loaded, (spec, _) = stages.load(run.options), _request(run.options, typed, folder)
        with run.screen.stage("inject") as stage:
            stages.inject(run, loaded, spec, stage)
    elif name == "calibrate":
        _calibrated(run, folder, typed)
    elif name == "export":
        _stage(run, "export", {"checkpoint": fingerprint(run.checkpoint)}, stages.export, _graphs(run))
    elif name == "lower":
        inputs = {"canonical": fingerprint(run.work.path / CANONICAL), "target": run.options.target}
        _stage(run, "lower", inputs, stages.lower, [run.target / "model.onnx", run.target / "passes.json"])
    elif name == "bench":
        fingerprint(run.target / "build.json")
        _stage(run, "bench", _bench_inputs(run), _bench(None), [], [run.target / "benchmark.json"])
    else:
        _built(run, only=name)


def begin(work: WorkDirectory, options: CompileOptions, model: str) -> None:
    """Record what this run is about; written with the first completed stage."""
    import torch

    from qdq.workdir import SEED

    torch.manual_seed(SEED)
    torch.set_num_threads(options.threads)
    work.manifest["versions"] = versions()
    work.manifest["options"] = {key: value for key, value in options.as_json().items() if key != "out"}
    work.manifest["model"] = {"name": model}
    work.write_manifest()


def recalled(options: CompileOptions, earlier: Mapping[str, Any]) -> CompileOptions:
    """`options` with everything the user did not type taken from the earlier run in the same directory."""
    defaults = CompileOptions()
    known = {key: tuple(value) if isinstance(value, list) else value for key, value in earlier.items()}
    untyped = {
        key: value for key, value in known.items() if hasattr(defaults, key) and getattr(options, key) == getattr(defaults, key)
    }
    return replace(options, **untyped)


def _model_of(options: CompileOptions, work: WorkDirectory) -> tuple[Path, str]:
    from qdq.model import resolve as resolve_model

    recorded = work.manifest.get("model", {}).get("name")
    folder, name = resolve_model(options.model)
    return folder, recorded or name


def _calibrated(run: Run, folder: Path, typed: CompileOptions) -> None:
    """Stages 1 to 3, one unit: injection lives in memory only."""
    spec, imported = _request(run.options, typed, folder)
    inputs = {
        "model": {p.relative_to(folder).as_posix(): sha256_file(p) for g in MODEL_FILES for p in sorted(folder.glob(g))},
        "task": run.options.task,
        "spec": spec.as_json(),
        "calibrator": [run.options.calibrator, run.options.percentile, run.options.samples, run.options.sequence],
        "text": source_fingerprint(run.options, run.options.calibration),
        "versions": run.work.manifest["versions"],
    }
    outputs = [run.work.path / "placement.json", run.work.path / "calibration.json", run.checkpoint]
    if run.work.fresh("calibrate", inputs):
        for name in ("load", "inject", "calibrate"):
            run.screen.skipped(name)
        return
    run.work.forget("calibrate")
    with run.screen.stage("load") as stage:
        loaded = stages.load(run.options)
        parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
        family = loaded.model.config.model_type
        stage.say(f"{loaded.name}: {family}, {loaded.task.name}, {parameters / 1e6:.1f} M parameters")
    with run.screen.stage("inject") as stage:
        stages.inject(run, loaded, spec, stage)
    with run.screen.stage("calibrate") as stage:
        step = stages.import_calibration if imported else stages.calibrate
        step(run, loaded, spec, stage)
    run.work.complete("calibrate", inputs, outputs)


def _request(options: CompileOptions, typed: CompileOptions, folder: Path) -> tuple[QuantSpec, bool]:
    """What to quantize, and whether the amax come with the model.

    A checkpoint of ours keeps its spec unless another placement is typed, and its amax unless other text is.
    """
    from qdq.checkpoint import is_checkpoint, read_spec

    if is_checkpoint(folder) and typed.placement is None and typed.spec is None:
        return read_spec(folder)[0], typed.calibration is None
    return stages.requested_spec(options), False


def _graphs(run: Run) -> list[Path]:
    graphs = [run.work.path / CANONICAL, run.work.path / FLOAT]
    return [path for graph in graphs for path in (graph, graph.with_name(graph.name + ".data")) if _exists(path, graph)]


def _exists(path: Path, graph: Path) -> bool:
    return path == graph or path.is_file()


def _built(run: Run, only: str | None = None) -> None:
    """Stages 6 to 9 for the run's target, or one of them."""
    engine = {"lowered": fingerprint(run.target / "model.onnx"), "settings": _engine_settings(run)}
    folder = run.target

    def wanted(name: str) -> bool:
        return only in (None, name)

    if wanted("build"):
        _stage(run, "build", engine, stages.build, [folder / "build.json"], _engine_files(run))
    measured = {"build": fingerprint(folder / "build.json"), "checkpoint": fingerprint(run.checkpoint)}
    measured |= {"text": _evaluation_fingerprint(run), "engine": engine}
    if wanted("verify"):
        _stage(run, "verify", measured, measure.verify, [folder / "accuracy.json"])
    if wanted("bench"):
        _stage(run, "bench", _bench_inputs(run), _bench(run.options.bench_seconds), [], [folder / "benchmark.json"])
    if wanted("deploy"):
        served = measured | {"backend": run.options.triton_backend, "batch": run.options.batch}
        _stage(run, "deploy", served, measure.deploy, [folder / "model_repository"])


def _bench(budget_s: float | None) -> Callable[[Run, Stage], Any]:
    return lambda run, stage: measure.bench(run, stage, budget_s, BENCH_SAMPLES)


def _bench_inputs(run: Run) -> dict[str, Any]:
    shape = [run.options.batch, run.options.sequence]
    engine = {"lowered": fingerprint(run.target / "model.onnx"), "settings": _engine_settings(run)}
    return {"engine": engine, "shape": shape, "text": _evaluation_fingerprint(run)}


def _engine_settings(run: Run) -> list[Any]:
    options = run.options
    shape = [options.batch, options.sequence] if options.target == "tensorrt" else []
    return [options.target, options.threads, options.precision_hint, *shape, run.work.manifest["versions"]]


def _engine_files(run: Run) -> list[Path]:
    names = {"openvino": ("model.xml", "model.bin"), "tensorrt": ("model.plan",)}.get(run.options.target, ())
    return [run.target / name for name in names]


def _evaluation_fingerprint(run: Run) -> list[Any]:
    options = run.options
    sources = [source_fingerprint(options, path) for path in (options.calibration, options.eval_data)]
    return [*sources, options.samples, options.eval_samples, options.sequence]


def _record(run: Run, name: str) -> str:
    """Key of a stage in the manifest; stages of a target carry its name."""
    return name if name in ("inject", "calibrate", "export") else f"{run.options.target}/{name}"


def _stage(
    run: Run,
    name: str,
    inputs: Mapping[str, Any],
    work: Callable[[Run, Stage], Any],
    outputs: Sequence[Path],
    varying: Sequence[Path] = (),
) -> None:
    """Run one stage unless it is up to date, and record it when it is whole."""
    record = _record(run, name)
    if run.work.fresh(record, inputs):
        run.screen.skipped(name)
        return
    run.work.forget(record)
    with run.screen.stage(name) as stage:
        work(run, stage)
    run.work.complete(record, inputs, outputs, varying)


def artifacts(run: Run) -> list[str]:
    """Every file and folder of this run that exists, in flow order."""
    root = ("placement.json", "calibration.json", "checkpoint", CANONICAL, FLOAT, "manifest.json")
    mine = ("model.onnx", "passes.json", *(p.name for p in _engine_files(run)), "build.json", "accuracy.json")
    mine = (*mine, "benchmark.json", "build_engine.py", "trtexec.sh", "model_repository")
    paths = [run.work.path / name for name in root] + [run.target / name for name in mine]
    return [str(path) for path in paths if path.exists()]


def show(options: CompileOptions, screen: Screen) -> None:
    """The resolved configuration, before any work."""
    placement = options.placement or f"from {options.spec}"
    calibrator = f"{options.calibrator} {options.percentile or ''}".strip()
    rows = {
        "model": options.model or "all-MiniLM-L6-v2 (bundled default)",
        "target": f"{options.target}, {options.threads} threads, precision hint {options.precision_hint}",
        "placement": placement,
        "calibrate": f"{calibrator}, {options.samples} texts of {options.calibration or 'the bundled English text'}",
        "shape": f"batch {options.batch} x sequence {options.sequence}",
        "out": options.out,
    }
    for name, value in rows.items():
        screen.line(f"  {name:<10}{value}")
    screen.line()
