"""The scripts in examples/ on tiny models and local files: compress, deploy, and run the engines on raw text."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from qdq.base.screen import Screen
from qdq.compress.deploy import deploy
from qdq.errors import ConfigError, DataError, DeployError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
Load = Callable[[str], ModuleType]
QUICK = ("--report_to", "none", "--disable_tqdm", "True", "--device", "cpu", "--max_seq_length", "32")
PTQ = ("--strategy", "ptq", "--algo_list", "abs_max", "--batch_size_list", "4", *QUICK)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Load:
    """`example(name)`: a script as a module."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


@pytest.fixture
def labelled(tmp_path: Path, sentences: tuple[str, ...]) -> Path:
    """A folder in CLUE's JSON-lines layout whose labels are codes, as TNEWS has them."""
    folder = tmp_path / "tnews"
    folder.mkdir()
    for name in ("train", "dev"):
        rows = [{"label": ("100", "116")[i % 2], "sentence": text} for i, text in enumerate(sentences)]
        (folder / f"{name}.json").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return folder


def test_config_gives_the_defaults_of_the_data_set_and_the_command_line_wins(example: Load, labelled: Path) -> None:
    command_line = example("command_line")
    words = ["--dataset", str(labelled), "--model_name_or_path", "m", "--output_dir", "o", "--device", "cpu"]
    data, args = command_line.parse(command_line.defaults_of(command_line.typed("dataset", words)), words)
    assert (args.learning_rate, args.per_device_train_batch_size, data.max_seq_length) == (5e-5, 32, 128)  # tnews
    assert args.batch_size_list == [4, 8, 16]
    _, args = command_line.parse(command_line.defaults_of(str(labelled)), [*words, "--learning_rate", "1e-3"])
    assert args.learning_rate == 1e-3
    with pytest.raises(ConfigError, match="--dataset is missing"):
        command_line.typed("dataset", ["--output_dir", "o"])


def data_arguments(example: Load) -> Any:
    """The scripts' data options with nothing but their defaults."""
    return example("command_line").DataArguments(dataset="", model_name_or_path="")


TAGS = {"id2label": {0: "O", 1: "B-PER", 2: "I-PER"}, "label2id": {"O": 0, "B-PER": 1, "I-PER": 2}}


