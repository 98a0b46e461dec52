"""Exact match and F1 of extracted answers, computed as the official scorers of SQuAD and CMRC 2018 do."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher
from typing import Literal

from qdq.base.config import choice
from qdq.base.spans import is_han

Scoring = Literal["squad", "cmrc"]
SCORINGS: tuple[Scoring, ...] = ("squad", "cmrc")

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = frozenset(string.punctuation)
# cmrc2018_evaluate.py's list. Its two-character ellipsis never equals a character there, so it is not here.
_CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
# Where the official script calls nltk.word_tokenize on what is not Chinese: numbers with points and commas, words,
# and every other character by itself. nltk also splits contractions and keeps abbreviations, which are rare in answers.
_SEGMENT = re.compile(r"[\u4e00-\u9fa5]|\d+(?:[.,]\d+)*|(?:(?![\u4e00-\u9fa5])\w)+|[^\w\s]")


def score_answer(prediction: str, answers: Sequence[str], scoring: Scoring) -> tuple[float, float]:
    """(exact match, F1) of one prediction, each the best over the gold `answers`; no gold answer means "" is right.

    squad: evaluate-v1.1.py (Rajpurkar et al. 2016) and, for questions without an answer, evaluate-v2.0.py. cmrc:
    cmrc2018_evaluate.py (Cui et al. 2019): F1 over the longest common run of characters and words.
    """
    choice(scoring, SCORINGS, "scoring")
    golds = list(answers) or [""]
    plain, f1 = _SCORERS[scoring]
    exact = any(plain(prediction) == plain(gold) for gold in golds)
    return float(exact), max(f1(prediction, gold) for gold in golds)


def detect_scoring(contexts: Sequence[str]) -> Scoring:
    """cmrc when more than a fifth of the characters of the contexts are Chinese, else squad."""
    return "cmrc" if is_han("".join(contexts[:50])) else "squad"


def _normalized(text: str) -> str:
    """Lower case without punctuation, articles and extra white space (evaluate-v1.1.py's normalize_answer)."""
    plain = "".join(character for character in text.lower() if character not in _PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def _squad_f1(prediction: str, gold: str) -> float:
    predicted, expected = _normalized(prediction).split(), _normalized(gold).split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    return 2 * common / (len(predicted) + len(expected))


def _cmrc_plain(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in _CMRC_PUNCTUATION)


def _cmrc_f1(prediction: str, gold: str) -> float:
    predicted, expected = _segments(prediction), _segments(gold)
    matcher = SequenceMatcher(None, predicted, expected, autojunk=False)
    common = matcher.find_longest_match().size  # find_lcs of the official script
    return 2 * common / (len(predicted) + len(expected)) if common else 0.0


def _segments(text: str) -> list[str]:
    """Chinese characters one by one, everything between them in words; punctuation dropped (mixed_segmentation)."""
    return _SEGMENT.findall(_cmrc_plain(text))


# Texts that are the same after this count as an exact match; and F1.
_SCORERS: dict[str, tuple[Callable[[str], str], Callable[[str, str], float]]] = {
    "squad": (_normalized, _squad_f1),
    "cmrc": (_cmrc_plain, _cmrc_f1),
}
