"""The search: plan, launch, race, choose, deploy, report. What is finished is on disk and is not done again."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.cores import available_cores
from qdq.auto.search.candidates import BASE, Candidate, Tried, everything
from qdq.auto.search.choice import Choice, Raced, choose, error, lost, pareto
from qdq.auto.search.job import ENGINE, JOB, RESULT, Job, compile_options, folder_of, read_job, spent
from qdq.auto.search.launch import launch
from qdq.auto.search.plan import Costs, Planned, Situation, next_candidate, plan
from qdq.auto.search.race import Entry, estimated, race
from qdq.auto.search.report import show, write_report
from qdq.auto.search.settings import SearchSettings
from qdq.base.artifacts import atomic_path, read_json, write_json
from qdq.base.lock import hold
from qdq.base.screen import Screen
from qdq.errors import BuildError, ConfigError
from qdq.pipeline.compile import compile_model

SETTINGS, RACE, REPORT, BEST = "search.json", "race.json", "report.json", "best"
# Of a job's result, what stands in the report
FACTS = ("float", "best_step", "steps", "train_seconds", "target", "seconds", "choosing", "judging")
FIRST_COSTS = Costs(step=0, teacher=0, evaluation=0, engine=0, rows=1, batch=1)  # while nothing is measured


def search(settings: SearchSettings, screen: Screen) -> dict[str, Any]:
    """Find and deploy the fastest engine within the drop; returns the content of report.json.

    A search that was killed continues in its folder. Raises ConfigError for settings that cannot be meant or are not
    those the folder was begun with, WorkError while another search works there, Unavailable for jobs that are to be
    started by hand, and what the base engine's making raises.
    """
    settings.validate()
    with hold(settings.folder, "another search"):
        _claim(settings)
        state = State(settings)
        # The given model, and its INT8 engine
        _run(state, [None], screen)
        screen.row("budget", f"{settings.budget:.0f} s, at most {settings.max_drop:g} points lost")
        _run(state, [Planned(BASE, 0, 0.0, "every other engine is measured by it")], screen)
        # Candidates, as long as one promises something
        while planned := _next(state):
            for one in planned:
                screen.row("next", f"{one.candidate.name}: {one.why}")
            _run(state, planned, screen)
        return _finish(state, screen)


def _claim(settings: SearchSettings) -> None:
    """Write what this search is, or check that the folder's is the same. Raises ConfigError."""
    record = settings.folder / SETTINGS
    if record.is_file():
        earlier = read_json(record)
        changed = sorted(name for name, value in settings.deciding.items() if earlier.get(name) != value)
        if changed:
            raise ConfigError(
                f"{settings.folder}: holds a search with another {', '.join(changed)}; give another folder, or "
                "remove it"
            )
    write_json(record, settings.as_json())


