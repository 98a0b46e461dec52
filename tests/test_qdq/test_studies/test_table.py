"""The documented table: a tiny model from its fine-tuning to a row, and the page with and without figures."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from qdq.base.artifacts import read_json
from qdq.errors import ConfigError
from qdq.studies.study import ROOT
from qdq.studies.table import measure as parts
from qdq.studies.table import page
from qdq.studies.table.__main__ import NAMES, main
from qdq.studies.table.cases import CASES, KINDS, SCRIPTS, TableCase
from qdq.studies.table.characters import vocabulary

TINY = TableCase(
    *("minilm-tnews", KINDS[0], "TNEWS", "tiny/train.json", "tiny/dev.json"),
    pruning="--per_device_train_batch_size 8 --learning_rate 1e-3 --max_steps 2 --max_eval_samples 16 --device cpu",
    finetuning="--per_device_train_batch_size 8 --max_steps 2",
    start="tiny",
    sequence=32,
    batch=2,
)


def run_here(words: Sequence[str]) -> None:
    """Run ``python FILE …`` or ``python -m MODULE …`` in this process."""
    name, rest = (words[1], words[2:]) if words[0] == "-m" else (Path(words[0]).stem, words[1:])
    importlib.import_module(name).main(list(rest))


@pytest.fixture
def places(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_checkpoint: Callable[..., Path], sentences: tuple[str, ...]
) -> parts.Places:
    """Shared models and data with one tiny encoder and 16 labelled sentences."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setattr(parts, "BUDGET_S", 0.5)
    monkeypatch.setattr(parts, "CHINESE", ("tiny/train.json",))
    encoder = tiny_checkpoint("bert", "feature-extraction", num_hidden_layers=1, num_attention_heads=4)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "tiny").symlink_to(encoder)
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    rows = [{"label": ("100", "116")[n % 2], "sentence": text} for n, text in enumerate(sentences[:16])]
    for split in ("train", "dev"):
        path = tmp_path / "data" / "tiny" / f"{split}.json"
        path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return parts.Places(tmp_path, tmp_path / "work", tmp_path / "results")


@pytest.mark.slow
@pytest.mark.document_row("000/4", "000/5")
def test_a_model_goes_from_its_training_to_four_engines(places: parts.Places) -> None:
    """Fine-tuned, then as it is, in INT8, pruned, and both: built, scored, timed in one run, and on the page."""
    with pytest.raises(ConfigError, match="minilm-tnews:build needs minilm-tnews:compress"):
        parts.measure(places, TINY, "build", run_here)
    for part in parts.PARTS:
        record = read_json(parts.measure(places, TINY, part, run_here))
    assert set(record) == set(parts.PARTS)
    config = read_json(places.model(TINY) / "config.json")
    assert config["id2label"] == {"0": "100", "1": "116"} and config["vocab_size"] < 60
    assert [parts.strategy_of(row["notes"]) for row in record["compress"]["candidates"]] == [
        "ptq",
        "dynabert",
        "dynabert+ptq",
    ]
    # The four engines differ: in their precision and in their width.
    files = parts.engines(places, TINY)
    precisions = {name: read_json(file.parent / "build.json").get("precision", "int8") for name, file in files.items()}
    assert precisions == {"FP32": "fp32", "INT8": "int8", "pruned FP32": "fp32", "pruned INT8": "int8"}
    sizes = {name: file.with_suffix(".bin").stat().st_size for name, file in files.items()}
    assert sizes["pruned FP32"] < sizes["FP32"] and sizes["INT8"] < sizes["FP32"]
    assert record["score"]["engines"]["FP32"]["points"] == 0 and record["score"]["samples"] == 16
    assert set(record["time"]["contestants"]) == set(files)
    text = page.render({TINY.name: record})
    assert text.startswith("| engine | TNEWS texts/s | TNEWS accuracy | MSRA_NER texts/s |")
    assert "| FP32 |" in text and " (1.00x) |" in text and "scored on 16 of" in text


def test_parts_are_commands_that_their_scripts_take(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    command_line, finetune = importlib.import_module("command_line"), importlib.import_module("finetune")
    places = parts.Places(Path("../shared"), Path("build/table"), Path("results"))
    monkeypatch.setattr(parts.Places, "data", lambda self, case: self.work / "data" / case.name)
    for case in CASES.values():
        script, *words = parts.compression(places, case)
        assert script == f"examples/{SCRIPTS[case.task]}" and (ROOT / script).is_file()
        data, args = command_line.parse({}, words)
        assert args.chosen_strategy.name == "ptq,dynabert,dynabert+ptq" and args.max_steps > 0
        assert data.max_seq_length == case.sequence
        for _, *typed in parts.finetuning(places, case)[1:]:
            _, trained = command_line.parse({}, typed, None, finetune.FinetuneArguments)
            assert trained.task == case.task and trained.max_steps > 0
    main(["--list"])
    assert [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")] == NAMES


def test_the_page_has_dashes_for_what_is_not_measured() -> None:
    text = page.render({})
    assert text.count("| – | – |") >= 8 and "OpenVINO engines" not in text
    assert all(f"- {case.data}: {case.name}, " in text for case in CASES.values())


def test_characters_are_words_and_letters_continue_them() -> None:
    tokens = vocabulary(["我有iPhone。", "我有Pi。", "x"])
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert {"我", "有", "i", "p", "。", "##i", "##p"} <= set(tokens)
    assert not {"##我", "##。", "x", "I"} & set(tokens)  # words by themselves, no letter, seen once, upper case
