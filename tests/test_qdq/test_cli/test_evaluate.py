"""`qdq evaluate`: one table for a model, its fake-quantized checkpoint and its engines; predictions; refusals."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest

from qdq.base.screen import Screen
from qdq.cli.evaluate import EvaluateOptions, evaluate, render
from qdq.cli.main import main
from qdq.errors import DataError

TEXTS = ("the cat finds the blue house .", "a small dog wants a warm meal .", "our teacher sees some fresh bread .")


@pytest.fixture(scope="module")
def labelled(compiled: Path) -> str:
    return str(compiled / "text.jsonl")


def test_a_work_directory_is_scored_whole(compiled: Path, labelled: str, tmp_path: Path) -> None:
    out = tmp_path / "scores.json"
    options = EvaluateOptions((str(compiled / "work"),), labelled, sequence=32, out=str(out))
    report = evaluate(options, Screen())
    assert [entry["name"] for entry in report["contestants"]] == [
        "torch FP32",
        "fake-quantized",
        "openvino",
        "onnxruntime",
    ]
    assert report == json.loads(out.read_text())
    fake, engine = report["contestants"][1:3]
    assert abs(fake["metrics"]["accuracy"] - engine["metrics"]["accuracy"]) <= 2 / 36
    change = fake["difference"]["accuracy"]
    assert change["low_points"] <= change["difference_points"] <= change["high_points"]
    assert "accuracy\n  torch FP32      " in render(report)


def test_a_graph_finds_its_checkpoint_or_asks_for_it(
    compiled: Path, labelled: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = compiled / "work" / "model.fp32.onnx"
    assert (
        main(["evaluate", str(compiled / "work" / "checkpoint"), str(graph), "--data", labelled, "--sequence", "32"])
        == 0
    )
    table = capsys.readouterr().out
    assert "checkpoint (fake-quantized)" in table and "model.fp32.onnx" in table
    lonely = tmp_path / "alone.onnx"
    shutil.copyfile(graph, lonely)
    assert main(["evaluate", str(lonely), "--data", labelled]) == 1
    assert "name one with --model" in capsys.readouterr().err


def test_unlabelled_data_need_a_place_for_predictions(
    compiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, place = tmp_path / "test.txt", tmp_path / "predictions.jsonl"
    data.write_text("\n".join(TEXTS) + "\n", encoding="utf-8")
    arguments = ["evaluate", str(compiled / "work" / "checkpoint"), "--data", str(data), "--sequence", "32"]
    assert main(arguments) == 2
    assert "none of the 3 texts has a label; write predictions with --predictions" in capsys.readouterr().err
    assert main([*arguments, "--predictions", str(place)]) == 0
    rows = [json.loads(line) for line in place.read_text().splitlines()]
    assert [row["id"] for row in rows] == [0, 1, 2] and all(0.5 <= row["probability"] <= 1 for row in rows)
    assert main([*arguments, "--predictions", str(tmp_path / "p.json")]) == 2
    assert "an object of answers is for question answering" in capsys.readouterr().err


def test_a_hub_dataset_without_a_network_says_so(compiled: Path) -> None:
    options = EvaluateOptions(
        (str(compiled / "work" / "checkpoint"),), "datasets:no-such/name-here:validation", sequence=32
    )
    started = time.perf_counter()
    with pytest.raises(DataError, match=r"^datasets:no-such/name-here:validation: (is no folder|cannot be loaded)"):
        evaluate(options, Screen())
    assert time.perf_counter() - started < 20  # five seconds for the hub; `datasets` itself asks for 26


def test_verify_reports_every_metric_with_its_interval(compiled: Path) -> None:
    report = json.loads((compiled / "work" / "openvino" / "accuracy.json").read_text())
    assert report["metric"]["name"] == "accuracy" and set(report["metrics"]) == {"accuracy", "f1", "accuracy_f1"}
    low, high = report["metric"]["drop_interval"]
    assert low <= report["metric"]["drop_points"] <= high
