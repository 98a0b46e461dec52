"""One job of a search, a process of its own: ``python -m qdq.auto.search.job FOLDER``.

job.json in the folder says what to do; result.json, written last and as a whole, is what came of it. A job whose
result is there does nothing, so it may be started again at any time; two of the same wait for each other.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.targets import TARGETS, EngineOptions
from qdq.auto.search.candidates import BASE, PTQ_OPTIONS, QAT, WHOLE, Candidate
from qdq.auto.search.candidates import from_json as candidate_from
from qdq.auto.search.settings import SearchSettings
from qdq.auto.search.settings import from_json as settings_from
from qdq.base.artifacts import read_json, write_json
from qdq.base.edge import run_script
from qdq.base.screen import Screen
from qdq.errors import DataError
from qdq.loading.model import load_model
from qdq.pipeline.compile import compile_model
from qdq.pipeline.options import CompileOptions

if TYPE_CHECKING:
    from engines.types import Runner
    from qdq.auto.search.material import Judges
    from qdq.loading.model import LoadedModel

JOB, RESULT, LOCK, SPENT = "job.json", "result.json", ".lock", "spent.json"
ENGINE, TRAINED, OUTPUTS = "engine", "trained", "outputs.npz"
REFERENCE = "fp32"  # the job that scores the given model and measures what training costs
HEARTBEAT = 5.0  # seconds between two notes of the time that was spent
PR_SET_PDEATHSIG = 1  # prctl(2): a signal for the child when its parent ends


@dataclass(frozen=True)
class Job:
    """Content of job.json.

    Attributes:
        settings: of the search.
        candidate: None for the job that scores the given model.
        steps: of the training, 0 without one.
        start: width of the trained student that this one is cut from; 1 is the given model.
        round: jobs of one round are planned together.
        planned: seconds it was expected to take.
        why: it was tried.
        target: runtime, as the base engine has settled it; "auto" for that one.
        bf16: trainings multiply in bfloat16.
    """

    settings: SearchSettings
    candidate: Candidate | None
    steps: int = 0
    target: str = "auto"
    bf16: bool = False
    start: Fraction = WHOLE
    round: int = -1
    planned: float = 0.0
    why: str = ""

    @property
    def folder(self) -> Path:
        """The job's folder."""
        return folder_of(self.settings.folder, self.candidate)

    def as_json(self) -> dict[str, Any]:
        """The content of job.json."""
        candidate = None if self.candidate is None else self.candidate.as_json()
        about = {"settings": self.settings.as_json(), "candidate": candidate, "start": str(self.start)}
        return {**asdict(self), **about}


def folder_of(save_dir: Path, candidate: Candidate | None) -> Path:
    """Folder of a job below the search's folder."""
    return save_dir / "jobs" / (REFERENCE if candidate is None else candidate.key)


def read_job(folder: Path) -> Job:
    """The job of a folder. Raises DeployError when it has none."""
    found = read_json(folder / JOB)
    candidate = None if found["candidate"] is None else candidate_from(found["candidate"])
    names = ("steps", "target", "bf16", "round", "planned", "why")
    rest = {name: found[name] for name in names if name in found}
    return Job(settings_from(found["settings"]), candidate, start=Fraction(found.get("start", WHOLE)), **rest)


