"""Prompts with their answers out of annotations, and prompts without any (negatives): the rows a UIE is trained on.

The rules are PaddleNLP's (`doccano.py`): an entity's prompt is its label, a relation's the subject's predicate, a
class's the options in random order. Training rows get a few negatives for each positive, other rows all there are.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qdq.errors import ConfigError, DataError
from qdq.uie.annotations import Annotation, Entity
from qdq.uie.prompts import PREFIXES, language_named, of_options, of_subject

ALL = -1  # negative_ratio: every negative there is


@dataclass(frozen=True)
class Answer:
    """Characters `start` to `end` of the content; of an option, negative ones from one behind the prompt's end."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Example:
    """A prompt on a content with its answers, none for a negative."""

    content: str
    prompt: str
    answers: tuple[Answer, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The row of a prompt file."""
        results = [{"text": one.text, "start": one.start, "end": one.end} for one in self.answers]
        return {"content": self.content, "result_list": results, "prompt": self.prompt}


@dataclass(frozen=True)
class Rules:
    """Settings of a conversion.

    Attributes:
        negative_ratio: most negatives for a positive of a text, in training rows; -1 is all.
        options: classes among which a classification chooses.
        prefix: beginning of a classification's prompt; "" is that of the language.
        separator: between an entity's label and its class.
        language: ch or en, which says how a subject's prompt is written.
    """

    negative_ratio: int = 5
    options: tuple[str, ...] = ("正向", "负向")
    prefix: str = ""
    separator: str = "##"
    language: str = "ch"

    def __post_init__(self) -> None:
        language_named(self.language)
        if self.negative_ratio < ALL:
            raise ConfigError(f"--negative_ratio: {self.negative_ratio}; give 0 or more, or -1 for all negatives")
        if not self.separator:
            raise ConfigError("--separator: is empty; give what stands between an entity's label and its class")

    @property
    def asks(self) -> str:
        """Beginning of a classification's prompt."""
        return self.prefix or PREFIXES[language_named(self.language)]

    def subject(self, subject: str, name: str) -> str:
        """Prompt for `name` of `subject`."""
        return of_subject(subject, name, language_named(self.language))


def class_examples(annotations: Sequence[Annotation], rules: Rules, chance: random.Random) -> list[Example]:
    """One prompt for each text, answered by its classes. Raises DataError for a class that is no option."""
    return [_choice(one.text, one.classes, rules.asks, rules, chance) for one in annotations]


def span_examples(
    annotations: Sequence[Annotation], rules: Rules, chance: random.Random, train: bool = True
) -> list[Example]:
    """Prompts for entities, then for relations, then for classes of entities, each with its negatives behind.

    With `train` at most `negative_ratio` negatives for a positive, a third of them each of relations read backwards,
    of other subjects and of other labels; else every label the text lacks, and every predicate of its subjects.
    """
    texts = [_Text(one, rules) for one in annotations]
    return [
        *_entities(texts, rules.negative_ratio if train else ALL, chance),
        *(_relations(texts, rules, chance) if train else _all_relations(texts, rules)),
        *(
            _choice(text.content, kinds, rules.subject(subject, rules.asks), rules, chance)
            for text in texts
            for subject, kinds in text.judged
        ),
    ]


class _Text:
    """One annotated text as prompts with answers.

    Attributes:
        entities: answers by label; `relations`: by prompt.
        judged: (subject, classes) of every entity that has classes.
        names: characters of every entity; `subjects`: of those a relation starts from.
        backwards: prompts of relations with the object as subject.
    """

    def __init__(self, annotation: Annotation, rules: Rules) -> None:
        self.content = annotation.text
        self.entities: dict[str, list[Answer]] = {}
        self.relations: dict[str, list[Answer]] = {}
        self.judged: list[tuple[str, Sequence[str]]] = []
        for entity in annotation.entities:
            label, *kinds = entity.label.split(rules.separator)
            self.entities.setdefault(label, []).append(_answer(annotation, entity))
            if kinds:
                self.judged.append((annotation.words(entity), kinds))
        # Relations, by the words of the entities they join
        self.names = list(dict.fromkeys(annotation.words(entity) for entity in annotation.entities))
        self.predicates = [relation.predicate for relation in annotation.relations]
        subjects, backwards = [], []
        for relation in annotation.relations:
            subject, other = annotation.entities[relation.subject], annotation.entities[relation.object]
            prompt = rules.subject(annotation.words(subject), relation.predicate)
            self.relations.setdefault(prompt, []).append(_answer(annotation, other))
            subjects.append(annotation.words(subject))
            backwards.append(rules.subject(annotation.words(other), relation.predicate))
        self.subjects = list(dict.fromkeys(subjects))
        self.backwards = self.negative(backwards)

    def positives(self, answers: dict[str, list[Answer]]) -> list[Example]:
        return [Example(self.content, prompt, tuple(found)) for prompt, found in answers.items()]

    def negative(self, prompts: Iterable[str]) -> list[str]:
        """Each of `prompts` once, without those this text answers."""
        return [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.relations]


def _answer(annotation: Annotation, entity: Entity) -> Answer:
    return Answer(annotation.words(entity), entity.start, entity.end)


def _choice(text: str, kinds: Sequence[str], prefix: str, rules: Rules, chance: random.Random) -> Example:
    """A prompt among all options in random order, answered by `kinds`."""
    options = list(rules.options)
    chance.shuffle(options)
    prompt = of_options(prefix, options)
    answers = []
    for kind in kinds:
        if kind not in options:
            raise DataError(f"{text[:40]!r}: has the class '{kind}', no one of --options {' '.join(rules.options)}")
        before = sum(len(option) + 1 for option in options[: options.index(kind)])
        start = len(prefix) + 1 + before - len(prompt) - 1
        answers.append(Answer(kind, start, start + len(kind)))
    return Example(text, prompt, tuple(answers))


def _entities(texts: Sequence[_Text], ratio: int, chance: random.Random) -> list[Example]:
    labels = {label for text in texts for label in text.entities}
    positives = [example for text in texts for example in text.positives(text.entities)]
    if not positives:
        return []
    negatives = []
    for text in texts:
        chosen, _ = _some(sorted(labels - text.entities.keys()), len(text.entities), ratio, chance)
        negatives += [Example(text.content, prompt) for prompt in chosen]
    return positives + negatives


def _all_relations(texts: Sequence[_Text], rules: Rules) -> list[Example]:
    """Relations, each text's with every predicate that its subjects lack."""
    predicates = list(dict.fromkeys(predicate for text in texts for predicate in text.predicates))
    found = []
    for text in texts:
        asked = text.negative(rules.subject(subject, name) for subject in text.subjects for name in predicates)
        found += [*text.positives(text.relations), *(Example(text.content, prompt) for prompt in asked)]
    return found


def _relations(texts: Sequence[_Text], rules: Rules, chance: random.Random) -> list[Example]:
    """Relations with a third of the negatives each of `_candidates`, and more of what is left where one has fewer."""
    if not any(text.relations for text in texts):
        return []
    names = sorted({name for text in texts for name in text.names})
    labels = sorted({label for text in texts for label in text.entities})
    ratio, negatives = rules.negative_ratio, []
    for text in texts:
        count = len(text.relations)
        kinds = _candidates(text, names, labels, rules, chance)
        sides = [_some(prompts, count, ALL if ratio == ALL else ratio // 3, chance) for prompts in kinds]
        chosen, left = ([prompt for side in sides for prompt in side[which]] for which in (0, 1))
        missing = min(count * ratio - len(chosen), len(left))
        if missing > 0:
            chosen += chance.sample(left, missing)
        negatives += [Example(text.content, prompt) for prompt in dict.fromkeys(chosen)]
    return [example for text in texts for example in text.positives(text.relations)] + negatives


def _candidates(
    text: _Text, names: Sequence[str], labels: Sequence[str], rules: Rules, chance: random.Random
) -> Iterator[list[str]]:
    """Prompts without an answer: read backwards, of other subjects, and of labels that the text lacks."""
    yield text.backwards
    if not text.predicates:
        return
    others = [name for name in names if name not in text.subjects]
    yield text.negative(rules.subject(name, chance.choice(text.predicates)) for name in others)
    absent = [label for label in labels if label not in text.entities]
    yield text.negative(rules.subject(chance.choice(text.subjects), label) for label in absent)


def _some(prompts: Sequence[str], positives: int, ratio: int, chance: random.Random) -> tuple[list[str], list[str]]:
    """(chosen, left) of `prompts`: at most `ratio` for each positive, all in a text without any."""
    if ratio == ALL or not positives or math.ceil(len(prompts) / positives) <= ratio:
        return list(prompts), []
    chosen = set(chance.sample(range(len(prompts)), ratio * positives))
    sides: tuple[list[str], list[str]] = ([], [])
    for place, prompt in enumerate(prompts):
        sides[place not in chosen].append(prompt)
    return sides