@dataclass(frozen=True)
class State:
    """Files of a search: jobs, results, and what follows from them."""

    settings: SearchSettings

    def result(self, candidate: Candidate | None) -> dict[str, Any] | None:
        """result.json of a job, None while there is none."""
        path = folder_of(self.settings.folder, candidate) / RESULT
        return dict(read_json(path)) if path.is_file() else None

    @property
    def reference(self) -> dict[str, Any]:
        """The result of the job that scores the given model."""
        found = self.result(None)
        assert found is not None  # the first job has been run
        return found

    @property
    def candidates(self) -> list[Candidate]:
        """Every candidate of the model."""
        return everything(int(self.reference["heads"]))

    def jobs(self) -> list[Job]:
        """The candidates' jobs that were begun, in the order they were planned."""
        found = [read_job(path.parent) for path in sorted((self.settings.folder / "jobs").glob(f"*/{JOB}"))]
        return sorted((job for job in found if job.candidate is not None), key=lambda job: job.round)

    def finished(self) -> list[tuple[Candidate, dict[str, Any]]]:
        """Candidates with an engine, and their results, in the order they were planned."""
        found = []
        for job in self.jobs():
            result = self.result(job.candidate)
            if result is not None and "failed" not in result and job.candidate is not None:
                found.append((job.candidate, result))
        return found

    def costs(self) -> Costs:
        """The measured seconds that plans are made with."""
        base = self.result(BASE)
        if base is None:
            return FIRST_COSTS
        found = self.reference
        step = found["step"]
        return Costs(
            step["seconds"], step["teacher"], found["evaluation_s"], base["seconds"], found["rows"], found["batch"]
        )

    def tried(self) -> list[Tried]:
        """Candidates that were tried, as decisions see them."""
        whole = float(self.reference["choosing"]["value"])
        return [
            Tried(
                one,
                lost(found, "choosing"),
                100 * (whole - found["float"]) if "float" in found else None,
                error(found, "choosing"),
            )
            for one, found in self.finished()
        ]

    def situation(self) -> Situation:
        """Everything that the next decision depends on.

        Seconds that are left are counted by what the jobs were expected to take, so that a search which was killed and
        one which was not decide alike; what they really took only ends it.
        """
        settings, base, costs = self.settings, self.result(BASE), self.costs()
        seconds = float(self.reference["seconds"]) + (float(base["seconds"]) if base else 0.0)
        rounds: dict[int, float] = {}  # jobs of a round run side by side
        for job in self.jobs():
            rounds[job.round] = max(rounds.get(job.round, 0.0), job.planned)
        left = settings.budget - seconds - sum(rounds.values()) - costs.finish
        return Situation(self.tried(), settings.max_drop, costs, min(left, settings.budget - self.spent()))

    def spent(self) -> float:
        """Seconds that all jobs have really taken."""
        folders = [folder_of(self.settings.folder, job.candidate) for job in self.jobs()]
        return spent(folder_of(self.settings.folder, None)) + sum(map(spent, folders))


def _next(state: State) -> list[Planned]:
    """Jobs to run next: those begun before, else the most promising one; all at once where they run side by side."""
    open_jobs = [job for job in state.jobs() if job.candidate is not None and state.result(job.candidate) is None]
    if open_jobs:
        return [
            Planned(job.candidate, job.steps, job.planned, job.why, job.start) for job in open_jobs if job.candidate
        ]
    begun = {job.candidate for job in state.jobs()}
    left = [candidate for candidate in state.candidates if candidate not in begun]
    now = state.situation()
    if state.settings.launcher == "local":
        found = next_candidate(left, now)
        return [] if found is None else [found]
    plans = [plan(one, now, share=1.0) for one in left]
    return [one for one in plans if isinstance(one, Planned)]


def _run(state: State, planned: Sequence[Planned | None], screen: Screen) -> None:
    """Write jobs down and have them run. Raises the error of the base's or of the reference's."""
    settings = state.settings
    base, number = state.result(BASE), 1 + max((job.round for job in state.jobs()), default=-1)
    needed = planned[0] is None or planned[0].candidate == BASE
    folders = []
    for one in planned:
        candidate = None if one is None else one.candidate
        folder = folder_of(settings.folder, candidate)
        folders.append(folder)
        if (folder / JOB).is_file():
            continue
        bf16 = bool(state.reference["step"]["bf16"]) if candidate else False
        target = str(base["target"]) if base else settings.target
        about = {} if one is None else {"steps": one.steps, "planned": one.seconds, "why": one.why, "start": one.start}
        about["round"] = number if candidate else -1
        job = Job(settings.absolute, candidate, target=target, bf16=bf16, **about)  # type: ignore[arg-type]
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / JOB, job.as_json())
    launch("local" if needed else settings.launcher, folders, screen)
    for folder in folders if needed else ():
        if reason := read_json(folder / RESULT).get("failed"):
            (folder / RESULT).unlink()  # the next try may have what this one lacked
            raise BuildError(f"{folder.name}: {reason}")