def run(folder: Path, screen: Screen, since: float | None = None) -> dict[str, Any]:
    """Do the job of a folder, unless its result is there; returns and writes that. Raises QdqError.

    Its seconds count from `since` on (time.monotonic), which is now where it is not given.
    """
    with _alone(folder):
        if (folder / RESULT).is_file():
            return dict(read_json(folder / RESULT))
        job = read_job(folder)
        with _counted(folder, time.monotonic() if since is None else since):
            found = _reference(job) if job.candidate is None else _candidate(job, job.candidate, screen)
        write_json(folder / RESULT, found | {"seconds": spent(folder)})
        return dict(read_json(folder / RESULT))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process works on this job."""
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def spent(folder: Path) -> float:
    """Seconds that the job has taken so far, those of attempts that were killed included."""
    return float(read_json(folder / SPENT)["seconds"]) if (folder / SPENT).is_file() else 0.0


@contextlib.contextmanager
def _counted(folder: Path, started: float) -> Iterator[None]:
    """Keep `spent` up to date while the block runs, however it ends."""
    earlier, done = spent(folder), threading.Event()

    def note() -> None:
        write_json(folder / SPENT, {"seconds": round(earlier + time.monotonic() - started, 1)})

    def keep_noting() -> None:
        while not done.wait(HEARTBEAT):
            note()

    thread = threading.Thread(target=keep_noting, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        note()


# ---- the given model ----------------------------------------


def _reference(job: Job) -> dict[str, Any]:
    """Score the FP32 model, keep its outputs, and measure what trainings cost."""
    from qdq.auto.search.material import SIDES, Kept, keep_outputs, read_judges, training_samples
    from qdq.auto.search.training import BATCH, measure_step, use_threads
    from qdq.inject.widths import blocks
    from qdq.loading.runner import TorchRunner

    # Text that cannot be used is an error before anything is run.
    use_threads(_threads(job.settings))
    loaded = load_model(job.settings.model, job.settings.task)
    samples, judges = training_samples(job.settings, loaded), read_judges(job.settings, loaded)
    # The model's scores, and what they cost
    kept = {side: Kept(TorchRunner(loaded.module())) for side in SIDES}
    started = time.perf_counter()
    scores = {side: getattr(judges, side).score(kept[side]) for side in SIDES}
    seconds = (time.perf_counter() - started) / len(SIDES)
    keep_outputs(job.folder / OUTPUTS, kept)
    step, found = measure_step(loaded, samples, job.settings.seed), blocks(loaded.model)
    return {
        "metric": scores["choosing"].main,
        **{side: {"value": scores[side].value, "samples": scores[side].samples} for side in SIDES},
        "heads": found[0].heads,
        "layers": len(found),
        "rows": len(samples),
        "batch": BATCH,
        "step": asdict(step),
        "evaluation_s": round(seconds, 3),
        "task": loaded.task.name,
        "model": loaded.name,
    }


# ---- a candidate ----------------------------------------


def _candidate(job: Job, candidate: Candidate, screen: Screen) -> dict[str, Any]:
    """Train what has to be trained, build the engine, and score it on both sides."""
    from qdq.auto.search.material import SIDES, read_judges, reference_scores
    from qdq.auto.search.training import use_threads

    use_threads(_threads(job.settings))
    loaded = load_model(job.settings.model, job.settings.task)
    judges = read_judges(job.settings, loaded)
    checkpoint, about = _checkpoint(job, candidate, loaded, judges)
    outcome = compile_model(compile_options(job, candidate, checkpoint), screen, engine_only=True)
    runner, missing = _runner(job, outcome), outcome.missing
    reference = reference_scores(folder_of(job.settings.folder, None) / OUTPUTS, judges)
    found: dict[str, Any] = {"target": outcome.target, "missing": missing, "checkpoint": str(checkpoint), **about}
    for side in SIDES:
        scores = getattr(judges, side).score(runner)
        difference = scores.difference(reference[side])[scores.main].as_json()
        found[side] = {"value": scores.value, "samples": scores.samples, **difference}
    return found


def _checkpoint(
    job: Job, candidate: Candidate, loaded: LoadedModel, judges: Judges
) -> tuple[Path | str, dict[str, Any]]:
    """The checkpoint the engine is built from, trained where needed, and facts of its training."""
    folder: Path | str = job.settings.model
    about: dict[str, Any] = {}
    if candidate.width != WHOLE:
        about = _trained(job, replace(BASE, width=candidate.width), loaded, judges)
        folder = about.pop("checkpoint")
        about["float"] = about.pop("metric")
    if candidate.quantization == QAT:
        training = _trained(replace(job, start=candidate.width), candidate, loaded, judges)
        folder = training.pop("checkpoint")
        about |= {name: training[name] for name in ("best_step", "steps", "train_seconds")}
    return folder, about


def _trained(job: Job, candidate: Candidate, loaded: LoadedModel, judges: Judges) -> dict[str, Any]:
    """The record of a training of the candidate's width, or of its quantizers; trains it if there is none."""
    from qdq.auto.search.material import training_samples
    from qdq.auto.search.training import Start, train

    record = record_of(job.settings.folder, candidate)
    if not record.is_file():
        samples, begun = training_samples(job.settings, loaded), time.monotonic()
        start = Start(loaded, loaded.model, WHOLE)
        if job.start != WHOLE:  # the student that is cut further, or quantized
            earlier = read_json(record_of(job.settings.folder, replace(BASE, width=job.start)))["checkpoint"]
            start = Start(loaded, load_model(str(earlier), job.settings.task).model, job.start)
        how = {"output": record.parent, "steps": job.steps, "target": job.target, "bf16": job.bf16}
        made = train(candidate, job.settings, start, samples, judges, **how)
        seconds = round(time.monotonic() - begun, 1)
        about = {"checkpoint": str(made.folder), "metric": made.metric, "best_step": made.step}
        write_json(record, {**about, "steps": job.steps, "start": str(job.start), "train_seconds": seconds})
    return dict(read_json(record))


