"""Configuration files run on files of data: CLUE's and GLUE's tasks, prompt files, and the document's example."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from qdq.auto.command import evaluate_file, run_file
from qdq.auto.config import Global
from qdq.auto.inputs.data import read_rows
from qdq.base.screen import Screen
from qdq.errors import ConfigError, DataError
from qdq.loading.model import load_model

pytestmark = pytest.mark.usefixtures("light_collections")  # a training ends with a full one

CONFIGS = Path(__file__).resolve().parents[3] / "examples" / "auto" / "configs"
WSC = {"span1_text": "cat", "span1_index": 4, "span2_text": "it", "span2_index": 13}
PAIR = {"sentence1": "the cat", "sentence2": "a dog"}
# Rows in the layout that CLUE publishes, with the classes they are; None is a row without consensus
PUBLISHED: dict[str, tuple[dict[str, Any], Sequence[tuple[Any, int | None]], int]] = {
    "afqmc": (PAIR, (("0", 0), ("1", 1)), 2),
    "tnews": ({"sentence": "the cat", "label_desc": "news"}, (("100", 0), ("106", 5), ("116", 14)), 15),
    "iflytek": ({"sentence": "the cat", "label_des": "app"}, (("0", 0), ("118", 118)), 119),
    "ocnli": (PAIR, (("entailment", 0), ("contradiction", 1), ("neutral", 2), ("-", None)), 3),
    "cmnli": (PAIR, (("contradiction", 0), ("entailment", 1), ("neutral", 2), ("-", None)), 3),
    "cluewsc2020": ({"text": "the cat sees it", "target": WSC}, (("true", 0), ("false", 1)), 2),
    "csl": ({"abst": "the cat", "keyword": ["dog", "city"]}, (("0", 0), ("1", 1)), 2),
}


def publish(folder: Path, task: str) -> None:
    row, labels, _ = PUBLISHED[task]
    (folder / task).mkdir()
    rows = "".join(json.dumps({**row, "label": label, "id": n}) + "\n" for n, (label, _) in enumerate(labels))
    for side in ("train", "dev"):
        (folder / task / f"{side}.json").write_text(rows, encoding="utf-8")


@pytest.mark.document_row("004/5", "004/6")
@pytest.mark.parametrize("task", PUBLISHED)
def test_the_seven_tasks_of_clue_from_their_files(
    task: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """Classes in CLUE's order whatever the file's own; rows without consensus are left out."""
    publish(tmp_path, task)
    _, labels, classes = PUBLISHED[task]
    loaded = load_model(str(tiny_checkpoint(num_hidden_layers=1, num_labels=classes)))
    rows = read_rows(Global("m", task_name=task, dataset=str(tmp_path)), loaded, trains=True)
    wanted = [number for _, number in labels if number is not None]
    assert [row["labels"] for row in rows.train] == wanted == [row["labels"] for row in rows.dev]
    text = loaded.tokenizer.decode(rows.dev[0]["input_ids"])
    if task == "cluewsc2020":
        assert text.count("[UNK]") >= 2  # _cat_ and [it]
    # A file by its name has the same classes, because the task is named
    other = Global("m", task_name=task, dev_data=str((tmp_path / task).rename(tmp_path / "x") / "dev.json"))
    assert [row["labels"] for row in read_rows(other, loaded, trains=False).dev] == wanted


@pytest.mark.parametrize(
    ("task", "config", "labels", "metric"),
    [
        ("cola", {}, (1, 0, 1, 0), "mcc"),
        ("sts-b", {"num_labels": 1}, (0.5, 2.0, 4.0, 1.5), "pearson_spearman"),
        ("sst-2", {}, (1, 0, 1, 0), "accuracy"),
    ],
)
def test_the_metrics_of_glue(
    task: str, config: dict[str, Any], labels: Sequence[Any], metric: str, tiny_checkpoint: Any, tmp_path: Path
) -> None:
    sentences = ("the cat finds the blue house .", "a small dog", "our teacher likes the new city", "but why ?")
    (tmp_path / task).mkdir()
    rows = [{"sentence": text, "label": label} for text, label in zip(sentences, labels, strict=True)]
    (tmp_path / task / "dev.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    options = {"model_dir": str(tiny_checkpoint(**config)), "task_name": task, "dataset": str(tmp_path)}
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"Global": options}))
    found = evaluate_file(file, Screen())
    assert next(iter(found)) == metric and -1 <= found[metric] <= 1
    if task == "sts-b":
        assert found[metric] == pytest.approx((found["pearson"] + found["spearman"]) / 2)


def test_batches_and_lengths_are_those_of_global(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    publish(tmp_path, "csl")
    loaded = load_model(str(tiny_checkpoint()))
    options = {"model_dir": "m", "task_name": "csl", "dataset": str(tmp_path)}
    rows = read_rows(Global(**options, batch_size=2, max_seq_length=5), loaded, trains=False)
    assert rows.batch_size == 2 and rows.train is None
    assert {len(row["input_ids"]) for row in rows.dev} == {5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "dev_data is missing; name a file, or a data set"),
        ({"dataset": "FOLDER", "task_name": "ocnli"}, "has no folder ocnli; there are afqmc"),
        ({"dataset": "absent", "task_name": "ocnli"}, "absent has no folder ocnli; write clue, glue"),
        ({"dev_data": "FOLDER/afqmc/none"}, "cannot|is no|there is no|not"),
    ],
)
def test_data_that_is_not_there(
    options: dict[str, Any], message: str, tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    publish(tmp_path, "afqmc")
    given = {name: value.replace("FOLDER", str(tmp_path)) for name, value in options.items()}
    with pytest.raises((ConfigError, DataError), match=message):
        read_rows(Global("m", **given), load_model(str(tiny_checkpoint())), trains=False)


def test_tasks_that_have_no_data_here(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    publish(tmp_path, "afqmc")
    options = Global("m", dev_data=str(tmp_path / "afqmc"))
    with pytest.raises(ConfigError, match="is a model for token-classification; a configuration file has data of CLUE"):
        read_rows(options, load_model(str(tiny_checkpoint("bert", "token-classification"))), trains=False)


@pytest.mark.document_row("004/3")
@pytest.mark.parametrize("name", ["inference.pdmodel", "__model__"])
def test_paddles_files_are_refused_with_the_way_to_convert(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"paddle")
    file = tmp_path / "run.yaml"
    content: dict[str, Any] = {"Global": {"model_dir": str(tmp_path)}, "QuantPost": None}
    for extra in ({}, {"model_filename": name, "params_filename": "inference.pdiparams"}):
        content["Global"] |= extra
        file.write_text(yaml.safe_dump(content))
        with pytest.raises(ConfigError, match=f"paddle2onnx --model_dir {tmp_path} --model_filename {name}"):
            run_file(file, tmp_path / "out", Screen())


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """`script(name)`: the `main` of an example."""
    import runpy

    monkeypatch.syspath_prepend(str(CONFIGS.parent))
    return lambda name: runpy.run_path(str(CONFIGS.parent / f"{name}.py"))["main"]


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configurations_of_the_examples(file: Path) -> None:
    from qdq.auto.config import read_config

    found = read_config(file, needs_model=True)
    assert found.strategies and found.model is not None
    if file.stem != "uie":
        assert (found.model.task_name, found.model.dataset) == (file.stem, "clue")


@pytest.mark.document_row("004/12", "004/13", "004/15")
def test_the_documents_afqmc_example(
    script: Callable[[str], Any],
    qdq: Callable[..., Any],
    small: Sequence[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The printed blocks as they are, behind a Global, on AFQMC cut to what a test can train; then its engine."""
    from .test_config import PRINTED

    data = CONFIGS.parents[3] / "shared" / "data" / "afqmc"
    if not data.is_dir():
        pytest.skip("needs ../shared/data/afqmc, which is not distributed")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afqmc").mkdir()
    for side in ("train", "dev"):
        lines = (data / f"{side}.json").read_text(encoding="utf-8").splitlines()
        alike = ([line for line in lines if f'"label": "{label}"' in line] for label in (0, 1))
        kept = [line for found, count in zip(alike, (48, 16), strict=True) for line in found[:count]]
        (tmp_path / "afqmc" / f"{side}.json").write_text("\n".join(kept) + "\n", encoding="utf-8")
    model = character_model(tmp_path / "uie-base", data)
    options = {"model_dir": str(model), "dataset": ".", "task_name": "afqmc", "batch_size": 16, "max_seq_length": 32}
    (tmp_path / "afqmc.yaml").write_text(f"{yaml.safe_dump({'Global': options})}{PRINTED}")
    result = script("run")(["--config_path=./afqmc.yaml", "--save_dir=./save_afqmc/"])
    assert [row["step"] for row in result.steps] == ["qat"] and (tmp_path / "save_afqmc" / "quant_spec.json").is_file()
    found = script("run")(["--config_path=./afqmc.yaml", "--eval"])
    assert found["accuracy"] == pytest.approx(result.baseline)
    # The engine of it, in the accuracy of the same rows
    ran = qdq(
        *("compile", "--model", "save_afqmc", "--eval-data", "afqmc/dev.json", "--out", "work", "--json"),
        *("--target", "onnxruntime", *small),
    )
    assert ran.code == 0, ran.err
    outcome = json.loads(ran.out)
    assert outcome["build"]["int8"]["encoder_linear"] == [12, 12]
    metric = outcome["accuracy"]["metric"]
    assert metric["name"] == "accuracy" and metric["int8"] == pytest.approx(result.metric, abs=0.05)
    # The metric of another model stops it
    text = (tmp_path / "afqmc.yaml").read_text().replace("0.7403", "0.9")
    (tmp_path / "afqmc.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"origin_metric is 0.9 and the given model has 0.7\d+, more than 0.05 off"):
        script("run")(["--config_path=./afqmc.yaml", "--save_dir=./other"])
    assert not (tmp_path / "other" / "training").exists()


def character_model(folder: Path, data: Path) -> Path:
    """A BERT of two small layers with the characters of AFQMC that answers "not the same", as 3 of 4 rows are."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    text = (data / "train.json").read_text(encoding="utf-8")
    characters = sorted({one for one in text if one.isalnum()})
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]) + "\n")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=64).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(vocab_size=len(characters) + 5, **sizes))
    with torch.no_grad():
        model.classifier.bias.copy_(torch.tensor([3.0, -3.0]))
    model.save_pretrained(folder)
    return folder


@pytest.mark.document_row("004/1", "004/8")
def test_run_uie(
    script: Callable[[str], Any], tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`run_uie.py --config_path='./configs/uie.yaml' --save_dir='./save_uie/'`, with quantization-aware training."""
    monkeypatch.chdir(tmp_path)
    rows = [
        {
            "prompt": "dog",
            "content": f"a small dog {word} the city",
            "result_list": [{"text": "dog", "start": 8, "end": 11}],
        }
        for word in ("finds", "likes", "sees", "wants")
    ]
    (tmp_path / "data").mkdir()
    for side in ("train", "dev"):
        (tmp_path / "data" / f"{side}.txt").write_text("\n".join(map(json.dumps, rows)) + "\n")
    config = yaml.safe_load((CONFIGS / "uie.yaml").read_text())
    config["Global"] |= {
        "model_dir": str(tiny_checkpoint("ernie", "information-extraction", num_hidden_layers=1)),
        "max_seq_length": 32,
    }
    config["TrainConfig"] |= {"epochs": 1}
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "uie.yaml").write_text(yaml.safe_dump(config))
    result = script("run_uie")(["--config_path=./configs/uie.yaml", "--save_dir=./save_uie/"])
    assert result.steps[0]["step"] == "qat"
    assert load_model("./save_uie/").task.name == "information-extraction"
    assert next(iter(script("run_uie")(["--config_path=./configs/uie.yaml", "--eval"]))) == "f1"
    with pytest.raises(ConfigError, match="is a model for information-extraction, not for text-classification"):
        script("run")(["--config_path=./configs/uie.yaml"])


