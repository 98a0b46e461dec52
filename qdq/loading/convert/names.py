"""Names of weights: PaddleNLP's and ERNIE-M's own as those of the transformers class that computes the same."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from qdq.errors import ModelError


@dataclass(frozen=True)
class Source:
    """A family of models of another library, and the one that computes the same in transformers.

    Attributes:
        prefix: name of the encoder below a task model, which is the first part of its weights' names.
        model_type: of the transformers family.
        classes: beginning of the transformers classes' names.
        base: name of the encoder below one of these.
        eps: epsilon of every LayerNorm, which the library sets in its code.
        padding: id of padding where the configuration names none.
    """

    prefix: str
    model_type: str
    classes: str
    base: str
    eps: float = 1e-12
    padding: int = 0


# By the beginning of PaddleNLP's class names
SOURCES: Mapping[str, Source] = {
    "Bert": Source("bert", "bert", "Bert", "bert"),
    "Ernie": Source("ernie", "ernie", "Ernie", "ernie"),
    "ErnieGram": Source("ernie_gram", "ernie", "Ernie", "ernie", eps=1e-5),
    "ErnieM": Source("ernie_m", "xlm-roberta", "XLMRoberta", "roberta", eps=1e-5, padding=1),
    "PPMiniLM": Source("ppminilm", "bert", "Bert", "bert"),
    "TinyBert": Source("tinybert", "bert", "Bert", "bert"),
    "Roberta": Source("roberta", "bert", "Bert", "bert"),  # the Chinese ones: BERT with other training
    "UIE": Source("ernie", "ernie", "Ernie", "ernie"),
    "UIEM": Source("ernie_m", "xlm-roberta", "XLMRoberta", "roberta", eps=1e-5, padding=1),
}
MARKS = "UIE"  # ending of the classes with a start and an end head, which are this project's
TASKS = {
    "Model": "Model",
    "ForSequenceClassification": "ForSequenceClassification",
    "ForTokenClassification": "ForTokenClassification",
    "ForQuestionAnswering": "ForQuestionAnswering",
    "ForMultipleChoice": "ForMultipleChoice",
}
POSITION_IDS = re.compile(r"(^|\.)position_ids$")  # a buffer that counts from zero

LAYER = r"^encoder\.layers\.(\d+)\."
ENCODER = (
    (r"^embeddings\.layer_norm\.", "embeddings.LayerNorm."),
    (LAYER + r"self_attn\.(?:self_attn\.)?q_proj\.", r"encoder.layer.\1.attention.self.query."),
    (LAYER + r"self_attn\.(?:self_attn\.)?k_proj\.", r"encoder.layer.\1.attention.self.key."),
    (LAYER + r"self_attn\.(?:self_attn\.)?v_proj\.", r"encoder.layer.\1.attention.self.value."),
    (LAYER + r"self_attn\.out_proj\.", r"encoder.layer.\1.attention.output.dense."),
    (LAYER + r"norm1\.", r"encoder.layer.\1.attention.output.LayerNorm."),
    (LAYER + r"linear1\.", r"encoder.layer.\1.intermediate.dense."),
    (LAYER + r"linear2\.", r"encoder.layer.\1.output.dense."),
    (LAYER + r"norm2\.", r"encoder.layer.\1.output.LayerNorm."),
    (r"^(embeddings\.\w+_embeddings\.weight)$", r"\1"),
    (r"^(pooler\.dense\.)", r"\1"),
)


def source_of(class_name: str, where: str) -> tuple[Source, str]:
    """The family of one of PaddleNLP's class names, and the ending of its class in transformers.

    A class for another task is read as its bare encoder. Raises ModelError for an unknown family.
    """
    for start in sorted(SOURCES, key=len, reverse=True):
        ending = class_name.removeprefix(start)
        if class_name.startswith(start) and start.startswith(MARKS) and not ending:
            return SOURCES[start], MARKS
        if class_name.startswith(start) and re.match(r"For[A-Z]|Model$|$", ending):
            return SOURCES[start], TASKS.get(ending, "Model")
    raise ModelError(
        f"{where}: {class_name or 'a model without a class name'} is not converted; known are those of "
        f"{', '.join(SOURCES)} (…Model, …For{', …For'.join(task[3:] for task in TASKS if task != 'Model')})"
    )


def renamed(names: Iterable[str], source: Source, ending: str) -> tuple[dict[str, str], list[str]]:
    """The transformers names of `names`, and those of heads that the class `ending` does not have, sorted.

    Raises ModelError for a weight of the encoder that no rule knows.
    """
    bare, found, left = ending == "Model", {}, []
    for name in names:
        if POSITION_IDS.search(name):
            continue
        inner = re.sub(r"^encoder\.(?=(embeddings|encoder|pooler)\.)", "", name.removeprefix(f"{source.prefix}."))
        new = next((re.sub(rule, to, inner) for rule, to in ENCODER if re.match(rule, inner)), None)
        if new is not None and ending == MARKS and new.startswith("pooler."):
            left.append(name)
        elif new is not None:
            found[name] = new if bare else f"{source.base}.{new}"
        elif inner.startswith(("embeddings.", "encoder.")):
            raise ModelError(f"{name}: is a weight of the encoder that {source.classes}Model does not compute")
        elif re.fullmatch(r"(classifier|qa_outputs)\.(weight|bias)", name) and not bare:
            head = "qa_outputs" if ending == "ForQuestionAnswering" else "classifier"
            found[name] = f"{head}.{name.rpartition('.')[2]}"
        elif re.fullmatch(r"linear_(start|end)\.(weight|bias)", name) and ending == MARKS:
            found[name] = name
        else:
            left.append(name)
    # XLM-R's classifier has the pooler's linear inside, under a name of its own
    if source.base == "roberta" and ending == "ForSequenceClassification":
        for name, new in found.items():
            new = new.replace("roberta.pooler.dense.", "classifier.dense.")
            found[name] = re.sub(r"^classifier\.(?!dense\.)", "classifier.out_proj.", new)
    return found, sorted(left)