def _finish(state: State, screen: Screen) -> dict[str, Any]:
    """Race, choose, deploy and report."""
    settings, finished = state.settings, state.finished()
    timed = _race(state, finished, screen)
    speeds = {name: float(entry["ratio"]["value"]) for name, entry in timed["engines"].items()}
    raced = [Raced(one.name, lost(found, "choosing"), speeds[one.name]) for one, found in finished]
    choice = choose(raced, settings.max_drop)
    candidate = next(one for one, _ in finished if one.name == choice.name)
    deployed = _deploy(state, candidate, screen)
    report = _report(state, timed, choice, pareto(raced)) | {"deployed": deployed}
    write_report(settings.folder, report)
    show(screen, report)
    return report


def _race(state: State, finished: Sequence[tuple[Candidate, dict[str, Any]]], screen: Screen) -> dict[str, Any]:
    """race.json: the one of these very engines that is there, else a new one."""
    settings, path = state.settings, state.settings.folder / RACE
    names = [candidate.name for candidate, _ in finished]
    if path.is_file() and (earlier := read_json(path))["entries"] == names:
        return dict(earlier)
    entries = [
        Entry(candidate.name, folder_of(settings.folder, candidate) / ENGINE, found["target"])
        for candidate, found in finished
    ]
    with screen.stage("race", undisturbed=True) as stage:
        if any(found["missing"] for _, found in finished):
            timed = estimated(entries, settings)
            stage.say(f"no GPU here: estimated for {timed['device']}")
        else:
            timed = race(entries, settings, settings.threads or available_cores(), stage.progress)
            stage.say(f"{len(entries)} engines and FP32, {timed['rounds']} rounds")
    write_json(path, timed | {"entries": names})
    return timed


def _deploy(state: State, candidate: Candidate, screen: Screen) -> str:
    """Verify, time and deploy the chosen engine as `qdq compile` does; returns its work directory.

    ``best`` in the search's folder leads there.
    """
    job = read_job(folder_of(state.settings.folder, candidate))
    found = state.result(candidate)
    assert found is not None  # it has been raced
    outcome = compile_model(compile_options(job, candidate, found["checkpoint"]), screen)
    with contextlib.suppress(OSError), atomic_path(state.settings.folder / BEST) as partial:
        Path(partial).symlink_to(os.path.relpath(outcome.out, state.settings.folder))
    return str(state.settings.folder / os.path.relpath(outcome.out, state.settings.folder))


def _report(state: State, timed: dict[str, Any], choice: Choice, front: Sequence[str]) -> dict[str, Any]:
    """The content of report.json."""
    # A row for every engine, in the order they were planned
    why = {job.candidate: job.why for job in state.jobs()}
    engines = []
    for candidate, found in state.finished():
        about = {name: found[name] for name in FACTS if name in found}
        about |= {"strategy": candidate.strategy, "width": str(candidate.width), "why": why[candidate]}
        engines.append({"name": candidate.name, **about, **timed["engines"][candidate.name]})
    # What they are compared with, and what became of it
    reference = state.reference
    return {
        "model": reference["model"],
        "task": reference["task"],
        "metric": reference["metric"],
        "settings": state.settings.as_json(),
        "fp32": {side: reference[side] for side in ("choosing", "judging")} | timed["engines"]["fp32"],
        "race": {key: value for key, value in timed.items() if key not in ("engines", "entries")},
        "engines": engines,
        "pareto": list(front),
        "chosen": choice.name,
        "why": choice.why,
        "within": choice.within,
        "not_tried": _reasons(state, state.situation()),
        "spent_s": round(state.spent(), 1),
    }


def _reasons(state: State, now: Situation) -> dict[str, str]:
    """The reason why each candidate without an engine has none."""
    found: dict[str, str] = {}
    for candidate in state.candidates:
        result = state.result(candidate)
        if result is not None:
            if "failed" in result:
                found[candidate.name] = f"failed: {result['failed']}"
            continue
        reason = plan(candidate, now)
        found[candidate.name] = "no time left" if isinstance(reason, Planned) else reason
    return found
