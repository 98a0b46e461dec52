"""The scripts in examples/ on tiny models and local files: compress, deploy, and run the engines on raw text."""

from __future__ import annotations

import importlib
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
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


@pytest.mark.document_row("000/8")
def test_config_gives_the_defaults_of_the_data_set_and_the_command_line_wins(example: Load, labelled: Path) -> None:
    command_line = example("command_line")
    words = ["--dataset", str(labelled), "--model_name_or_path", "m", "--output_dir", "o", "--device", "cpu"]
    data, args = command_line.parse(command_line.defaults_of(command_line.typed("dataset", words)), words)
    assert (args.learning_rate, args.per_device_train_batch_size, data.max_seq_length) == (5e-5, 32, 128)  # tnews
    assert args.batch_size_list == [4, 8, 16]
    _, args = command_line.parse(command_line.defaults_of(str(labelled)), [*words, "--learning_rate", "1e-3"])
    assert args.learning_rate == 1e-3
    assert command_line.typed("dataset", ["--output_dir", "o"]) == ""
    with pytest.raises(ConfigError, match=r"the following arguments are required: --dataset"):
        command_line.parse(command_line.defaults_of(""), ["--output_dir", "o"])


def data_arguments(example: Load) -> Any:
    """The scripts' data options with nothing but their defaults."""
    return example("command_line").DataArguments(dataset="", model_name_or_path="")


WSC = {"span1_text": "cat", "span1_index": 4, "span2_text": "it", "span2_index": 13}
NLI = ("neutral", "entailment", "contradiction")
CODES = (100, 101, 102, 103, 104, 106, 107, 108, 109, 110, 112, 113, 114, 115, 116)
# The hub's columns and class names of CLUE's seven tasks
CLUE: dict[str, tuple[dict[str, Any], Sequence[Any]]] = {
    "afqmc": ({"sentence1": "the cat", "sentence2": "a dog"}, (0, 1)),
    "tnews": ({"sentence": "the cat"}, CODES),
    "iflytek": ({"sentence": "the cat"}, range(119)),
    "ocnli": ({"sentence1": "the cat", "sentence2": "a dog"}, NLI),
    "cmnli": ({"sentence1": "the cat", "sentence2": "a dog"}, NLI),
    "cluewsc2020": ({"text": "the cat sees it", "target": WSC}, ("true", "false")),
    "csl": ({"abst": "the cat", "keyword": ["dog", "city"]}, (0, 1)),
}


