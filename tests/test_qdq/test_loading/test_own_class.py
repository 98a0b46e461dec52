"""Classes of the user's own: named, imported then, with outputs of their own names; never run unasked."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from qdq.errors import ConfigError, ModelError
from qdq.loading.model import load_model
from qdq.loading.own_class import import_class, record_class, reference_to
from qdq.loading.reference import open_reference
from qdq.loading.runner import TorchRunner

OWN = Path(__file__).resolve().parents[1] / "own_models.py"
Save = Callable[..., Path]


@pytest.fixture
def save(tiny_checkpoint: Callable[..., Path], tmp_path: Path, load_tiny: Callable[..., Any]) -> Save:
    """`save(name)`: a folder with a random model of that class of own_models.py, as `save_pretrained` leaves it."""

    def saved(name: str, **config: Any) -> Path:
        loaded = load_tiny("bert", "feature-extraction", num_hidden_layers=1)
        cls = import_class(f"{OWN}:{name}")
        torch.manual_seed(3)
        for key, value in config.items():
            setattr(loaded.model.config, key, value)
        cls(loaded.model.config).save_pretrained(tmp_path / name)
        loaded.tokenizer.save_pretrained(tmp_path / name)
        return tmp_path / name

    return saved


def outputs(folder: Path, task: str, name: str) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """The loaded model, and the outputs of ours and of the class by itself on two texts with padding."""
    loaded = load_model(str(folder), task, model_class=f"{OWN}:{name}")
    ids = torch.tensor([[2, 7, 9, 11, 3], [2, 8, 3, 0, 0]])
    feeds = {"input_ids": ids, "attention_mask": (ids != 0).long(), "token_type_ids": torch.zeros_like(ids)}
    fed = {key: feeds[key].numpy() for key in loaded.inputs}
    reference = open_reference(folder, task, model_class=f"{OWN}:{name}")
    return loaded, TorchRunner(loaded.module())(fed), reference(fed)


@pytest.mark.document_row("000/21")
@pytest.mark.parametrize(
    ("name", "task", "names", "by_token"),
    [
        ("MeanClassifier", "text-classification", ("logits",), ()),
        ("MeanClassifier", "feature-extraction", ("sentence_embedding",), ()),
        ("Spans", "question-answering", ("start_logits", "end_logits"), ("start_logits", "end_logits")),
        ("Spans", "feature-extraction", ("output_0", "output_1"), ("output_0", "output_1")),
        ("Intents", "feature-extraction", ("intent", "slots"), ("slots",)),
    ],
)
def test_outputs_have_names_of_their_own(
    save: Save, name: str, task: str, names: tuple[str, ...], by_token: tuple[str, ...]
) -> None:
    loaded, ours, own = outputs(save(name), task, name)
    assert (loaded.outputs, loaded.token_level) == (names, by_token)
    assert ("token_type_ids" in loaded.inputs) == (name != "Intents")  # its forward takes none
    assert tuple(ours) == tuple(own) == names
    for key in names:
        torch.testing.assert_close(torch.from_numpy(ours[key]), torch.from_numpy(own[key]))


def test_a_class_may_list_the_names_of_its_outputs(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_class(f"{OWN}:Spans"), "output_names", ("start_prob", "end_prob"), raising=False)
    loaded, *_ = outputs(save("Spans"), "feature-extraction", "Spans")
    assert loaded.outputs == ("start_prob", "end_prob")


def test_a_task_that_reads_other_outputs_is_refused(save: Save) -> None:
    with pytest.raises(ModelError, match=r"Intents: text-classification reads logits.*returns intent, slots"):
        load_model(str(save("Intents")), "text-classification", model_class=f"{OWN}:Intents")
    with pytest.raises(ModelError, match="takes no attention_mask"):
        load_model(str(save("MeanClassifier")), "text-classification", model_class=f"{OWN}:Maskless")
    with pytest.raises(ModelError, match=r"no attribute 'bert'.*base_model_prefix = 'trunk'"):
        load_model(str(save("Misplaced")), "feature-extraction", model_class=f"{OWN}:Misplaced")
    with pytest.raises(ModelError, match=r"4 of its weights are not used by MeanClassifier \(end.bias"):
        load_model(str(save("Spans")), "text-classification", model_class=f"{OWN}:MeanClassifier")


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("MeanClassifier", "is no FILE.py:CLASS"),
        (f"{OWN}:Mean", r"has no class Mean; it has MeanClassifier, Spans"),
        ("absent.py:A", "absent.py is no Python file"),
        ("no_such_package.models:A", "cannot import no_such_package.models"),
    ],
)
def test_names_that_lead_nowhere(named: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        import_class(named)


def test_what_is_no_model_or_cannot_be_imported(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_thing\n", encoding="utf-8")
    (tmp_path / "plain.py").write_text("class A:\n    pass\n", encoding="utf-8")
    with pytest.raises(ModelError, match=r"broken.py cannot be imported \(ModuleNotFoundError"):
        import_class(f"{tmp_path / 'broken.py'}:A")
    assert "broken" not in sys.modules
    with pytest.raises(ModelError, match="is no subclass"):
        import_class(f"{tmp_path / 'plain.py'}:A")


def test_a_checkpoint_says_its_class_and_runs_nothing_unasked(save: Save) -> None:
    folder = save("MeanClassifier")
    record_class(folder, import_class(f"{OWN}:MeanClassifier"))
    assert (folder / "own_models.py").read_text() == OWN.read_text()
    (folder / "own_models.py").write_text("raise SystemExit('it ran')\n", encoding="utf-8")
    with pytest.raises(ModelError, match=rf"code that is not run unless you name it: give --model-class \S+{OWN.name}"):
        load_model(str(folder), "text-classification")
    assert load_model(str(folder), "text-classification", model_class=f"{OWN}:MeanClassifier").outputs == ("logits",)


def test_a_class_that_nobody_has_is_said_to_be_read_as_another(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its name ends as transformers' own do, so the task is told, and its forward would be replaced without a word."""
    folder = tmp_path / "mine"
    shutil.copytree(tiny_checkpoint(), folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["MyBertForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    load_model(str(folder))
    assert "saved from MyBertForSequenceClassification, which is no class of transformers" in caplog.text
    caplog.clear()
    load_model(str(tiny_checkpoint()))
    assert "--model-class" not in caplog.text


def test_a_file_is_not_run_twice_and_imports_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("COUNT = 0\n", encoding="utf-8")
    text = "import beside\nbeside.COUNT += 1\nfrom transformers import BertModel\nclass Own(BertModel):\n    pass\n"
    (tmp_path / "named.py").write_text(text, encoding="utf-8")
    found = {import_class(f"{tmp_path / 'named.py'}:Own") for _ in range(2)}
    assert len(found) == 1
    assert sys.modules["beside"].COUNT == 1
    assert reference_to(found.pop()) == f"{tmp_path / 'named.py'}:Own"


def test_a_class_of_a_function_has_no_name() -> None:
    class Hidden(import_class(f"{OWN}:MeanClassifier")):  # type: ignore[misc]
        pass

    assert reference_to(Hidden) is None


def test_classes_of_packages_are_named_by_their_module() -> None:
    module: ModuleType = importlib.import_module("transformers.models.bert.modeling_bert")
    assert reference_to(module.BertModel) == "transformers.models.bert.modeling_bert:BertModel"
