"""Entities of tagged sentences, counted as seqeval counts them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from qdq.errors import ConfigError
from qdq.tasks.metrics import Metric, micro_f1, ratio_of

OUTSIDE = "O"


def entity_scores(predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> dict[str, Metric]:
    """f1 (micro, over entities: type, first and last word must be right) with precision, recall and token accuracy.

    Args are tags per sentence, one per word, in any scheme seqeval reads (IOB1, IOB2, IOE, IOBES). f1 equals
    ``seqeval.metrics.f1_score(gold, predicted)``, conlleval's rule. Raises ConfigError when seqeval is not installed.
    """
    try:
        from seqeval.metrics.sequence_labeling import get_entities
    except ImportError:
        raise ConfigError("entity F1 needs the seqeval package; run pip install '.[train]'") from None
    rows = []
    for guess, truth in zip(predicted, gold, strict=True):
        found, expected = set(get_entities(list(guess))), set(get_entities(list(truth)))
        same = sum(one == other for one, other in zip(guess, truth, strict=True))
        rows.append((len(found & expected), len(found), len(expected), same, len(truth)))
    counts: NDArray[np.float64] = np.array(rows, dtype=np.float64).reshape(-1, 5)
    correct, found_count, gold_count, same, words = counts.T
    return {
        "f1": micro_f1(correct, found_count, gold_count),
        "precision": ratio_of(correct, found_count),
        "recall": ratio_of(correct, gold_count),
        "token_accuracy": ratio_of(same, words),
    }