@pytest.mark.parametrize(
    ("sections", "steps"),
    [
        ({"Distillation": {"loss": "soft_label"}}, ["distill"]),
        ({"Prune": {"pruned_ratio": 0.5}, "Distillation": None, "QuantPost": {"batch_nums": 1}}, ["prune", "ptq"]),
        ({"QuantPost": None, "HyperParameterOptimization": {"max_quant_count": 2, "batch_num": [1, 2]}}, ["ptq"]),
    ],
    ids=["distillation", "pruning", "search"],
)
def test_every_section_on_prompts(
    sections: dict[str, Any], steps: list[str], tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """UIE's two probabilities are distilled, pruned and searched for by span F1."""
    row = {"prompt": "dog", "content": "a small dog finds the city", "result_list": []}
    rows = [row, {**row, "result_list": [{"text": "dog", "start": 8, "end": 11}]}] * 2
    (tmp_path / "data.txt").write_text("\n".join(map(json.dumps, rows)) + "\n")
    model = str(tiny_checkpoint("ernie", "information-extraction", num_hidden_layers=1))
    file = str(tmp_path / "data.txt")
    section = {"model_dir": model, "batch_size": 2, "max_seq_length": 32, "train_data": file, "dev_data": file}
    content: dict[str, Any] = {"Global": section, **sections}
    content["TrainConfig"] = {"train_iter": 2, "eval_iter": 2, "learning_rate": 1e-3}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    result = run_file(tmp_path / "run.yaml", tmp_path / "out", Screen())
    assert [step["step"] for step in result.steps] == steps and 0 <= result.metric <= 1
    assert load_model(str(tmp_path / "out")).outputs == ("start_prob", "end_prob")


def test_the_hub(hub: Any, tiny_checkpoint: Callable[..., Path]) -> None:
    served = hub([{"sentence": "the cat", "label": 1}, {"sentence": "a dog", "label": 0}], ["negative", "positive"])
    loaded = load_model(str(tiny_checkpoint(num_hidden_layers=1)))
    rows = read_rows(Global("m", task_name="sst-2", dataset="glue"), loaded, trains=False)
    assert served.asked == ("glue", "sst2") and [row["labels"] for row in rows.dev] == [1, 0]
