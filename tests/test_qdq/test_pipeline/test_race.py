"""`--target auto` on a CPU: both INT8 engines race; the winner is verified and deployed, or FP32 where it is faster."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from engines.targets import CPU_TARGETS
from qdq.base.types import Feeds, Outputs
from qdq.errors import Unavailable
from qdq.pipeline.stages.build import open_engine

Qdq = Callable[..., Any]
SOURCE = ("--model", "tiny-bert", "--calibration", "text.jsonl", "--out", "work")
SLOW_S = 0.02  # a call of the tiny model takes less than a tenth of it


@pytest.fixture(autouse=True)
def _without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without an NVIDIA GPU, and races that last no longer than they must."""
    monkeypatch.setattr("qdq.pipeline.options.candidates", lambda name: CPU_TARGETS if name == "auto" else (name,))
    monkeypatch.setattr("qdq.pipeline.compile.candidates", lambda name: CPU_TARGETS if name == "auto" else (name,))
    monkeypatch.setattr("qdq.pipeline.stages.race.SECONDS", 0.1)


def slow(monkeypatch: pytest.MonkeyPatch, *targets: str) -> None:
    """Let INT8 engines of these targets take their time in races and benchmarks."""

    def opened(run: Any, shape: Any = None, full: float | None = None) -> Any:
        engine = open_engine(run, shape, full)

        def delayed(feeds: Feeds) -> Outputs:
            time.sleep(SLOW_S)
            return engine(feeds)

        return delayed if run.options.target in targets else engine

    monkeypatch.setattr("qdq.pipeline.stages.race.open_engine", opened)
    monkeypatch.setattr("qdq.pipeline.stages.bench.open_engine", opened)


def read(path: str) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def ran(err: str) -> dict[str, list[str]]:
    """Stage -> its lines without their seconds; lower and build have one per engine."""
    found: dict[str, list[str]] = {}
    for line in err.splitlines():
        name, *words = line.split() or [""]
        if line.startswith("  ") and name in ("calibrate", "lower", "build", "race", "verify", "bench", "deploy"):
            found.setdefault(name, []).append(" ".join(words))
    return found


def up_to_date(err: str) -> bool:
    """True when no stage had anything to do."""
    return {state for states in ran(err).values() for state in states} == {"up to date"}


def served() -> Path:
    """The engine file in the Triton repository."""
    (path,) = (
        path for name in ("*.onnx", "*.xml") for path in Path("work").glob(f"*/model_repository/tiny-bert/1/{name}")
    )
    return path


def is_int8(file: Path) -> bool:
    if file.suffix == ".xml":
        return 'element_type="i8"' in file.read_text()
    model = onnx.load(file)
    return any(
        "Integer" in node.op_type or "Quantize" in node.op_type or "QLinear" in node.op_type
        for node in model.graph.node
    )


@pytest.fixture
def untouched(workplace: Path) -> Path:
    """A work directory in which both engines are built, and nothing is verified, timed or deployed."""
    manifest = read("work/manifest.json")
    for target in CPU_TARGETS:
        for stage in ("verify", "bench", "deploy"):
            for name in manifest["stages"].pop(f"{target}/{stage}")["outputs"]:
                place = Path("work", name)
                place.unlink() if place.is_file() else [f.unlink() for f in place.rglob("*") if f.is_file()]
    Path("work/manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return workplace


@pytest.mark.parametrize(("loser", "winner"), [CPU_TARGETS, CPU_TARGETS[::-1]])
def test_the_faster_engine_is_verified_timed_and_deployed(
    untouched: Path, qdq: Qdq, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, loser: str, winner: str
) -> None:
    slow(monkeypatch, loser)
    done = qdq("compile", *SOURCE, *small, "--json")
    assert done.code == 0, done.err
    outcome, raced = json.loads(done.out), read("work/race.json")
    assert outcome["target"] == raced["target"] == winner
    assert set(raced["contestants"]) == {f"{target}{form}" for target in CPU_TARGETS for form in ("", "-cropped")}
    for name in ("accuracy.json", "benchmark.json"):
        assert Path("work", winner, name).is_file() and not Path("work", loser, name).is_file()
    timed = outcome["benchmark"]["texts"]["contestants"]  # on full rows the loser runs where the budget has room
    assert timed["int8"]["engine"] == winner and timed[f"int8-{loser}"]["engine"] == loser
    assert "work/race.json" in outcome["artifacts"] and f"work/{winner}/model_repository" in outcome["artifacts"]
    assert ran(done.err)["build"] == ["up to date"] * 2 and winner in ran(done.err)["race"][0]
    # Again: nothing to do. A stage of its own: the same engine, its rival beside it, nothing out of date.
    again = qdq("compile", *SOURCE, *small)
    assert up_to_date(again.err)
    assert read("work/manifest.json")["options"]["target"] == "auto"
    alone = qdq("verify", "--out", "work")
    assert alone.code == 0 and "warning" not in alone.err and f"work/{winner}/accuracy.json" in alone.out
    assert all(len(line) <= 80 for line in (*done.err.splitlines(), *again.out.splitlines()))


def test_fp32_is_deployed_where_it_is_faster(
    untouched: Path, qdq: Qdq, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    slow(monkeypatch, *CPU_TARGETS)
    done = qdq("compile", *SOURCE, *small)
    assert done.code == 0, done.err
    *_, last = done.out.split("\n\n")
    told = " ".join(last.split())
    assert told.startswith("INT8 is not faster here: ") and "on these texts" in told and "on full rows" in told
    assert " CPU " in told and " MB instead of " in told and "(--target tensorrt)" in told
    assert "So the Triton repository serves the FP32 engine; --target " in told
    assert all(len(line) <= 80 for line in done.out.splitlines())
    assert not is_int8(served()) and "in FP32, which is faster here" in done.err
    again = qdq("compile", *SOURCE, *small)
    assert up_to_date(again.err) and again.out == done.out
    # Whoever names the target gets INT8, and is told the same.
    named = qdq("compile", *SOURCE, *small, "--target", read("work/race.json")["target"])
    assert is_int8(served())
    assert "The Triton repository serves INT8, as --target " in " ".join(named.out.split())


def test_a_run_that_is_interrupted_in_the_race_goes_on_with_it(
    untouched: Path, qdq: Qdq, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("qdq.pipeline.stages.race.open_engine", interrupted)
        assert qdq("compile", *SOURCE, *small).code == 130
    assert not Path("work/race.json").exists()
    done = qdq("compile", *SOURCE, *small)
    assert done.code == 0, done.err
    states = ran(done.err)
    assert states["build"] == ["up to date"] * 2 and states["race"] != ["up to date"]


def test_a_runtime_that_is_missing_does_not_race(
    untouched: Path, qdq: Qdq, small: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise Unavailable("openvino is not installed; pip install '.[cpu]'")

    monkeypatch.setattr("engines.openvino.build", missing)
    monkeypatch.setattr("engines.openvino.OpenVINORunner", missing)
    Path("work/openvino/build.json").unlink()
    done = qdq("compile", *SOURCE, *small, "--json")
    assert done.code == 0, done.err
    outcome = json.loads(done.out)
    assert outcome["target"] == "onnxruntime" and "race" not in ran(done.err)
    assert set(outcome["benchmark"]["contestants"]) - {"torch-fp32"} == {"int8", "onnxruntime-fp32"}
    assert outcome["warnings"][0].startswith("no openvino engine to race with: openvino is not installed")