@pytest.mark.parametrize("task", CLUE)
@pytest.mark.document_row("000/3", "000/7", "000/8", "004/5", "004/6")
def test_the_seven_tasks_of_clue_from_the_hub(
    task: str, example: Load, hub: Any, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """`--dataset "clue TASK"` on few rows, so that most classes do not occur, and one without consensus."""
    row, names = CLUE[task]
    served = hub([{**row, "label": label, "idx": n} for n, label in enumerate((1, -1, 0, 1))], list(map(str, names)))
    model = tiny_checkpoint(num_hidden_layers=1, num_labels=len(names))
    words = ["--dataset", f"clue {task}", "--model_name_or_path", str(model), "--output_dir", str(tmp_path / "out")]
    result = example("compress_seq_cls").main([*words, *PTQ])
    assert served.asked == ("clue", task) and result.best.name


@pytest.mark.parametrize(
    ("config", "label", "metrics"),
    [
        ({"problem_type": "multi_label_classification", "num_labels": 3}, [1.0, 0.0, 1.0], "micro_f1"),
        ({"num_labels": 1}, 2.5, "pearson"),
    ],
    ids=["multi-label", "scores"],
)
def test_every_kind_of_head_is_compressed_by_its_own_metric(
    example: Load,
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
    sentences: tuple[str, ...],
    config: dict[str, Any],
    label: Any,
    metrics: str,
) -> None:
    model = tiny_checkpoint("bert", num_hidden_layers=1, **config)
    other = [1.0 - value for value in label] if isinstance(label, list) else -label
    for name in ("train", "dev"):
        rows = [{"text": text, "labels": (label, other)[i % 2]} for i, text in enumerate(sentences[:8])]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    words = ["--dataset", str(tmp_path), "--model_name_or_path", str(model), "--output_dir", str(tmp_path / "out")]
    best = example("compress_seq_cls").main([*words, *PTQ]).best
    assert metrics in best.metric.metrics


def test_a_script_that_refuses_ends_with_one_message(
    tiny_checkpoint: Callable[..., Path], labelled: Path, tmp_path: Path
) -> None:
    """Two heads have no third: exit code and message are those of qdq, in one last line without a traceback."""
    model = tiny_checkpoint("bert", num_hidden_layers=1, num_attention_heads=2, hidden_size=32, num_labels=15)
    words = ["--dataset", labelled, "--model_name_or_path", model, "--output_dir", tmp_path / "out"]
    widths = ["--strategy", "dynabert", "--width_mult_list", "1/3", "--max_steps", "1", *QUICK]
    script = [sys.executable, EXAMPLES / "compress_seq_cls.py", *words, *widths]
    done = subprocess.run(list(map(str, script)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr and "internal error" not in done.stderr
    *before, last = done.stderr.strip().splitlines()
    assert last.startswith("qdq: width_mult_list: 1/3 of 2 heads") and not any("qdq:" in line for line in before)


TAGS = {"id2label": {0: "O", 1: "B-PER", 2: "I-PER"}, "label2id": {"O": 0, "B-PER": 1, "I-PER": 2}}


@pytest.mark.document_row("000/3", "000/9", "000/11")
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


# The commands as the compression API's document prints them
PRINTED = {
    "compress_seq_cls": """
    --dataset "clue tnews"  \\
    --model_name_or_path best_models/TNEWS  \\
    --output_dir ./
""",
    "compress_token_cls": """
    --dataset "msra_ner"  \\
    --model_name_or_path best_models/MSRA_NER \\
    --output_dir ./ \\
    --max_seq_length 128 \\
    --per_device_train_batch_size 32 \\
    --per_device_eval_batch_size 32 \\
    --learning_rate 0.00005 \\
    --remove_unused_columns False \\
    --num_train_epochs 3
""",
    "compress_qa": """
    --dataset "clue cmrc2018" \\
    --model_name_or_path best_models/CMRC2018  \\
    --output_dir ./ \\
    --max_seq_length 512 \\
    --learning_rate 0.00003 \\
    --num_train_epochs 8 \\
    --per_device_train_batch_size 24 \\
    --per_device_eval_batch_size 24 \\
    --max_answer_length 50 \\
""",
}


@pytest.mark.document_row("000/7", "000/9", "000/10")
@pytest.mark.parametrize("name", PRINTED)
def test_the_printed_commands_run(
    name: str,
    example: Load,
    tiny_checkpoint: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All flags as they are printed; names of the data and the model stand for local folders."""
    monkeypatch.chdir(tmp_path)
    words = shlex.split(PRINTED[name].replace("\\\n", " "))
    data, model = (words[words.index(flag) + 1] for flag in ("--dataset", "--model_name_or_path"))
    (tmp_path / data).mkdir()
    sizes: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 512}
    if name == "compress_qa":
        squad_file(tmp_path / data)
        source = tiny_checkpoint("bert", "question-answering", **sizes)
    elif name == "compress_seq_cls":
        rows = [{"label": str(CODES[n % 15]), "sentence": "the cat sees a dog"} for n in range(15)]
        for file in ("train.json", "dev.json"):
            (tmp_path / data / file).write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
        source = tiny_checkpoint(num_labels=15, **sizes)
    else:
        lines = "the O\ncat B-PER\nsat I-PER\n\na O\ndog B-PER\nran O\n"
        for file in ("train.txt", "dev.txt"):
            (tmp_path / data / file).write_text(lines, encoding="utf-8")
        source = tiny_checkpoint("bert", "token-classification", **sizes, **TAGS)
    (tmp_path / model).parent.mkdir()
    (tmp_path / model).symlink_to(source)
    result = example(name).main([*words, "--report_to", "none", "--disable_tqdm", "True", "--device", "cpu"])
    assert {candidate.name.partition("-")[0] for candidate in result.candidates} == {"width"}
    assert (tmp_path / result.best.name / "model.safetensors").is_file()


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


@pytest.mark.document_row("000/20")
def test_windows_hold_the_answer_they_are_labelled_with(
    example: Load, tmp_path: Path, load_tiny: Callable[..., Any]
) -> None:
    """A model that points exactly at the labels is scored 1; windows without the answer are labelled (0, 0)."""
    import numpy as np

    from qdq.tasks.extraction import Extraction, training_row, windows

    squad_file(tmp_path)
    records = example("task_data").read(str(tmp_path), "dev", data_arguments(example))
    cut = windows(load_tiny().tokenizer, records, 14, 4, typed=True)
    assert len(cut) > len(records)  # more windows than questions
    problem, kept = Extraction(records, cut, "squad", longest=10), []
    for number, window in enumerate(cut):
        label = training_row(window, records[window.sample], ["input_ids"])
        logits = np.full((2, len(window.offsets)), -9.0)
        logits[0, label["start_positions"]] = logits[1, label["end_positions"]] = 9.0
        kept.append(problem.keep(number, {"start_logits": logits[0], "end_logits": logits[1]}))
    assert {name: metric() for name, metric in problem.metrics(kept).items()} == {"exact_match": 1.0, "f1": 1.0}


@pytest.mark.document_row("000/3", "000/11")
def test_questions_on_contexts_of_a_squad_file(
    example: Load, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    squad_file(tmp_path)
    model = tiny_checkpoint("bert", "question-answering", num_hidden_layers=1)
    words = ["--dataset", str(tmp_path), "--model_name_or_path", str(model), "--output_dir", str(tmp_path / "out")]
    result = example("compress_qa").main([*words, *PTQ, "--doc_stride", "4", "--max_answer_length", "50"])
    assert 0 <= result.best.metric <= 1


def test_deploy_needs_a_finished_compression(tmp_path: Path) -> None:
    with pytest.raises(DeployError, match="has no compression"):
        deploy(tmp_path, ["auto"], Screen())


def test_a_missing_split_is_named(example: Load, tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("label\ttext\n1\ta b\n", encoding="utf-8")
    with pytest.raises(DataError, match="no file for 'dev'"):
        example("task_data").read(str(tmp_path), "dev", data_arguments(example))


@pytest.mark.document_row("001/8", "001/10", "001/11")
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
