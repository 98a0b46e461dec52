"""The whole search on a tiny model: real trainings, engines and race; killed and continued."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qdq.auto.search import command
from qdq.auto.search.command import State, search
from qdq.auto.search.job import RESULT, run
from qdq.auto.search.settings import SearchSettings, from_json
from qdq.base.artifacts import read_json, to_json, write_json
from qdq.base.screen import Screen
from qdq.errors import BuildError, ConfigError, Unavailable, WorkError

pytest.importorskip("openvino")
WORDS = ("cat", "dog", "river", "teacher", "city", "meal", "house", "garden", "road", "bread", "engine", "morning")
PATIENCE = 600.0  # seconds for a process on a busy machine
SEARCH = (
    "import sys, json; from qdq.auto.search.command import search; from qdq.auto.search.settings import from_json; "
)
SEARCH += "from qdq.base.screen import Screen; search(from_json(json.loads(sys.argv[1])), Screen())"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Callable[..., Path]) -> SearchSettings:
    folder = tmp_path_factory.mktemp("search")
    for name, verb, count in (("train", "sees", 96), ("dev", "wants", 40)):
        pairs = [(one, other) for one in WORDS for other in WORDS if one != other][:count]
        rows = "".join(f"the {one} {verb} a {other}\t{index % 2}\n" for index, (one, other) in enumerate(pairs))
        (folder / f"{name}.tsv").write_text(f"text\tlabel\n{rows}", encoding="utf-8")
    paths = {name: str(folder / f"{name}.tsv") for name in ("train", "dev")}
    shape = {"batch": 4, "sequence": 16, "threads": 1}
    return SearchSettings(
        model=str(tiny_checkpoint()),
        **paths,
        **shape,
        target="openvino",
        budget=3600.0,
        max_drop=100.0,  # type: ignore[arg-type]
    )


def here(launcher: str, folders: Sequence[Path], screen: Screen) -> None:
    """Run jobs in this process, which has imported everything."""
    for folder in folders:
        run(folder, screen)


def table(report: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Facts that must be the same after a kill: candidates, their training and their metric on both sides."""
    return [
        (one["name"], one.get("steps"), one.get("best_step"), one["choosing"], one["judging"])
        for one in report["engines"]
    ]


