"""The outputs of a served model in sentences: what comes out of the graph, and what a client does with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from qdq.base.activations import ACTIVATIONS
from qdq.base.choices import INFORMATION_EXTRACTION
from qdq.tasks.heads import Head, head_of_model

if TYPE_CHECKING:
    from qdq.loading.model import LoadedModel

_CLASSES = "logits are raw, one per class: the largest is the answer, a softmax over the classes gives probabilities"
# By task, where it alone says it
_SAID: Mapping[str, str] = {
    "token-classification": "logits are raw, one per class for each token: the largest is the token's class, a softmax "
    "over the classes gives probabilities; a word has the class of its first token",
    "question-answering": "start_logits and end_logits are raw, one per token: the answer runs from the start to the "
    "end whose sum is largest, and is none where both are largest at token 0",
    INFORMATION_EXTRACTION: "send the prompt and the content as a pair; start_prob and end_prob are the probabilities "
    "of each token to start and to end an answer: those above 0.5 count, and each end belongs to the last start before "
    "it (qdq.tasks.spans.paired)",
    "fill-mask": "logits are raw, one per entry of the vocabulary for each token: a softmax over them gives "
    "probabilities",
    "language-modeling": "logits are raw, one per entry of the vocabulary for each token: a softmax over them gives "
    "the probabilities of the next token",
    "multiple-choice": "logits are raw, one per choice: the largest is the answer, a softmax over the choices gives "
    "probabilities",
    "next-sentence-prediction": f"{_CLASSES}; class 0 says that the second text follows the first",
}
_INPUTS = "token_type_ids are zeros where the tokenizer makes none"


def said_of(loaded: LoadedModel) -> tuple[str, ...]:
    """Sentences, a line each, on what a client of the model sends and gets: the graph applies no activation."""
    inputs = (_INPUTS,) if "token_type_ids" in loaded.inputs else ()
    if loaded.task.name == "feature-extraction":
        return (*_embedding(loaded), *inputs)
    if loaded.task.name == "text-classification":
        return (_classifier(head_of_model(loaded.model), loaded.labels), *inputs)
    return (_SAID[loaded.task.name], *inputs)


def _embedding(loaded: LoadedModel) -> tuple[str, ...]:
    if loaded.pooling is None:
        return ("last_hidden_state is one vector per token, as the encoder returns it: nothing pools or normalizes it",)
    length = "of length 1, so that a dot product is the cosine" if loaded.pooling.normalize else "of any length"
    if loaded.chain and loaded.chain.similarity != "cosine":
        length = f"{length}; two are compared by the {loaded.chain.similarity} similarity"
    said = f"sentence_embedding is one vector per text ({loaded.pooling.mode} pooling), {length}"
    prompt = loaded.chain.says() if loaded.chain else ""
    return (said, f"what it was compiled for: {prompt}") if prompt else (said,)


def _classifier(head: Head, labels: tuple[str, ...]) -> str:
    if head.kind == "multi-label":
        shares = ", ".join(f"{share:g}" for share in head.thresholds)
        above = shares if len(head.thresholds) == 1 else f"{shares} ({', '.join(labels)})"
        return (
            "logits are raw, one per class: the sigmoid of each is the probability of that class, and a text has every "
            f"class above {above}"
        )
    if head.kind == "classes":
        return _CLASSES
    if not head.asked or head.asked == "identity":
        return "logits are the scores themselves: no activation belongs behind them"
    known = "" if head.asked in ACTIVATIONS else ", which qdq evaluate does not apply either"
    asked = f"the model's config.json asks for {head.asked} behind them"
    return f"logits are raw scores: {asked}, which the client applies{known}"
