"""Cross-encoders as releases of sentence-transformers save them: the activation is found wherever it stands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qdq.errors import ModelError
from qdq.loading.model import load_model
from qdq.tasks.heads import head_of_model

SIGMOID = "torch.nn.modules.activation.Sigmoid"
Folder = Callable[..., Path]


@pytest.fixture
def folder(tiny_checkpoint: Callable[..., Path], tmp_path: Path) -> Folder:
    """A model with one logit, and the files of release 6.2 beside it; changes by file name, None leaves it out."""

    def made(**changes: Any) -> Path:
        place = Path(shutil.copytree(tiny_checkpoint("bert", num_hidden_layers=1, num_labels=1), tmp_path / "reranker"))
        files: dict[str, Any] = {
            "modules": [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.Transformer"}],
            "config_sentence_transformers": {
                "model_type": "CrossEncoder",
                "activation_fn": SIGMOID,
                "prompts": {},
                "default_prompt_name": None,
            },
            "sentence_bert_config": {
                "transformer_task": "sequence-classification",
                "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
                "module_output_name": "scores",
            },
        }
        for name, content in files.items():
            change = changes.get(name, {})
            if change is not None:
                content = change if isinstance(change, list) else {**content, **change} if change else content
                (place / f"{name}.json").write_text(json.dumps(content))
        return place

    return made


def test_the_activation_is_read_from_the_file_of_the_current_release(folder: Folder, tmp_path: Path) -> None:
    loaded = load_model(str(folder()))
    assert head_of_model(loaded.model).activation == "sigmoid"
    loaded.model.config.save_pretrained(tmp_path / "again")  # later stages read config.json alone
    assert json.loads((tmp_path / "again/config.json").read_text())["sentence_transformers"]["activation_fn"] == SIGMOID


def test_the_file_decides_over_config_json_as_in_the_library(folder: Folder) -> None:
    place = folder(config_sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})
    config = json.loads((place / "config.json").read_text()) | {"sentence_transformers": {"activation_fn": SIGMOID}}
    (place / "config.json").write_text(json.dumps(config))
    assert head_of_model(load_model(str(place)).model).asked == "identity"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"modules": [{"type": "x.Transformer", "path": ""}, {"type": "x.Dense", "path": "1_Dense"}]},
            "the chain Transformer -> Dense of a cross-encoder is not supported",
        ),
        ({"modules": [{"type": "x.Transformer", "path": "0_T"}]}, "one Transformer in this folder is"),
        ({"sentence_bert_config": {"transformer_task": "text-generation"}}, "transformer_task 'text-generation'"),
        ({"sentence_bert_config": {"do_lower_case": True}}, "do_lower_case is not supported for a cross-encoder"),
        (
            {"config_sentence_transformers": {"prompts": {"q": "rank: "}, "default_prompt_name": "q"}},
            "the default prompt 'q' is not supported",
        ),
        ({"config_sentence_transformers": {"activation_fn": 3}}, "activation_fn is 3"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(changes: dict[str, Any], said: str, folder: Folder) -> None:
    with pytest.raises(ModelError, match=said):
        load_model(str(folder(**changes)))


def test_an_embedders_file_beside_a_classifier_changes_nothing(folder: Folder) -> None:
    place = folder(config_sentence_transformers={"model_type": "SentenceTransformer"})
    assert head_of_model(load_model(str(place)).model).asked == ""