def test_a_tagger_from_token_lines(example: Load, tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    model = tiny_checkpoint("bert", "token-classification", num_hidden_layers=1, **TAGS)
    lines = "the O\ncat B-PER\nsat I-PER\n\na O\ndog B-PER\nran O\n"
    for name in ("train.txt", "valid.txt"):
        (tmp_path / name).write_text(lines, encoding="utf-8")
    words = ["--dataset", str(tmp_path), "--model_name_or_path", str(model), "--output_dir", str(tmp_path / "out")]
    assert 0 <= example("compress_token_cls").main([*words, *PTQ]).best.metric <= 1
    (tmp_path / "valid.txt").write_text(lines + "\nthe O\ncat\n", encoding="utf-8")
    with pytest.raises(DataError, match="no tag for its word 'cat'"):
        example("compress_token_cls").main([*words, *PTQ])
    (tmp_path / "valid.txt").write_text("the O\ncat B-LOC\n", encoding="utf-8")
    with pytest.raises(DataError, match="B-LOC"):
        example("compress_token_cls").main([*words, *PTQ])


def test_entities_are_words_with_their_places(example: Load) -> None:
    text = "Ada Lovelace met Bob"
    tags = ["O", "B-PER", "I-PER", "I-PER", "O", "I-PER", "O"]
    places = [None, (0, 3), (4, 8), (8, 12), (13, 16), (17, 20), None]
    words = [None, 0, 1, 1, 2, 3, None]
    found = example("infer_token_cls").entities(text, tags, places, words)
    assert [(one["text"], one["label"]) for one in found] == [("Ada Lovelace", "PER"), ("Bob", "PER")]


def squad_file(folder: Path) -> None:
    context = "the cat sat in the house and the dog ran"
    answers = [{"text": "the house", "answer_start": context.index("the house")}]
    paragraph = {"context": context, "qas": [{"id": "q", "question": "where the cat sat", "answers": answers}]}
    for name in ("train.json", "dev.json"):
        content = {"data": [{"title": "t", "paragraphs": [paragraph] * 4}]}
        (folder / name).write_text(json.dumps(content), encoding="utf-8")


def test_windows_hold_the_answer_they_are_labelled_with(
    example: Load, tmp_path: Path, load_tiny: Callable[..., Any]
) -> None:
    """A model that points exactly at the labels is scored 1; windows without the answer are labelled (0, 0)."""
    import numpy as np

    from qdq.tasks.extraction import Extraction, windows

    squad = example("squad")
    squad_file(tmp_path)
    records = example("task_data").read(str(tmp_path), "dev", data_arguments(example))
    cut = windows(load_tiny().tokenizer, records, 14, 4, typed=True)
    assert len(cut) > len(records)  # more windows than questions
    problem, kept = Extraction(records, cut, "squad", longest=10), []
    for number, window in enumerate(cut):
        label = squad.labelled(window, records[window.sample], ["input_ids"])
        logits = np.full((2, len(window.offsets)), -9.0)
        logits[0, label["start_positions"]] = logits[1, label["end_positions"]] = 9.0
        kept.append(problem.keep(number, {"start_logits": logits[0], "end_logits": logits[1]}))
    assert {name: metric() for name, metric in problem.metrics(kept).items()} == {"exact_match": 1.0, "f1": 1.0}


def test_deploy_needs_a_finished_compression(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="has no compression"):
        deploy(tmp_path, ["auto"], Screen())


def test_a_missing_split_is_named(example: Load, tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("label\ttext\n1\ta b\n", encoding="utf-8")
    with pytest.raises(DataError, match="no file for 'dev'"):
        example("task_data").read(str(tmp_path), "dev", data_arguments(example))


def test_the_walkthrough_compares_every_contestant(
    example: Load,
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
    sentences: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = [f"{i % 2}\t{i}\t{i}\t{text}\t{text}" for i, text in enumerate(sentences)]
    for name in ("train", "dev"):
        content = "\n".join(["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", *rows])
        (tmp_path / f"{name}.tsv").write_text(content + "\n", encoding="utf-8")
    walkthrough = example("walkthrough")
    monkeypatch.setattr(walkthrough, "SEQUENCE", 32)
    model = tiny_checkpoint("bert", "feature-extraction", num_hidden_layers=1)  # an encoder: it is fine-tuned first
    words = ["--data_dir", str(tmp_path), "--model_name_or_path", str(model), "--output_dir", str(tmp_path / "out")]
    report = walkthrough.main([*words, "--max_steps", "2", "--base_layers", "0", "--bench_seconds", "0.2"])
    assert report["fine_tuned_here"]
    names = [row["name"] for row in report["rows"]]
    assert names[:2] == ["torch-fp32", "torch-dynamic"] and len(names) == 6
    smallest = min(report["rows"], key=lambda row: row["mb"])
    assert "acc_and_f1" in report["rows"][0] and smallest["name"] != "torch-fp32"


def test_the_quickstart_exports_every_point_it_placed(
    example: Load, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    from export.check import check_file

    model = tiny_checkpoint("bert", num_hidden_layers=1)
    path = example("quickstart").main(tmp_path / "new" / "model.qdq.onnx", str(model), texts=16)
    assert check_file(path).weights == 6  # one layer: query, key, value, attention output, up, down


def test_the_index_names_every_file() -> None:
    linked = set(re.findall(r"\]\(([\w.]+)\)", (EXAMPLES / "README.md").read_text(encoding="utf-8")))
    assert linked == {path.name for path in EXAMPLES.iterdir() if path.is_file()} - {"README.md"}
