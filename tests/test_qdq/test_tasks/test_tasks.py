"""The eight tasks: recognised from the checkpoint, given by name, refused without their head, and what each returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.models.auto import modeling_auto

from qdq.errors import ConfigError, ModelError
from qdq.inject import inject, quantizers
from qdq.inject.families import FAMILIES
from qdq.inject.spec import named_spec
from qdq.loading.kinds import TASKS, detect_task, task_named
from qdq.loading.model import LoadedModel, load_model

LoadTiny = Callable[..., LoadedModel]
Encode = Callable[..., dict[str, torch.Tensor]]

# output shapes for a batch of 12 texts of S tokens; the tiny vocabulary has 120 entries, multiple choice pairs texts
SHAPES: dict[str, tuple[int | str, ...]] = {
    "feature-extraction": (12, "S", 32),
    "text-classification": (12, 2),
    "token-classification": (12, "S", 2),
    "question-answering": (12, "S"),
    "fill-mask": (12, "S", 120),
    "multiple-choice": (6, 2),
    "next-sentence-prediction": (12, 2),
    "language-modeling": (12, "S", 120),
    "information-extraction": (12, "S"),
}

MAPPINGS: dict[str, Mapping[str, Any]] = {
    "feature-extraction": modeling_auto.MODEL_MAPPING_NAMES,
    "text-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token-classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "question-answering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
    "fill-mask": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "multiple-choice": modeling_auto.MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES,
    "next-sentence-prediction": modeling_auto.MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES,
    "language-modeling": modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    "information-extraction": {
        "bert": "BertUIE",
        "ernie": "ErnieUIE",
        "xlm-roberta": "XLMRobertaUIE",
    },  # of this project
}


@pytest.mark.document_row("003/8")
@pytest.mark.parametrize("task", TASKS)
def test_a_task_is_recognised_and_returns_its_outputs(task: str, load_tiny: LoadTiny, encode: Encode) -> None:
    loaded = load_tiny("bert", task)
    assert loaded.task.name == task
    assert loaded.outputs == TASKS[task].outputs
    inject(loaded.model, named_spec("qdqbert"))
    batch = encode(loaded)
    with torch.no_grad():
        outputs = loaded.module()(**batch)
    assert len(outputs) == len(loaded.outputs)
    length = batch["input_ids"].shape[-1]
    for output in outputs:
        assert tuple(output.shape) == tuple(length if size == "S" else size for size in SHAPES[task])
        assert output.dtype == torch.float32
        assert bool(output.isfinite().all())
    assert len(quantizers(loaded.model)) == 40


@pytest.mark.parametrize("task", TASKS)
def test_every_class_transformers_has_for_a_family_is_recognised(task: str) -> None:
    names = [MAPPINGS[task][family] for family in FAMILIES if family in MAPPINGS[task]]
    assert names
    for name in names:
        assert detect_task([name], "folder").name == task


def test_an_architecture_that_says_nothing_is_an_error_that_tells_what_to_do() -> None:
    for architectures in (None, [], ["BertForSomethingElse"]):
        with pytest.raises(ModelError, match=r"my-model: cannot tell the task .* give --task \(TASK=\)"):
            detect_task(architectures, "my-model")
    assert detect_task(["Unknown", "BertForMaskedLM"], "folder").name == "fill-mask"


def test_a_misspelt_task_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'text-classification'"):
        task_named("text-clasification")


def test_a_given_task_wins_over_the_detected_one(tiny_checkpoint: Callable[..., Path]) -> None:
    loaded = load_model(str(tiny_checkpoint("bert", "text-classification")), task="feature-extraction")
    assert (loaded.task.name, loaded.outputs) == ("feature-extraction", ("last_hidden_state",))


@pytest.mark.parametrize("task", sorted(set(TASKS) - {"feature-extraction", "question-answering"}))
def test_a_task_whose_head_the_checkpoint_lacks_is_refused(task: str, tiny_checkpoint: Callable[..., Path]) -> None:
    folder = tiny_checkpoint("bert", "question-answering")
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), task=task)
    for words in (str(folder), "has no weights", f"not fine-tuned for {task}", "--task"):
        assert words in str(caught.value)


def without_quantization(loaded: LoadedModel) -> LoadedModel:
    inject(loaded.model, named_spec("qdqbert"))
    for point in quantizers(loaded.model).values():
        point.disable_quant()
    return loaded


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie"])
def test_a_language_model_head_is_causal_as_in_transformers(
    model_type: str, load_tiny: LoadTiny, encode: Encode
) -> None:
    original = load_tiny(model_type, "language-modeling")
    original.model.set_attn_implementation("eager")
    loaded = without_quantization(load_tiny(model_type, "language-modeling"))
    batch = encode(original)
    tokens = batch["attention_mask"].bool()
    with torch.no_grad():
        actual, expected = loaded.module()(**batch)[0], original.module()(**batch)[0]
        torch.testing.assert_close(actual[tokens], expected[tokens], rtol=0, atol=1e-5)
        no_mask = loaded.model(batch["input_ids"]).logits, original.model(batch["input_ids"]).logits
        torch.testing.assert_close(*no_mask, rtol=0, atol=1e-5)
        changed = {**batch, "input_ids": batch["input_ids"].clone()}
        changed["input_ids"][:, 5:] = 7
        later = loaded.module()(**changed)[0]
    assert torch.equal(later[:, :5], actual[:, :5])
    assert not torch.equal(later[:, 5:], actual[:, 5:])


def test_a_language_model_that_is_no_decoder_sees_both_sides(load_tiny: LoadTiny, encode: Encode) -> None:
    original = load_tiny("bert", "language-modeling", is_decoder=False)
    loaded = without_quantization(load_tiny("bert", "language-modeling", is_decoder=False))
    batch = encode(original)
    tokens = batch["attention_mask"].bool()
    with torch.no_grad():
        actual, expected = loaded.module()(**batch)[0], original.module()(**batch)[0]
    torch.testing.assert_close(actual[tokens], expected[tokens], rtol=0, atol=1e-5)


def test_each_choice_is_scored_by_its_own_text(load_tiny: LoadTiny, encode: Encode) -> None:
    loaded = load_tiny("bert", "multiple-choice")
    batch = encode(loaded)
    assert batch["input_ids"].dim() == 3
    swapped = {name: x.flip(1) for name, x in batch.items()}
    with torch.no_grad():
        scores, other = loaded.module()(**batch)[0], loaded.module()(**swapped)[0]
    torch.testing.assert_close(scores.flip(1), other)
