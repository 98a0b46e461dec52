"""A tiny UIE from checkpoint to engine, Triton repository, metric and extraction."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

from engines.tensorrt_rtx import missing
from qdq.errors import ConfigError, ModelError

SUBJECTS = ("the cat", "our teacher", "the old river", "a small dog")
THINGS = ("house", "bread", "road", "garden", "city", "meal")


def prompt_rows() -> list[dict[str, Any]]:
    """24 prompts on sentences whose words the tiny tokenizer knows."""
    rows = []
    for number in range(24):
        thing = THINGS[number % 6]
        content = f"{SUBJECTS[number % 4]} finds the {thing} again and again {'.' * (number % 3)} ."
        start = content.index(thing)
        answers = [{"text": thing, "start": start, "end": start + len(thing)}] if number % 3 else []
        rows.append({"content": content, "prompt": ("the blue house", "city")[number % 2], "result_list": answers})
    return rows


@pytest.fixture(scope="module")
def compiled_uie(
    tiny_checkpoint: Callable[..., Path],
    qdq: Callable[..., Any],
    small: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A folder with prompts.txt and ``work/``, compiled for both CPU targets."""
    folder = tmp_path_factory.mktemp("uie")
    lines = "".join(json.dumps(row) + "\n" for row in prompt_rows())
    (folder / "prompts.txt").write_text(lines, encoding="utf-8")
    model = tiny_checkpoint("ernie", "information-extraction", use_task_id=True)
    with contextlib.chdir(folder):
        for target in ("openvino", "onnxruntime"):
            ran = qdq(
                *("compile", "--model", model, "--calibration", "prompts.txt", "--eval-data", "prompts.txt"),
                *("--out", "work", "--target", target, *small[2:], "--samples", "8", "--json"),
            )
            assert ran.code == 0, ran.err
            (folder / f"{target}.json").write_text(ran.out, encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("target", ["openvino", "onnxruntime"])
def test_an_engine_is_verified_by_span_f1(target: str, compiled_uie: Path) -> None:
    outcome = json.loads((compiled_uie / f"{target}.json").read_text(encoding="utf-8"))
    running, total = outcome["build"]["int8"]["encoder_linear"]
    assert running == total == 12
    accuracy = outcome["accuracy"]
    assert accuracy["task"] == "information-extraction" and set(accuracy["outputs"]) == {"start_prob", "end_prob"}
    assert accuracy["metric"]["name"] == "f1" and set(accuracy["metrics"]) == {"f1", "precision", "recall"}
    assert accuracy["agreement_unit"] == "prompt" and accuracy["agreement_of"] == 22 and accuracy["cosine_mean"] > 0.98
    assert "UIE's heads" in accuracy["reference"]["library"]


@pytest.mark.slow
@pytest.mark.skipif(missing() is not None, reason=missing() or "")
@pytest.mark.parametrize(("target", "file"), [("tensorrt", "build_engine.py"), ("tensorrt-rtx", "model.rtx")])
def test_nvidia_targets_have_both_outputs_and_a_compiled_proof(
    target: str,
    file: str,
    compiled_uie: Path,
    tiny_checkpoint: Callable[..., Path],
    qdq: Callable[..., Any],
    small: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The lowered graph ends in two probabilities per token, without a pooler, and its linears are compiled to INT8."""
    monkeypatch.chdir(compiled_uie)
    model = tiny_checkpoint("ernie", "information-extraction", use_task_id=True)
    ran = qdq(
        *("compile", "--model", model, "--calibration", "prompts.txt", "--eval-data", "prompts.txt"),
        *("--out", tmp_path / "work", "--target", target, *small[2:], "--samples", "8"),
    )
    assert ran.code in (0, 3), ran.err  # 3: what only a GPU runs
    folder = tmp_path / "work" / target
    assert (folder / file).is_file()
    graph = onnx.load(folder / "model.onnx").graph
    assert [output.name for output in graph.output] == ["start_prob", "end_prob"]
    assert [len(output.type.tensor_type.shape.dim) for output in graph.output] == [2, 2]
    assert not any("pooler" in node.name for node in graph.node)
    proof = json.loads((folder / "build.json").read_text(encoding="utf-8"))["compiled"]
    assert proof["linears"] == [12, 12] and proof["attentions"][1] == 2


@pytest.mark.slow
def test_triton_takes_prompts(compiled_uie: Path) -> None:
    (model,) = (compiled_uie / "work" / "openvino" / "model_repository").iterdir()
    config = (model / "config.pbtxt").read_text(encoding="utf-8")
    assert all(f'name: "{name}"' in config for name in ("PROMPT", "CONTEXT", "SPANS", "START_PROB", "END_PROB"))
    assert "SPANS are all parts of CONTEXT that answer PROMPT" in (model / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_evaluate_by_class(compiled_uie: Path, qdq: Callable[..., Any]) -> None:
    words = ("evaluate", compiled_uie / "work", "--data", compiled_uie / "prompts.txt", "--sequence", "32")
    ran = qdq(*words, "--debug", "--json")
    assert ran.code == 0, ran.err
    report = json.loads(ran.out)
    assert report["metric"] == "f1" and report["samples"] == 24
    names = [entry["name"] for entry in report["contestants"]]
    assert names == ["torch FP32", "fake-quantized", "openvino", "onnxruntime"]
    for entry in report["contestants"]:
        assert set(entry["classes"]) == {"the blue house", "city"}
    ran = qdq(*words, "--debug")
    assert "city  (onnxruntime)" in ran.out and "precision" in ran.out


@pytest.mark.slow
@pytest.mark.parametrize("place", ["work", "work/openvino/model.xml", "checkpoint"])
def test_extract_from_the_command_line(
    place: str, compiled_uie: Path, qdq: Callable[..., Any], tiny_checkpoint: Callable[..., Path]
) -> None:
    what = tiny_checkpoint("ernie", "information-extraction", use_task_id=True)
    what = what if place == "checkpoint" else compiled_uie / place
    words = ("extract", what, "--schema", '{"house": ["city"]}', "--position-prob", "0.4", "--sequence", "32")
    text = "the cat finds the blue house ."
    ran = qdq(*words, "--text", text, "--text", "our teacher likes fresh bread .")
    assert ran.code == 0, ran.err
    results = [json.loads(line) for line in ran.out.splitlines()]
    assert len(results) == 2
    for found in results[0].get("house", ()):  # random weights find anything, but where they say
        assert text[found["start"] : found["end"]] == found["text"] and 0.16 < found["probability"] <= 1
    ran = qdq(*words, "--data", compiled_uie / "prompts.txt", "--samples", "3", "--out", compiled_uie / "found.jsonl")
    assert ran.code == 0, ran.err
    assert len((compiled_uie / "found.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_what_extract_refuses(tiny_checkpoint: Callable[..., Path], qdq: Callable[..., Any]) -> None:
    uie, other = tiny_checkpoint("ernie", "information-extraction", use_task_id=True), tiny_checkpoint("bert")
    for words, said, code in (
        ((uie, "--schema", "a"), "give texts", 2),
        ((uie, "--schema", "{a", "--text", "b"), "no JSON", 2),
        ((uie, "--schema", "a", "--text", "b", "--position-prob", "1.5"), "--position-prob", 2),
        ((other, "--schema", "a", "--text", "b"), "is a model for text-classification; give a UIE checkpoint", 1),
    ):
        ran = qdq("extract", *words)
        assert ran.code == code and said in ran.err, ran.err
    ran = qdq("evaluate", other, "--data", "missing", "--debug", "--sequence", "32")
    assert ran.code == 2 and "--debug: is for UIE's prompts" in ran.err


def test_the_class_reads_a_checkpoint(tiny_checkpoint: Callable[..., Path]) -> None:
    from qdq.uie.extract import Extraction

    folder = str(tiny_checkpoint("ernie", "information-extraction", use_task_id=True))
    extraction = Extraction.of(folder, ["house"], "en", limit=0.01)
    assert len(extraction(["the blue house", "a warm meal"])) == 2
    with pytest.raises(ModelError, match="give a UIE checkpoint"):
        Extraction.of(str(tiny_checkpoint("bert")), ["house"])
    with pytest.raises(ConfigError, match="schema"):
        extraction.set_schema([])
