"""The form of a served text model: everything the server has to know of it, in one JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from qdq.base.choices import INFORMATION_EXTRACTION

FILE, TOKENIZER = "text.json", "tokenizer.json"
QA, UIE = "question-answering", INFORMATION_EXTRACTION
TOKEN_LEVEL = ("token-classification", QA, UIE, "fill-mask", "language-modeling")
ON_CONTEXT = (QA, UIE)  # tasks that ask something of a context, which alone is cut
CHANGEABLE = ("threads", "characters", "queue_size")  # of the server, not of the model: parameters of config.pbtxt
PAIRED = ("text-classification", "next-sentence-prediction")  # tasks whose input may be two texts


@dataclass(frozen=True)
class TextForm:
    """One text model.

    Attributes:
        task: the task's name, as `--task` takes it.
        engine, files: target that opens the engine, and its files in the version folder, the opened one first.
        threads, hint: of the engine, as it was verified and timed.
        inputs, outputs: names of a padded batch's; `types` are the numpy types of the engine's own inputs.
        sequence: most tokens of a text, special ones included.
        characters: most characters of a text; longer ones are refused before they are tokenized.
        queue_size: requests that may wait, 0 for any number.
        packed: the engine leaves padding out itself, so that a batch of any lengths goes to it whole.
        typed: the tokenizer makes token types; else they are zeros.
        pad: ids that padding has, {"input_ids": 0, "token_type_ids": 0}; `pad_left`: it stands in front.
        prompt: put in front of every text.
        labels: class names, () where outputs are numbers.
        head: "classes", "multi-label" or "scores"; `activation` turns logits into probabilities or scores.
        thresholds: of a multi-label head, one for all classes or one each.
        entities: labels are tags of entities (B-PER), not a class per word.
        pooled: the engine returns one embedding per text; else its token states are averaged.
        normalized: embeddings have length 1.
        dimensions: shorter embeddings that the model was trained for (Matryoshka).
        mask: id of the token that fill-mask fills.
        buckets: lengths that batches are padded to, () for the longest text's.
        sample: a text to try the model with, one string per input.
    """

    task: str
    engine: str
    files: tuple[str, ...]
    threads: int
    hint: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    types: Mapping[str, str]
    sequence: int
    characters: int
    packed: bool
    typed: bool
    pad: Mapping[str, int]
    pad_left: bool
    sample: Mapping[str, tuple[str, ...]]
    prompt: str = ""
    labels: tuple[str, ...] = ()
    head: str = "classes"
    activation: str = "softmax"
    thresholds: tuple[float, ...] = ()
    entities: bool = True
    pooled: bool = True
    normalized: bool = True
    dimensions: tuple[int, ...] = ()
    mask: int | None = None
    buckets: tuple[int, ...] = ()
    queue_size: int = 256

    @property
    def choices(self) -> bool:
        """True when a sample is several texts, [batch, choices, sequence]."""
        return self.task == "multiple-choice"

    @property
    def by_token(self) -> tuple[str, ...]:
        """Outputs with a value per token."""
        return self.outputs if self.task in TOKEN_LEVEL or not self.pooled else ()

    @classmethod
    def read(cls, path: Path) -> TextForm:
        """Read text.json. Raises ValueError naming the file when it is not this version's."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            return cls(**{name: _frozen(value) for name, value in found.items()})
        except (OSError, ValueError, TypeError) as error:
            raise ValueError(f"{path} cannot be read ({error}); deploy the model again") from error

    def changed(self, parameters: Mapping[str, Any]) -> TextForm:
        """The form with the CHANGEABLE values that the parameters of config.pbtxt give."""
        found = {name: value["string_value"] for name, value in parameters.items() if name in CHANGEABLE}
        wrong = next((name for name, value in found.items() if not value.isdecimal()), None)
        if wrong is not None:
            raise ValueError(f"config.pbtxt: parameter {wrong} is {found[wrong]!r}; it is a whole number")
        return replace(self, **{name: int(value) for name, value in found.items()})  # type: ignore[arg-type]

    def as_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        return asdict(self)


def _frozen(value: Any) -> Any:
    """JSON's lists as tuples."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value
