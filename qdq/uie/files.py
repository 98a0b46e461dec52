"""Prompt files: train.txt, dev.txt and test.txt of an annotated project, split and shuffled as PaddleNLP does."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qdq.base.artifacts import write_text
from qdq.base.config import choice
from qdq.errors import ConfigError
from qdq.uie.annotations import Annotation
from qdq.uie.examples import Example, Rules, class_examples, span_examples

TASKS = ("ext", "cls")  # extraction (with classes of entities), classification of whole texts
NAMES = ("train", "dev", "test")


@dataclass(frozen=True)
class Division:
    """Division of annotated texts into files.

    Attributes:
        splits: shares of texts in train, dev and test; none is everything in train.
        shuffle: texts before the division, and training rows behind it.
        seed: of every random choice; the same gives the same files.
    """

    splits: tuple[float, ...] = (0.8, 0.1, 0.1)
    shuffle: bool = True
    seed: int = 1000

    def bounds(self, count: int) -> dict[str, tuple[int, int]]:
        """First text and end of every file, of `count` texts. Raises ConfigError for shares that are none."""
        if not self.splits:
            return {NAMES[0]: (0, count)}
        wrong = len(self.splits) != len(NAMES) or min(self.splits) < 0
        if wrong or not math.isclose(sum(self.splits), 1, abs_tol=1e-6):
            raise ConfigError(
                f"--splits: {' '.join(map(str, self.splits))}; give three shares that add up to 1, or none"
            )
        train, dev = (int(count * sum(self.splits[:place]) + 1e-6) for place in (1, 2))
        return {"train": (0, train), "dev": (train, dev), "test": (dev, count)}


def write_prompts(
    annotations: Sequence[Annotation], folder: Path, rules: Rules, division: Division, task: str = "ext"
) -> dict[str, int]:
    """Write the prompt files of `annotations` to `folder`; returns the number of rows by path.

    Only training rows lose negatives. Raises ConfigError for other tasks, DataError for a class that is no option.
    """
    choice(task, TASKS, "--task_type")
    bounds = division.bounds(len(annotations))
    chance, texts = random.Random(division.seed), list(annotations)
    if division.shuffle:
        chance.shuffle(texts)
    written: dict[str, int] = {}
    for name, (first, last) in bounds.items():
        chosen = texts[first:last]
        if task == "cls":
            examples = class_examples(chosen, rules, chance)
        else:
            examples = span_examples(chosen, rules, chance, train=name == "train")
        if division.shuffle and name == "train":
            chance.shuffle(examples)
        write_text(folder / f"{name}.txt", "".join(_line(example) for example in examples))
        written[str(folder / f"{name}.txt")] = len(examples)
    return written


def _line(example: Example) -> str:
    return json.dumps(example.as_json(), ensure_ascii=False) + "\n"
