"""From a fine-tuned model to answers to raw text: the inference scripts and the SQuAD example of QDQBERT, whole."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
QUICK = ("--report_to", "none", "--disable_tqdm", "True", "--device", "cpu")
TAGS = {"id2label": {0: "O", 1: "B-PER", 2: "I-PER"}, "label2id": {"O": 0, "B-PER": 1, "I-PER": 2}}
TAGGED = "the O\ncat B-PER\nsees I-PER\n\na O\nsmall O\ndog B-PER\n\nour O\nteacher O\nsees O\nthe O\nriver O\n\n"
CONTEXT = "the cat likes the blue house . a small dog sees the new city ."


def squad_file(path: Path, answers: Sequence[str] = ("the blue house", "a small dog")) -> Path:
    """A SQuAD file with a question for each answer, eight times over."""
    asked = ("what likes the cat", "which sees the city")
    qas = [
        {
            "id": f"{question} {n}",
            "question": question,
            "answers": [{"text": text, "answer_start": CONTEXT.index(text)}],
        }
        for n in range(8)
        for question, text in zip(asked, answers, strict=True)
    ]
    path.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [{"context": CONTEXT, "qas": qas}]}]}))
    return path


def typed(script: str, *words: str | Path) -> list[Any]:
    """The JSON lines of ``python examples/SCRIPT WORDS`` in a process of its own."""
    command = [sys.executable, str(EXAMPLES / script), *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def predictions(qdq: Callable[..., Any], work: Path, data: Path, *options: str | Path) -> list[dict[str, Any]]:
    """Read the metrics of `qdq evaluate` on labelled data from the engine of a work directory."""
    engine, answers = work / "onnxruntime" / "engine.onnx", work / "answers.jsonl"
    model = ("--model", work / "checkpoint", "--threads", "1", "--predictions", answers)
    ran = qdq("evaluate", engine, "--data", data, *model, *options)
    assert ran.code == 0, ran.err
    return [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]


@pytest.mark.document_row("000/47")
def test_texts_are_classified_as_they_are_evaluated(
    workplace: Path, qdq: Callable[..., Any], sentences: tuple[str, ...]
) -> None:
    """seq_cls_infer.py: a file of raw texts in, an answer for each out; then accuracy and performance of the engine."""
    Path("raw.txt").write_text("\n".join(sentences[:9]) + "\n", encoding="utf-8")
    Path("nine.jsonl").write_text(
        "".join(json.dumps({"text": text, "label": n % 2}) + "\n" for n, text in enumerate(sentences[:9]))
    )
    work = workplace / "work"
    common = ("--engine", work, "--target", "onnxruntime", "--threads", "1", "--max_seq_length", "32")
    found = typed("infer_seq_cls.py", *common, "--file", "raw.txt", "--batch_size", "4")
    assert [answer["text"] for answer in found] == list(sentences[:9])
    expected = predictions(qdq, work, Path("nine.jsonl"), "--sequence", "32")
    assert [answer["label"] for answer in found] == [answer["label"] for answer in expected]
    assert all(0.5 <= answer["score"] <= 1 for answer in found)
    # Accuracy and performance, by the commands that the examples' page names.
    scored = qdq("evaluate", work, "--data", "nine.jsonl", "--sequence", "32", "--threads", "1")
    timed = qdq("bench", "--out", work, "--target", "onnxruntime", "--bench-seconds", "0.2")
    assert (scored.code, timed.code) == (0, 0), scored.err + timed.err
    assert "accuracy" in scored.out and "seq/s" in timed.out


@pytest.mark.document_row("000/47")
def test_entities_of_raw_text_are_those_of_the_evaluated_tags(
    qdq: Callable[..., Any],
    tiny_checkpoint: Callable[..., Path],
    text_file: Path,
    tmp_path: Path,
    small: tuple[str, ...],
) -> None:
    """token_cls_infer.py on sentences whose words are tagged in a file."""
    data, work = tmp_path / "dev.txt", tmp_path / "work"
    data.write_text(TAGGED, encoding="utf-8")
    model = tiny_checkpoint("bert", "token-classification", num_hidden_layers=1, **TAGS)
    given = ("--model", model, "--calibration", text_file, "--eval-data", data, "--target", "onnxruntime")
    ran = qdq("compile", *given, "--out", work, *small)
    assert ran.code == 0, ran.err
    texts = [" ".join(line.split()[0] for line in block.splitlines()) for block in TAGGED.strip().split("\n\n")]
    found = typed("infer_token_cls.py", "--engine", work, "--threads", "1", "--text", *texts)
    expected = predictions(qdq, work, data, "--sequence", "32")
    assert [answer["text"] for answer in found] == texts
    for answer, tags in zip(found, expected, strict=True):
        marked = {word for entity in answer["entities"] for word in entity["text"].split()}
        assert marked == {word for word, tag in zip(answer["text"].split(), tags["tags"], strict=True) if tag != "O"}
        assert all(answer["text"][one["start"] : one["end"]] == one["text"] for one in answer["entities"])


@pytest.mark.document_row("003/3")
def test_the_squad_example_from_calibration_to_answers(
    qdq: Callable[..., Any],
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small: tuple[str, ...],
) -> None:
    """QDQBERT's whole example: calibrate by percentile, fine-tune, evaluate, export, run the graph, ask it."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    data = tmp_path / "squad"
    data.mkdir()
    for split in ("train", "dev"):
        squad_file(data / f"{split}.json")
    model = tiny_checkpoint("bert", "question-answering", num_hidden_layers=1)
    out = tmp_path / "qdqbert"
    words = ["--recipe", "qdqbert", "--dataset", str(data), "--model_name_or_path", str(model)]
    words += ["--output_dir", str(out), "--max_steps", "8", "--learning_rate", "1e-3", "--max_seq_length", "32"]
    # Calibrated on 8 batches of 16, then fine-tuned with those ranges; all twenty points of the layer.
    words += ["--doc_stride", "8", "--distillation", "False", *QUICK]
    best = importlib.import_module("compress_qa").main(words).best
    assert best.table is not None and len(best.table.activations) + len(best.table.weights) == 20
    assert best.notes["calibrated_metric"] <= best.metric
    # Exported with Q/DQ pairs, and run by ONNX Runtime and as the checkpoint computes it.
    dev = data / "dev.json"
    given = ("--model", out / best.name, "--eval-data", dev, "--target", "onnxruntime")
    ran = qdq("compile", *given, "--out", tmp_path / "work", *small)
    assert ran.code == 0, ran.err
    ops = [node.op_type for node in onnx.load(tmp_path / "work" / "model.qdq.onnx").graph.node]
    assert ops.count("DequantizeLinear") - ops.count("QuantizeLinear") == 6  # six weights are stored as codes
    assert ops.count("QuantizeLinear") >= 8 and "Round" not in ops
    scored = qdq("evaluate", tmp_path / "work", "--data", dev, "--sequence", "32", "--threads", "1", "--json")
    assert scored.code == 0 and {"exact_match", "f1"} <= set(json.loads(scored.out)["contestants"][0]["metrics"])
    question = ("--question", "what likes the cat", "--context", CONTEXT, "--threads", "1", "--max_seq_length", "32")
    (answer,) = typed("infer_qa.py", "--engine", tmp_path / "work", *question)
    assert answer["answer"] == CONTEXT[answer["start"] : answer["end"]]