@pytest.fixture(scope="module")
def found(settings: SearchSettings, tmp_path_factory: pytest.TempPathFactory) -> tuple[SearchSettings, dict[str, Any]]:
    """A search that nobody interrupts."""
    mine = replace(settings, save_dir=str(tmp_path_factory.mktemp("whole")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "launch", here)
        return mine, search(mine, Screen())


@pytest.mark.slow
def test_a_search_trains_builds_races_and_deploys(found: tuple[SearchSettings, dict[str, Any]]) -> None:
    settings, report = found
    names = [one["name"] for one in report["engines"]]
    assert names == ["ptq", "width 1/2, ptq", "width 1/2, ptq, embeddings"]
    assert report["engines"][1]["steps"] == 24 and report["engines"][1]["strategy"] == "dynabert+ptq"
    # Everyone is timed against the whole INT8 engine, and every other candidate has a reason.
    assert {"fp32", *names} == {*read_json(settings.folder / "race.json")["engines"]}
    assert all(one["ratio"]["low"] <= one["ratio"]["value"] <= one["ratio"]["high"] for one in report["engines"])
    assert {*names, *report["not_tried"]} == {one.name for one in State(settings).candidates}
    assert report["fp32"]["choosing"]["samples"] == report["fp32"]["judging"]["samples"] == 20
    # What is kept is a whole work directory.
    best = settings.folder / "best"
    assert best.resolve() == Path(report["deployed"]).resolve()
    for made in ("model.xml", "accuracy.json", "benchmark.json", "model_repository"):
        assert (best / "openvino" / made).exists()
    # Which of the tiny models wins is the race's to say: the others have no benchmark of their own.
    finished = {path.parents[1].resolve() for path in settings.folder.glob("jobs/*/engine/openvino/benchmark.json")}
    assert finished == {best.resolve()}
    assert (settings.folder / "report.md").is_file() and (settings.folder / "pareto.png").is_file()


@pytest.mark.slow
def test_started_again_nothing_is_done_again(
    found: tuple[SearchSettings, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, report = found

    def never(launcher: str, folders: Sequence[Path], screen: Screen) -> None:
        assert all((folder / RESULT).is_file() for folder in folders)

    monkeypatch.setattr(command, "launch", never)
    monkeypatch.setattr(command, "race", None)
    assert search(settings, Screen()) == report
    with pytest.raises(ConfigError, match="another max_drop"):
        search(replace(settings, max_drop=1.0), Screen())


@pytest.mark.slow
def test_killed_and_started_again_it_ends_with_the_same_table(
    found: tuple[SearchSettings, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, whole = replace(found[0], save_dir=str(tmp_path / "killed")), found[1]
    for name in ("fp32", "ptq"):  # done before, to save two processes their start
        shutil.copytree(found[0].folder / "jobs" / name, settings.folder / "jobs" / name)
    said = (tmp_path / "said.txt").open("w+")
    process = subprocess.Popen([sys.executable, "-c", SEARCH, to_json(settings.as_json())], stderr=said)
    try:
        # Killed while the student is trained
        training = settings.folder / "trained" / "width-1of2" / "training" / "dynabert"
        end = time.monotonic() + PATIENCE
        while not list(training.glob("checkpoint-*")):
            assert process.poll() is None and time.monotonic() < end, (tmp_path / "said.txt").read_text()
            time.sleep(0.02)
        with pytest.raises(WorkError, match="another search is working here"):
            search(settings, Screen())
    finally:
        process.kill()
        process.wait()
        said.close()
    assert not (settings.folder / "trained" / "width-1of2" / "trained.json").exists()
    monkeypatch.setattr(command, "launch", here)  # it waits for the orphan's end by its lock
    report = search(settings, Screen())
    assert table(report) == table(whole)
    assert report["not_tried"] == whole["not_tried"]
    assert report["spent_s"] > sum(one["seconds"] for one in report["engines"])


def test_jobs_for_another_engine_are_written_out_and_their_results_taken(
    settings: SearchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = replace(settings, save_dir=str(tmp_path), launcher="slurm", max_drop=0.5)
    fp32 = {"choosing": {"value": 0.9, "samples": 20}, "judging": {"value": 0.9, "samples": 20}, "heads": 4}
    fp32 |= {"step": {"seconds": 0.1, "teacher": 0.02, "bf16": False}, "evaluation_s": 1.0, "seconds": 5.0}
    fp32 |= {"rows": 900, "batch": 32, "metric": "accuracy", "model": "m", "task": "text-classification"}
    side = {"value": 0.9, "samples": 20, "difference_points": 0.0, "low_points": 0.0, "high_points": 0.0}
    base = {"target": "openvino", "missing": "", "seconds": 9.0, "choosing": side, "judging": side, "checkpoint": "m"}
    for name, result in (("fp32", fp32), ("ptq", base)):
        write_json(tmp_path / "jobs" / name / RESULT, result)
    with pytest.raises(Unavailable, match="sbatch"):
        search(mine, Screen())
    jobs = [job for job in State(mine).jobs() if job.round == 1]
    assert {job.candidate.name for job in jobs if job.candidate} == {
        "width 3/4, ptq",
        "width 1/2, ptq",
        "ptq, embeddings",
    }
    assert from_json(read_json(tmp_path / "search.json")) == mine
    # Their results are taken, failures too: these say why they have no engine.
    for job in jobs:
        write_json(job.folder / RESULT, {"failed": "no memory", "seconds": 0.0})
    timed = {
        "measured": True,
        "rounds": 3,
        "engines": {"fp32": {"ratio": {"value": 0.3}}, "ptq": {"ratio": {"value": 1.0}}},
    }
    monkeypatch.setattr(command, "race", lambda *arguments: timed)
    monkeypatch.setattr(command, "_deploy", lambda *arguments: "ptq/engine")
    monkeypatch.setattr(command, "write_report", lambda *arguments: None)
    monkeypatch.setattr(command, "show", lambda *arguments: None)
    report = search(mine, Screen())
    assert report["chosen"] == "ptq" and report["not_tried"]["width 1/2, ptq"] == "failed: no memory"


def test_an_error_of_the_given_model_ends_the_search(
    settings: SearchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(launcher: str, folders: Sequence[Path], screen: Screen) -> None:
        write_json(folders[0] / RESULT, {"failed": "model.safetensors: is cut", "seconds": 0.0})

    monkeypatch.setattr(command, "launch", failing)
    mine = replace(settings, save_dir=str(tmp_path))
    with pytest.raises(BuildError, match="is cut"):
        search(mine, Screen())
    assert not (tmp_path / "jobs" / "fp32" / RESULT).exists()  # so that the next search tries again
