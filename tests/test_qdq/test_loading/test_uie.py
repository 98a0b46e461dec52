"""The UIE class: what it computes, and the names of weights in its PyTorch conversions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from qdq.errors import ModelError
from qdq.loading.model import load_model, quiet_transformers
from qdq.loading.uie import UIE, mark_loss

Checkpoint = Callable[..., Path]
IDS = torch.tensor([[2, 7, 9, 3, 12, 20, 3], [2, 8, 3, 11, 3, 0, 0]])
MASK = (IDS != 0).long()


def probabilities(model: Any) -> torch.Tensor:
    """Start and end probabilities, [2, B, S]."""
    with torch.no_grad():
        output = model.eval()(input_ids=IDS, attention_mask=MASK)
    return torch.stack([output.start_prob, output.end_prob])


@pytest.mark.parametrize("family", ["bert", "ernie", "roberta", "xlm-roberta"])
def test_heads_on_every_encoder(family: str, tiny_checkpoint: Checkpoint) -> None:
    loaded = load_model(str(tiny_checkpoint(family, "information-extraction")))
    assert loaded.task.name == "information-extraction" and loaded.outputs == ("start_prob", "end_prob")
    model = loaded.model
    states = getattr(model, model.base_model_prefix)(IDS, attention_mask=MASK)[0]
    for head, found in zip((model.linear_start, model.linear_end), probabilities(model), strict=True):
        torch.testing.assert_close(found, (states @ head.weight[0] + head.bias).sigmoid())


def test_the_loss_is_the_mean_of_both_cross_entropies(tiny_checkpoint: Checkpoint) -> None:
    model = load_model(str(tiny_checkpoint("ernie", "information-extraction"))).model
    start, end = torch.zeros(IDS.shape), torch.zeros(IDS.shape)
    start[0, 4] = end[0, 5] = start[1, 3] = end[1, 3] = 1
    loss = model(input_ids=IDS, attention_mask=MASK, start_positions=start, end_positions=end).loss
    real = MASK.bool()
    sides = zip(probabilities(model), (start, end), strict=True)
    expected = [functional.binary_cross_entropy(found[real], marks[real]) for found, marks in sides]
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    assert model(input_ids=IDS).loss is None
    torch.testing.assert_close(mark_loss(torch.zeros(1, 2), torch.ones(1, 2)), torch.tensor(2.0).log())


def converted(source: Path, target: Path, encoder: str, legacy: bool = False, pickled: bool = False) -> Path:
    """A checkpoint under the names that a conversion writes."""
    shutil.copytree(source, target)
    state = load_file(target / "model.safetensors")
    renamed = {name.replace("ernie.", f"{encoder}.", 1): value for name, value in state.items()}
    if legacy:
        renamed = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
            for name, value in renamed.items()
        }
    renamed[f"{encoder}.pooler.dense.weight"] = torch.zeros(32, 32)
    (target / "model.safetensors").unlink()
    if pickled:
        torch.save(renamed, target / "pytorch_model.bin")
    else:
        from safetensors.torch import save_file

        save_file(renamed, target / "model.safetensors", metadata={"format": "pt"})
    return target


@pytest.mark.parametrize("pickled", [False, True])
def test_uie_pytorch(pickled: bool, tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    """Its config.json names no family, the encoder is ``encoder.``, norms have gamma and beta."""
    source = tiny_checkpoint("ernie", "information-extraction", use_task_id=True, task_type_vocab_size=3)
    expected = probabilities(load_model(str(source)).model)
    folder = converted(source, tmp_path / "uie_base_pytorch", "encoder", legacy=True, pickled=pickled)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kept = {name: value for name, value in config.items() if name not in ("model_type", "transformers_version")}
    (folder / "config.json").write_text(json.dumps({**kept, "architectures": ["UIE"]}), encoding="utf-8")
    if pickled:
        with pytest.raises(ModelError, match="--allow-pickle"):
            load_model(str(folder))
    loaded = load_model(str(folder), allow_pickle=pickled)
    assert loaded.model.config.model_type == "ernie" and type(loaded.model).__name__ == "ErnieUIE"
    torch.testing.assert_close(probabilities(loaded.model), expected)
    with quiet_transformers():
        torch.testing.assert_close(probabilities(UIE.from_pretrained(folder)), expected)


@pytest.mark.parametrize("architecture", ["UIE", "UIEModel", "UIETorch"])
def test_names_of_other_conversions(
    architecture: str, tiny_checkpoint: Checkpoint, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tiny_checkpoint("ernie", "information-extraction")
    folder = converted(source, tmp_path / "uie", "ernie")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "architectures": [architecture]}), encoding="utf-8")
    found = probabilities(load_model(str(folder)).model)
    torch.testing.assert_close(found, probabilities(load_model(str(source)).model))
    assert "no class of transformers" not in caplog.text and "was taken off" not in caplog.text


def test_saved_again_it_has_its_own_names(tiny_checkpoint: Checkpoint, tmp_path: Path) -> None:
    source = tiny_checkpoint("ernie", "information-extraction")
    folder = converted(source, tmp_path / "uie", "encoder", legacy=True)
    with quiet_transformers():
        UIE.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert set(load_file(tmp_path / "again" / "model.safetensors")) == set(load_file(source / "model.safetensors"))


def test_an_encoder_is_no_uie(tiny_checkpoint: Checkpoint) -> None:
    with pytest.raises(ModelError, match="not fine-tuned for information-extraction"):
        load_model(str(tiny_checkpoint("ernie", "feature-extraction")), task="information-extraction")
