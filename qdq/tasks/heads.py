"""Reading of a classifier's logits: one class, several classes at once, or scores; its own activation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qdq.base.activations import ACTIVATIONS, softmax
from qdq.base.choices import MULTI_LABEL, MULTI_LABEL_TYPE, REGRESSION, THRESHOLD_KEYS
from qdq.errors import ModelError
from qdq.loading.own_class import is_own

Kind = Literal["classes", "multi-label", "scores", "marks"]  # marks: UIE's probabilities of starts and ends
Values = NDArray[np.float64]
MARKS = "UIE"  # ending of the classes with a start and an end head
THRESHOLD = 0.5  # probability above which a class of a multi-label model counts, transformers' and scikit-learn's


@dataclass(frozen=True)
class Head:
    """The rule by which logits [..., classes] are read.

    Attributes:
        kind: one class per text, any number of classes, or numbers (regression, rerankers with one logit).
        asked: the activation config.json names for scores, "" for none.
        thresholds: probabilities above which a class of a multi-label head counts: one for all classes, or one each.
    """

    kind: Kind
    asked: str = ""
    thresholds: tuple[float, ...] = (THRESHOLD,)

    @property
    def activation(self) -> str:
        """The function that turns logits into probabilities or scores: softmax, sigmoid, …, identity."""
        if self.kind == "scores":
            return self.asked if self.asked in ACTIVATIONS else "identity"
        return "sigmoid" if self.kind == "multi-label" else "softmax"

    @property
    def compared_as(self) -> str:
        """The name under which `engines.compare` knows this reading, "" for one class per text."""
        return {"multi-label": MULTI_LABEL, "scores": REGRESSION}.get(self.kind, "")

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what a reader of scores has to know: the graph ends with the logits."""
        if self.kind != "scores" or not self.asked:
            return ()
        if self.asked not in ACTIVATIONS:
            return (f"config.json asks for the activation {self.asked}, which is not applied here: scores are logits",)
        return (f"config.json asks for {self.asked} behind the logit: scores here have it, the engine returns logits",)

    @property
    def cuts(self) -> tuple[float, ...]:
        """The thresholds as logits; () for a head of another kind."""
        return tuple(math.log(t / (1 - t)) for t in self.thresholds) if self.kind == "multi-label" else ()

    def counts(self, probabilities: Values) -> NDArray[np.bool_]:
        """Classes that a text has, by their probabilities [..., classes]."""
        return np.asarray(probabilities > np.array(self.thresholds))

    def read(self, logits: Values) -> Values:
        """Probabilities or scores of logits [..., classes], in float64."""
        values = np.asarray(logits, dtype=np.float64)
        if self.activation == "softmax":
            return softmax(values)
        return np.asarray(ACTIVATIONS[self.activation](values))


def head_of(config: Mapping[str, Any], classes: int) -> Head:
    """The head of a text classifier with `classes` logits, by the values of its config.json.

    transformers' `problem_type` decides; without one, a single logit is a score. The activation is the one that
    sentence-transformers' CrossEncoder writes: `activation_fn`, in older files `sbert_ce_default_activation_function`.
    Raises ModelError for thresholds that are no probabilities, or not as many as classes.
    """
    kind = config.get("problem_type")
    if kind == MULTI_LABEL_TYPE:
        return Head("multi-label", thresholds=_thresholds(config, classes))
    if kind == "regression" or classes == 1:
        return Head("scores", _activation(config))
    return Head("classes")


def _thresholds(config: Mapping[str, Any], classes: int) -> tuple[float, ...]:
    """The threshold of all classes, or one for each; by name or in their order."""
    key = next((key for key in THRESHOLD_KEYS if config.get(key) is not None), None)
    if key is None:
        return (THRESHOLD,)
    value = config[key]
    if isinstance(value, Mapping):
        names = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
        value = [value.get(names.get(index, f"LABEL_{index}")) for index in range(classes)]
    found = value if isinstance(value, list) else [value]
    probable = all(isinstance(one, int | float) and not isinstance(one, bool) and 0 < one < 1 for one in found)
    if not probable or (isinstance(value, list) and len(found) != classes):
        raise ModelError(
            f"config.json: {key} is {config[key]!r}; give one probability between 0 and 1 for all classes, or one for "
            f"each of the {classes}, in their order or by their names"
        )
    return tuple(map(float, found))


def _activation(config: Mapping[str, Any]) -> str:
    own = config.get("sentence_transformers")
    named = own.get("activation_fn") if isinstance(own, Mapping) else None
    named = named or config.get("sbert_ce_default_activation_function")
    return str(named).rpartition(".")[2].removesuffix("()").lower() if named else ""


def head_of_model(model: Any) -> Head:
    """Tell how the outputs of a model are read; one class each for anything but a sequence classifier and UIE.

    The config decides for a class of the user's own.
    """
    if type(model).__name__.endswith(MARKS):
        return Head("marks")
    if not (is_own(type(model)) or type(model).__name__.endswith("ForSequenceClassification")):
        return Head("classes")
    return head_of(model.config.to_dict(), int(model.config.num_labels or 0))
