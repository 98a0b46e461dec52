"""Interrupted at any moment a run leaves whole files, and running again completes it to the very same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from safetensors import safe_open

from qdq.base.artifacts import PARTIAL_PREFIX
from qdq.pipeline.workdir import WorkDirectory

Qdq = Callable[..., Any]
STAGES = ("load", "inject", "calibrate", "export", "lower", "build", "verify", "bench", "deploy")
SOURCE = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--out", "work")
ROOT = Path(__file__).resolve().parents[3]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file by relative name; timings are left out, and the pages about the run, which show them."""
    timed = ("report.html", "README.md")
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "benchmark.json")
    found = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: path.read_bytes() for name, path in found.items() if name not in timed}


def states(err: str) -> dict[str, str]:
    """Stage -> "up to date" or "ran"."""
    rows = [line.split(maxsplit=1) for line in err.splitlines() if line.startswith("  ") and line.split()]
    return {row[0]: "up to date" if row[1:] == ["up to date"] else "ran" for row in rows if row[0] in STAGES}


def ran(err: str) -> list[str]:
    """The stages that were not up to date."""
    return [stage for stage, state in states(err).items() if state == "ran"]


def start(arguments: Sequence[str], folder: Path, seed: str) -> subprocess.Popen[str]:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # the tests run in the background, and children inherit that
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return subprocess.Popen(
        [sys.executable, "-m", "qdq.cli.main", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def stop(child: subprocess.Popen[str], after: str, how: signal.Signals, delay: float = 0.0) -> int:
    """Signal `child` some time after it has shown the line of stage `after`; returns its exit status."""
    assert child.stderr is not None
    for line in child.stderr:
        if line.startswith(f"  {after} "):
            break
    else:
        pytest.fail(f"the run ended before {after} was shown")
    time.sleep(delay)
    child.send_signal(how)
    _, err = child.communicate(timeout=200)
    assert "Traceback" not in err
    return child.returncode


def assert_whole(work: Path) -> None:
    """Whatever does not carry the name of a leftover can be read."""
    for path in work.rglob("*"):
        if not path.is_file() or PARTIAL_PREFIX in str(path.relative_to(work)):
            continue
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        if path.suffix == ".onnx":
            onnx.checker.check_model(path)
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as weights:
                assert weights.keys()


@pytest.mark.slow
def test_killed_and_interrupted_runs_are_completed(compiled: Path, tmp_path: Path, small: tuple[str, ...]) -> None:
    """In processes of their own, with other hash seeds, in another folder: and yet the bytes of the first run."""
    for name in ("tiny-bert", "text.jsonl"):
        link = shutil.copytree if (compiled / name).is_dir() else shutil.copyfile
        link(compiled / name, tmp_path / name)
    command = ("compile", *SOURCE, "--target", "openvino", *small)
    long = (*command, "--bench-seconds", "600")  # so that it cannot end before the signal arrives
    work = tmp_path / "work"

    assert stop(start(long, tmp_path, "2"), "calibrate", signal.SIGINT, 1.0) == 130
    assert_whole(work)
    assert list(work.rglob(f"{PARTIAL_PREFIX}*")) == []
    assert stop(start(long, tmp_path, "3"), "export", signal.SIGKILL) == -signal.SIGKILL
    assert_whole(work)
    assert stop(start(long, tmp_path, "4"), "verify", signal.SIGTERM) == 130
    assert_whole(work)

    last = start(command, tmp_path, "5")
    _, err = last.communicate(timeout=200)
    assert last.returncode == 0, err
    assert states(err)["calibrate"] == states(err)["export"] == "up to date"
    assert "ran" in states(err).values()
    assert list(work.rglob(f"{PARTIAL_PREFIX}*")) == []
    whole, resumed = contents(compiled / "work"), contents(work)
    assert resumed.keys() == {name for name in whole if not name.startswith("onnxruntime/")}
    differing = [name for name in resumed if resumed[name] != whole[name] and name != "manifest.json"]
    assert differing == []
    expected, manifest = json.loads(whole["manifest.json"]), json.loads(resumed["manifest.json"])
    for stage in [name for name in expected["stages"] if name.startswith("onnxruntime/")]:
        del expected["stages"][stage]
    expected["options"]["target"] = "openvino"  # the last run of the other directory was for onnxruntime
    del expected["stages"]["report"], manifest["stages"]["report"]  # made of the benchmark's timings
    assert manifest == expected


def test_leftovers_of_a_killed_run_are_swept(workplace: Path, qdq: Qdq, small: tuple[str, ...]) -> None:
    Path("work/openvino/.partial-1-model.onnx").write_text("half")
    Path("work/.partial-checkpoint-x").mkdir()
    assert qdq("compile", *SOURCE, "--target", "openvino", *small).code == 0
    assert list(Path("work").rglob(f"{PARTIAL_PREFIX}*")) == []


def test_an_interrupted_first_run_leaves_nothing(
    workplace: Path, qdq: Qdq, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qdq.calibrate.treatments.order.observe", interrupted)
    outcome = qdq("compile", "--model", "tiny-bert", "--out", "new/work", "--target", "openvino", *small)
    assert outcome.code == 130
    assert outcome.err.endswith("qdq: interrupted; whole files were kept, run again to continue\n")
    assert not Path("new").exists()


def test_two_runs_at_once(workplace: Path, qdq: Qdq, small: tuple[str, ...]) -> None:
    before = contents(Path("work"))
    with WorkDirectory(Path("work")):
        for command in (("compile", *SOURCE, *small), ("bench", "--out", "work")):
            second = qdq(*command)
            assert second.code == 1
            assert second.err.endswith(
                "qdq: work: another qdq run is working here; wait for it, or choose another --out (OUT=)\n"
            )
    assert contents(Path("work")) == before


@pytest.mark.slow
def test_other_sources_make_a_work_directory_stale(workplace: Path, small: tuple[str, ...]) -> None:
    """The packages as a copy elsewhere change nothing; one byte of one file, and every stage runs again."""
    for package in ("qdq", "export", "engines", "calib_data"):
        shutil.copytree(ROOT / package, Path("copy", package), ignore=shutil.ignore_patterns("__pycache__"))
    command = ("-m", "qdq.cli.main", "compile", *SOURCE, "--target", "openvino", *small)
    told = "Stages of the earlier run are out of date: qdq's source changed."

    def compiled_by_the_copy() -> str:
        environment = {**os.environ, "PYTHONPATH": str(Path("copy").resolve()), "PYTHONSAFEPATH": "1"}
        done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stderr

    err = compiled_by_the_copy()
    assert ran(err) == [] and told not in err
    with Path("copy/export/lint/limits.py").open("a", encoding="utf-8") as file:
        file.write("#")
    err = compiled_by_the_copy()
    assert ran(err) == list(STAGES) and told in err
    assert ran(compiled_by_the_copy()) == []


# A changed input redoes what depends on it, and nothing else


@pytest.mark.parametrize(
    ("changes", "redone"),
    [
        (("--batch", "3"), ["bench", "deploy"]),
        (("--eval-samples", "7"), ["verify", "bench", "deploy"]),
        (("--eval-data", "other.jsonl"), ["verify", "bench", "deploy"]),
        (("--label-column", "label"), ["verify"]),
        (("--precision-hint", "bf16"), ["build", "verify", "bench", "deploy"]),
        (("--triton-backend", "openvino"), ["deploy"]),
        (("--bench-seconds", "0.3"), []),
        (("--sm", "89"), []),  # of GPUs
        # no text is that long, so the amax come out the same and the graphs stay
        (("--sequence", "48"), ["load", "inject", "calibrate", "verify", "bench", "deploy"]),
    ],
)
def test_a_changed_option(
    workplace: Path, qdq: Qdq, small: tuple[str, ...], changes: tuple[str, str], redone: list[str]
) -> None:
    lines = Path("text.jsonl").read_text().splitlines()
    Path("other.jsonl").write_text("\n".join(lines[20:]) + "\n")
    outcome = qdq("compile", *SOURCE, "--target", "openvino", *small, *changes)
    assert outcome.code == 0, outcome.err
    assert ran(outcome.err) == redone
    again = qdq("compile", *SOURCE, "--target", "openvino", *small, *changes)
    assert ran(again.err) == []


def test_the_same_text_under_another_name_changes_nothing(workplace: Path, qdq: Qdq, small: tuple[str, ...]) -> None:
    Path("text.jsonl").rename("renamed.jsonl")
    outcome = qdq("compile", *SOURCE, "--calibration", "renamed.jsonl", "--target", "openvino", *small)
    assert (outcome.code, ran(outcome.err)) == (0, [])


@pytest.mark.parametrize(
    ("artifact", "redone"),
    [
        ("placement.json", ["load", "inject", "calibrate"]),
        ("checkpoint/config.json", ["load", "inject", "calibrate"]),
        ("openvino/model.onnx", ["lower"]),
        ("openvino/passes.json", ["lower"]),
        ("openvino/model.bin", ["build"]),
        ("openvino/build.json", ["build"]),
        ("openvino/accuracy.json", ["verify"]),
        ("openvino/benchmark.json", ["bench"]),
        ("openvino/model_repository/tiny-bert/config.pbtxt", ["deploy"]),
    ],
)
@pytest.mark.parametrize("how", ["deleted", "cut"])
def test_a_missing_or_damaged_artifact_is_made_again(
    workplace: Path, qdq: Qdq, small: tuple[str, ...], artifact: str, redone: list[str], how: str
) -> None:
    before = contents(Path("work"))
    path = Path("work", artifact)
    content = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(content[: len(content) // 2])
        redone = [] if redone == ["bench"] else redone  # only its presence is checked: its content is never the same
    outcome = qdq("compile", *SOURCE, "--target", "openvino", *small)
    assert outcome.code == (0 if redone else 1), outcome.err  # a cut benchmark.json is an error when it is shown
    assert ran(outcome.err) == redone
    after = contents(Path("work"))
    del before["manifest.json"], after["manifest.json"]
    assert after == before


@pytest.mark.slow
def test_another_model_and_placement_redo_everything(workplace: Path, qdq: Qdq, small: tuple[str, ...]) -> None:
    """The other target's files stay and are named; the Triton repository, which holds one model, makes room."""
    other = contents(Path("work/onnxruntime"))
    Path("tiny-bert").rename("other-bert")
    command = ("compile", *SOURCE, "--model", "other-bert", *small, "--placement", "linear", "--json")
    outcome = qdq(*command, "--target", "openvino")
    assert outcome.code == 0, outcome.err
    assert ran(outcome.err) == list(STAGES)
    assert json.loads(outcome.out)["warnings"] == [
        "work/onnxruntime was made from another model.qdq.onnx than the present one; renew it with --target onnxruntime"
    ]
    assert [path.name for path in Path("work/openvino/model_repository").iterdir()] == ["other-bert"]
    assert contents(Path("work/onnxruntime")) == other
    renewed = qdq(*command, "--target", "onnxruntime")
    assert ran(renewed.err) == ["lower", "build", "verify", "bench", "deploy"]
    assert json.loads(renewed.out)["warnings"] == []
