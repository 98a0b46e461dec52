"""docs/compression.md: its commands run, every kind of result has a table, its scripts and steps exist."""

from __future__ import annotations

import importlib
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qdq.compress.strategy import METHODS
from qdq.errors import ConfigError, DataError
from qdq.studies.compression import NAMES, Places, main, measure, training_command
from qdq.studies.compression_page import sections
from qdq.studies.compression_recipes import CASES, PARTS
from qdq.studies.study import DOCS, ROOT

PAGE = DOCS / "compression.md"


def test_named_files_exist_and_every_step_is_listed() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for name in re.findall(r"examples/[a-z_.]+", page):
        assert (ROOT / name.rstrip(".")).is_file(), name
    for step in METHODS:
        assert f"| `{step}` |" in page


def test_every_kind_of_result_has_a_table() -> None:
    candidate = {"name": "mse-4x1", "metric": 0.8, "drop": 0.01, "parameters": 2_000_000, "weights_mb": 2.5}
    compression = {"baseline": 0.81, "best": "mse-4x1", "candidates": [candidate]}
    text = sections({"mrpc": compression})
    assert "| mse-4x1 (best) | 0.8000 | -1.00 | 2.00 | 2.5 |" in text
    assert "Not measured yet: minilm-mrpc:ptq, minilm-mrpc:qat" in text
    with pytest.raises(DataError, match="is none of"):
        sections({"odd": {"x": 1}})


# What makes a command of the page fit a tiny model and a short test.
TRAINED = "--max_steps 2 --device cpu --report_to none --disable_tqdm True --batch_num_list 1"
SMALL = {
    "deploy": "--batch 2 --sequence 32 --threads 1 --bench-seconds 0.1",
    "infer": "--threads 1 --max_seq_length 32",
    "custom": TRAINED,
    "compress": f"{TRAINED} --max_seq_length 32 --input_dtype int32",
}
ONE_CANDIDATE = "--algo_list abs_max --batch_size_list 4"
TAGS = {"id2label": {0: "O", 1: "B-PER", 2: "I-PER"}, "label2id": {"O": 0, "B-PER": 1, "I-PER": 2}}


def commands() -> list[list[str]]:
    """Every command of the page's ```bash blocks as words."""
    found = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(found).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line]


def made_small(words: list[str]) -> list[str]:
    """A command's words with what makes it short; lists it has typed itself stay."""
    kind = next(kind for kind in SMALL if kind in " ".join(words[:3]))
    one = ONE_CANDIDATE if kind in ("custom", "compress") and "--algo_list" not in words else ""
    return [*words, *SMALL[kind].split(), *one.split()]


def run_here(words: list[str]) -> Any:
    """Run ``python FILE …`` or ``python -m MODULE …`` in this process; returns what its main does."""
    assert words[0] == "python"
    name, rest = (words[2], words[3:]) if words[1] == "-m" else (Path(words[1]).stem, words[2:])
    return importlib.import_module(name).main(rest)


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Callable[..., Path], sentences: tuple[str, ...]
) -> Path:
    """A folder with the models and data that the page's commands name; it is the working directory."""
    models = {
        "my-mrpc": ("text-classification", {}),
        "my-ner": ("token-classification", TAGS),
        "my-squad": ("question-answering", {}),
    }
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name, (task, more) in models.items():
        (tmp_path / name).symlink_to(tiny_checkpoint("bert", task, num_hidden_layers=1, num_attention_heads=4, **more))
    pairs = [f"{i % 2}\t{i}\t{i}\t{text}\t{text}" for i, text in enumerate(sentences[:16])]
    context = "the cat sat in the house and the dog ran"
    answer = {"text": "the house", "answer_start": context.index("the house")}
    question = {"context": context, "qas": [{"id": "q", "question": "where", "answers": [answer]}]}
    contents = {
        "mrpc/{}.tsv": "\n".join(["Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", *pairs]),
        "conll/{}.txt": "the O\ncat B-PER\nsat I-PER\n\na O\ndog B-PER\nran O\n",
        "squad/{}.json": json.dumps({"data": [{"title": "t", "paragraphs": [question] * 4}]}),
    }
    for pattern, content in contents.items():
        for split in ("train", "dev"):
            path = tmp_path / "data" / pattern.format(split)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    encoder = tiny_checkpoint("bert", "feature-extraction", num_attention_heads=4)  # in the place of the bundled one
    monkeypatch.setattr(importlib.import_module("custom_model"), "resolve", lambda name: (encoder, name))
    return tmp_path


@pytest.mark.slow
def test_the_commands_run_as_they_stand(place: Path) -> None:
    """Pruned, calibrated, trained, deployed, and asked: every command of the page, shortened."""
    found = commands()
    assert len(found) == 11
    results = [run_here(made_small(words)) for words in found]
    for words, result in zip(found, results, strict=True):
        if "--output_dir" in words:
            folder = place / words[words.index("--output_dir") + 1]
            assert json.loads((folder / "compression.json").read_text())["best"] == result.best.name
            assert 0 <= result.best.metric <= 1
        elif "qdq.compress.deploy" in words:
            (row,) = json.loads((place / words[3] / "deployment.json").read_text())["engines"]
            assert row["best"] and row["p50_ms"] > 0 and Path(row["triton"]).is_dir()
            assert row["target"] == words[words.index("--target") + 1]
            configs = [path.read_text() for path in Path(row["triton"]).rglob("config.pbtxt")]
            assert any("TYPE_STRING" in config for config in configs), words  # it takes text
    (label,), (answer,) = (result for words, result in zip(found, results, strict=True) if "infer" in words[1])
    assert label["text"] == "first text" and 0.5 <= label["score"] <= 1
    assert answer["answer"] == "the cat sat in the house"[answer["start"] : answer["end"]]


def test_every_part_is_a_command_its_script_takes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    command_line = importlib.import_module("command_line")
    places = Places(Path("../shared"), Path("build/compression"), Path("results"))
    assert len(NAMES) == len(CASES) * len(PARTS)
    for model, part in (name.split(":") for name in NAMES):
        if part != "engines":
            script, *words = training_command(places, model, part)
            assert (ROOT / script).is_file()
            data, args = command_line.parse({}, words)
            assert args.chosen_strategy.name == words[words.index("--strategy") + 1]
            assert not args.chosen_strategy.trains or args.max_steps > 0  # a budget in steps, not in seconds
            assert data.max_seq_length == 128
    main(["--list"])
    assert [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")] == NAMES
    with pytest.raises(SystemExit):
        main(["--only", "minilm-mrpc:qta"])
    assert "--only: invalid choice: 'minilm-mrpc:qta'" in capsys.readouterr().err


def test_a_part_is_recorded_with_its_command(tmp_path: Path) -> None:
    places = Places(tmp_path / "shared", tmp_path / "work", tmp_path / "results")

    def run(words: tuple[str, ...]) -> None:
        out = Path(words[words.index("--output_dir") + 1])
        out.mkdir(parents=True)
        (out / "compression.json").write_text(json.dumps({"baseline": 0.8, "best": "a", "candidates": []}))

    written = json.loads(measure(places, "minilm-mrpc", "qat", run).read_text())
    assert written["command"].startswith("python examples/compress_seq_cls.py --dataset ")
    assert (written["baseline"], written["versions"]["torch"].count(".")) == (0.8, 2)
    with pytest.raises(ConfigError, match="needs minilm-mrpc:ptq-cpu"):
        measure(places, "minilm-mrpc", "engines", run)
