"""The whole flow on one page: every stage in its turn; `qdq.pipeline.steps` says what each depends on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from engines.targets import TARGETS
from qdq.base.artifacts import read_json, sha256_file
from qdq.base.choices import REPOSITORY
from qdq.base.screen import Screen, wrap
from qdq.base.versions import SOURCE
from qdq.errors import BuildError, PassError, QdqError, Unavailable, WorkError
from qdq.loading.kinds import detect_task
from qdq.loading.own_class import require_named
from qdq.loading.source import is_checkpoint, read_config, short_name
from qdq.loading.source import resolve as resolve_model
from qdq.pipeline.options import CompileOptions, candidates, resolve
from qdq.pipeline.outcome import Outcome, artifacts, show
from qdq.pipeline.recall import recalled
from qdq.pipeline.run import CANONICAL, Run
from qdq.pipeline.stages.bench import bench
from qdq.pipeline.stages.build import check_weights
from qdq.pipeline.stages.deploy import serves_float
from qdq.pipeline.stages.inject import fitting_spec, inject, requested_spec, write_placement
from qdq.pipeline.stages.load import load
from qdq.pipeline.stages.race import REPORT as RACED
from qdq.pipeline.stages.race import settled
from qdq.pipeline.stages.shapes import bench_shapes
from qdq.pipeline.steps import BUILDING, PROVING, RACE, SERVING, SHARED, STEPS, VARIANTS, VARYING, Step, report_step
from qdq.pipeline.workdir import MANIFEST, WorkDirectory

Told = Callable[[Outcome], None]


def _untold(_: Outcome) -> None:
    """Nobody waits for the result."""


def compile_model(
    options: CompileOptions, screen: Screen, proven: Told = _untold, *, engine_only: bool = False
) -> Outcome:
    """Run every stage that is not up to date. Raises QdqError; Unavailable becomes exit code 3.

    `proven`: told the result once it stands, before the repository and the page are made of it.
    `engine_only`: the engine is neither verified, timed nor deployed.
    """
    options.validate()
    check_weights("compile", vars(options))
    source, name = resolve_model(options.model, options.allow_pickle)
    with WorkDirectory(Path(options.out or Path("build") / name)) as work:
        run = _begin_with_model(options, work, screen, source, name)
        proving, serving = ((), ()) if engine_only else (PROVING, SERVING)
        return _finish(run, lambda run: _all(run, proving), serving, proven)


def run_stage(name: str, typed: Mapping[str, Any], screen: Screen, proven: Told = _untold) -> Outcome:
    """Run one stage from the previous stage's files, whether or not it is up to date.

    `typed`: CompileOptions by field name; everything else is as in the earlier run. `proven`: told the result before
    the page is made of it. Raises QdqError when there is no such run, or its files are missing.
    """
    CompileOptions(**typed).validate()
    check_weights(name, typed)
    first = name in ("inject", "calibrate")
    out = Path(typed.get("out") or Path("build") / short_name(typed.get("model")))
    if not first and not (out / MANIFEST).is_file():
        raise WorkError(f"{out}: is not the work directory of an earlier run; run 'qdq compile' first, or name --out")
    with WorkDirectory(out) as work:
        earlier = work.manifest["options"]
        if not first and not earlier:
            raise WorkError(f"{out}: was made by another version of qdq; run 'qdq compile' again")
        options = recalled(name, typed, earlier)
        options.validate()
        if first:
            run = _begin_with_model(options, work, screen, *resolve_model(options.model, options.allow_pickle))
        else:
            run = begin(Run(options, work, screen, work.manifest["model"]["name"]))
        run = settled(run) if run.rivals else run
        return _finish(run, lambda run: _single(run, name), (), proven)


def _begin_with_model(options: CompileOptions, work: WorkDirectory, screen: Screen, source: Path, name: str) -> Run:
    """The run of the model in `source`, after what the user typed is checked as far as that goes without loading it."""
    require_named(source, options.model_class)
    task = options.task or detect_task(_architectures(source), str(source)).name
    run = begin(Run(replace(options, task=task), work, screen, name, source))
    # A mistake in the last option must not cost minutes.
    _ = run.evaluation
    if run.options.spec is not None:
        requested_spec(run)
    return run


def begin(run: Run) -> Run:
    """The run with its options resolved for this machine and model, after they have been shown."""
    found = candidates(run.options.target)
    options = resolve(run.options, run.name, is_checkpoint(run.folder))
    run = replace(run, options=options, rivals=found if len(found) > 1 else ())
    show(run)
    if changed := _changed_versions(run):
        run.screen.line(wrap(f"Stages of the earlier run are out of date: {changed} changed.") + "\n")
    return run


def _changed_versions(run: Run) -> str:
    """Packages whose version is not that of the run before in this work directory."""
    earlier = run.work.manifest["versions"]
    names = [name for name in run.versions | earlier if run.versions.get(name) != earlier.get(name)]
    return ", ".join("qdq's source" if name == SOURCE else name for name in names) if earlier else ""


def _architectures(folder: Path) -> list[str]:
    names = read_config(folder).get("architectures")
    return [str(name) for name in names] if isinstance(names, list) else []


def _all(run: Run, proving: Sequence[Step]) -> Run:
    """Run every stage to the engine, and those `proving` it; returns the run for the target it ends with."""
    run = _stepped(run, SHARED)
    run = _fastest(run) if run.rivals else _stepped(run, BUILDING)
    return _stepped(run, proving)


def _fastest(run: Run) -> Run:
    """Build an engine of every rival and let them race: the run for the winner.

    A rival that cannot be built here is left out with a warning; raises its error when that leaves none.
    """
    failed: dict[str, QdqError] = {}
    for target in run.rivals:
        run.screen.row(target, "")
        try:
            _stepped(run.aimed_at(target), BUILDING)
        except (BuildError, PassError) as error:  # Unavailable is a BuildError
            failed[target] = error
    able = tuple(target for target in run.rivals if target not in failed)
    if not able:
        raise next(iter(failed.values()))
    for target, reason in failed.items():
        run.screen.warn(f"no {target} engine to race with: {reason}")
    run = run.aimed_at(able[0], able)
    if len(able) > 1:
        run_step(run, RACE)
    else:
        (run.work.path / RACED).unlink(missing_ok=True)
    return settled(run)


def run_step(run: Run, step: Step, force: bool = False) -> None:
    """Run the parts of a step unless it is up to date, and record it when it is whole."""
    record = run.record(step.name)
    inputs = _inputs(run, step)
    if not force and run.work.fresh(record, inputs):
        for name, _ in step.parts:
            run.screen.skipped(name)
        return
    made: Sequence[Any] = ()
    for name, function in step.parts:
        with run.screen.stage(name, undisturbed=name == "bench") as stage:
            if name == step.name:  # the part that writes
                run.work.forget(record)
            made = function(run, stage, *made)
    run.note()
    varying = [path for path in made if path.name in VARYING]
    run.work.complete(record, inputs, [path for path in made if path.name not in VARYING], varying)


def _inputs(run: Run, step: Step) -> dict[str, Any]:
    """Raises WorkError when a file of an earlier stage is missing."""
    return {**step.inputs(run), "versions": run.versions}


def _single(run: Run, name: str) -> Run:
    """Run one stage, up to date or not, and warn about everything that is older than what it is made from."""
    steps = {step.name: step for step in (*STEPS, VARIANTS)}
    if name == "inject":
        with run.screen.stage("load") as stage:
            (loaded,) = load(run, stage)
        with run.screen.stage("inject") as stage:
            _, placement = inject(run, stage, loaded)
        write_placement(run, placement, fitting_spec(run, loaded)[1])
    elif name == "shapes":
        with run.screen.stage(name, undisturbed=True) as stage:
            bench_shapes(run, stage)
    elif name == "bench":
        run_step(run, replace(steps["bench"], parts=(("bench", partial(bench, in_full=True)),)), force=True)
    else:
        run_step(run, steps[name], force=True)
    if older := _outdated(run):
        run.screen.warn(f"older than what they are made from: {', '.join(older)}; 'qdq compile' renews them")
    return run


def _outdated(run: Run) -> list[str]:
    """Recorded stages of this target whose inputs have changed since, or come from such a stage."""
    found: list[str] = []
    raced = (RACE,) if len(run.rivals) > 1 else ()
    for step in (*SHARED[1:], *BUILDING, *raced, *PROVING, *SERVING):
        record = run.record(step.name)
        if record not in run.work.manifest["stages"]:
            continue
        inherited = any(name.rpartition("/")[2] in ("export", "lower", "build") for name in found)
        with suppress(WorkError):  # what it is made from has been removed, so it is not older
            if inherited or not run.work.made_from(record, _inputs(run, step)):
                found.append(record)
    return found


def _finish(run: Run, work: Callable[[Run], Run], behind: Sequence[Step], proven: Told) -> Outcome:
    """Do the work, tell its result, then do what is made of it: the steps `behind`, and the page.

    `work` returns the run for the target it ends with. A target this machine lacks something for is an outcome, not a
    failure.
    """
    run, missing = _attempted(run, work)
    proven(_outcome(run, missing))
    if not missing:
        run, missing = _attempted(run, lambda run: _stepped(run, behind))
    run.note()
    run.work.write_manifest()
    if missing or (run.target / "build.json").is_file():  # before that there is nothing to show
        run_step(run, report_step(missing))
    _warn_other_targets(run)
    return _outcome(run, missing)


def _attempted(run: Run, work: Callable[[Run], Run]) -> tuple[Run, str]:
    """The run after the work, and what this machine lacks for it, which the screen shows."""
    try:
        return work(run), ""
    except Unavailable as error:
        run.screen.line(f"\n{error}")
        return settled(run) if run.rivals else run, str(error)


def _stepped(run: Run, steps: Sequence[Step]) -> Run:
    for step in steps:
        run_step(run, step)
    return run


def _outcome(run: Run, missing: str) -> Outcome:
    """Return what is there now."""
    found, serves = artifacts(run), ""
    if str(run.target / REPOSITORY) in found:
        serves = "fp32" if serves_float(run, run.options.target) else "int8"
    code = 3 if missing else 0
    return Outcome(code, str(run.work.path), run.options.target, found, missing, run.screen.warnings, serves)


def _warn_other_targets(run: Run) -> None:
    """A target's folder keeps its files when another target's run changes the canonical graph: say so."""
    canonical = run.work.path / CANONICAL
    for target in TARGETS:
        passes = run.work.path / target / "passes.json"
        if target == run.options.target or not passes.is_file() or not canonical.is_file():
            continue
        if read_json(passes).get("canonical_sha256") != sha256_file(canonical):
            run.screen.warn(
                f"{run.work.path / target} was made from another {CANONICAL} than the present one; renew it with "
                f"--target {target}"
            )