def record_of(save_dir: Path, candidate: Candidate) -> Path:
    """The file that says a training of the candidate is whole."""
    return save_dir / TRAINED / candidate.key.removesuffix(f"+{BASE.quantization}") / "trained.json"


def compile_options(job: Job, candidate: Candidate, checkpoint: Path | str) -> CompileOptions:
    """The options of `qdq compile` that build the candidate's engine; nobody's eyes but its deployment's see `dev`."""
    settings = job.settings
    quantization = dict(PTQ_OPTIONS.get(candidate.quantization, {}))
    return CompileOptions(
        model=str(checkpoint),
        task=settings.task,
        out=str(job.folder / ENGINE),
        # What training has learned is not measured anew
        calibration=None if candidate.quantization == QAT else settings.train,
        eval_data=settings.test or settings.dev,
        text_columns=settings.text_columns,
        label_column=settings.label_column,
        header=settings.header,
        labels=settings.labels,
        target=job.target,
        batch=settings.batch,
        sequence=settings.sequence,
        threads=settings.threads,
        embedding_tables=candidate.embeddings,
        **quantization,
    )


def _runner(job: Job, outcome: Any) -> Runner:
    """The engine that was built; where this machine cannot build it, the fake-quantized model that it is of."""
    from qdq.calibrate.checkpoint import load_checkpoint
    from qdq.loading.runner import TorchRunner

    work, target = Path(outcome.out), TARGETS[outcome.target]
    if not outcome.missing:
        return target.open(work / target.name / target.engine, EngineOptions(_threads(job.settings)))
    if not (work / target.name / "model.onnx").is_file():
        raise DataError(f"{target.name}: {outcome.missing}")
    return TorchRunner(load_checkpoint(work / "checkpoint")[0].module())


def _threads(settings: SearchSettings) -> int:
    from engines.cores import available_cores

    return settings.threads or available_cores()


def main(arguments: Sequence[str] | None = None) -> None:
    """Do the job of the folder on the command line."""
    parser = argparse.ArgumentParser(prog="python -m qdq.auto.search.job", description=__doc__)
    parser.add_argument("folder", type=Path, help="folder with job.json")
    parser.add_argument("--with-parent", action="store_true", help="end when the process that started this one ends")
    parser.add_argument("--since", type=float, help="begin of its seconds by the system's monotonic clock")
    typed = parser.parse_args(arguments)
    if typed.with_parent:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    run(typed.folder, Screen(), typed.since)


if __name__ == "__main__":
    sys.exit(run_script(main))
