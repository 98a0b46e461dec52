"""Extraction: everything a schema names, out of any text, by a model or an engine of it.

::

    extraction = Extraction.of("checkpoint/model_best", ["时间", {"人名": ["职位"]}])
    extraction("2月8日上午北京…")    # [{"时间": [{"text", "start", "end", "probability"}], "人名": [… "relations" …]}]

The tree is walked level by level: the prompt for a child is its parent's answer and its name. All prompts of a level
go through the model together, shortest first. Long texts are cut into parts behind sentences; spans get the part's
place added, and of a choice the class of most parts wins.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qdq.base.choices import INFORMATION_EXTRACTION
from qdq.errors import ConfigError, ModelError
from qdq.tasks.spans import LIMIT, parts
from qdq.text.data import Record
from qdq.text.encode import batched, has_types
from qdq.uie.prompts import language_named, of_options, of_subject
from qdq.uie.schema import Node, read_schema

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from qdq.base.types import Feeds, Outputs

Result = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """An answer: characters `start` to `end` of a text, or with `start` -1 the class that was chosen."""

    text: str
    start: int
    end: int
    probability: float

    def as_json(self) -> Result:
        """Plain JSON value; a class has no place."""
        place = {"start": self.start, "end": self.end} if self.start >= 0 else {}
        return {"text": self.text, **place, "probability": round(self.probability, 6)}


@dataclass(frozen=True)
class Reader:
    """A model that answers prompts.

    Attributes:
        runner: feeds to ``start_prob`` and ``end_prob`` [B, S]: a torch model or any engine.
        inputs: names of its inputs.
        sequence: most tokens of a row.
        batch: most rows of a feed.
        limit: probability above which a token is a start or an end.
    """

    runner: Callable[[Feeds], Outputs]
    tokenizer: PreTrainedTokenizerBase
    inputs: Sequence[str]
    sequence: int = 512
    batch: int = 16
    limit: float = LIMIT

    def spans(self, texts: Sequence[tuple[str, str]]) -> list[list[list[tuple[int, int, float]]]]:
        """For each (prompt, content) and each part of it the spans (start, end, probability) in characters.

        Those of an option are negative, counted from one behind the prompt. Raises DataError for a prompt without room.
        """
        records = [Record(prompt, content) for prompt, content in texts]
        typed = has_types(self.tokenizer, self.inputs)
        rows = parts(self.tokenizer, records, self.sequence, typed, words=True)
        by_row: dict[int, list[tuple[int, int, float]]] = {}
        for feed, numbers in batched(self.tokenizer, [[row.tokens] for row in rows], self.inputs, self.batch):
            outputs = self.runner(feed)
            for place, number in enumerate(numbers):
                start, end = (_real(outputs[name][place], feed, place) for name in ("start_prob", "end_prob"))
                by_row[number] = rows[number].spans(start, end, self.limit)
        found: list[list[list[tuple[int, int, float]]]] = [[] for _ in records]
        for number, row in enumerate(rows):
            found[row.record].append(by_row[number])
        return found

    def answers(self, texts: Sequence[tuple[str, str]], choice: bool = False) -> list[list[Found]]:
        """The answers to each (prompt, content): spans of the content, or with `choice` the one option chosen."""
        both = zip(texts, self.spans(texts), strict=True)
        if choice:
            return [_chosen(prompt, pieces) for (prompt, _), pieces in both]
        return [_placed(content, pieces) for (_, content), pieces in both]


def _real(row: NDArray[Any], feed: Feeds, place: int) -> NDArray[Any]:
    """The probabilities of a row's real tokens."""
    real: NDArray[Any] = np.asarray(row)[feed["attention_mask"][place].astype(bool)]
    return real


def _placed(content: str, pieces: Sequence[Sequence[tuple[int, int, float]]]) -> list[Found]:
    best: dict[tuple[int, int], float] = {}
    for start, end, share in (span for piece in pieces for span in piece):
        if start >= 0:
            best[start, end] = max(share, best.get((start, end), 0.0))
    return [Found(content[start:end], start, end, share) for (start, end), share in sorted(best.items())]


def _chosen(prompt: str, pieces: Sequence[Sequence[tuple[int, int, float]]]) -> list[Found]:
    """The class that most parts chose, and the mean of its probabilities there; the likelier one of equals."""
    behind = len(prompt) + 1
    votes: Counter[str] = Counter()
    shares: dict[str, list[float]] = defaultdict(list)
    for piece in pieces:
        classes = [(share, prompt[start + behind : end + behind]) for start, end, share in piece if start < 0]
        if classes:
            share, name = max(classes)
            votes[name] += 1
            shares[name].append(share)
    if not votes:
        return []
    name = max(votes, key=lambda name: (votes[name], float(np.mean(shares[name]))))
    return [Found(name, -1, -1, float(np.mean(shares[name])))]


@dataclass
class _Asked:
    """A node asked in one text, for one subject ("" is none), with the mapping its answers go into."""

    node: Node
    text: int
    subject: str
    into: Callable[[], Result]
    found: list[Found] = field(default_factory=list)


class Extraction:
    """A schema and a model that looks for it.

    Args:
        reader: the model.
        schema: see `qdq.uie.schema`.
        schema_lang: ch (zh) or en: how the prompt for a child is written.
    """

    def __init__(self, reader: Reader, schema: Any, schema_lang: str = "ch") -> None:
        self.reader, self._language = reader, language_named(schema_lang)
        self.set_schema(schema)

    @classmethod
    def of(cls, model: str, schema: Any, schema_lang: str = "ch", **settings: Any) -> Extraction:
        """With the torch model of a UIE checkpoint (hub id or folder); `settings` are those of `Reader`.

        Raises ModelError for a checkpoint that is no UIE.
        """
        from qdq.loading.model import load_model
        from qdq.loading.runner import TorchRunner

        loaded = load_model(model, settings.pop("task", None))
        if loaded.task.name != INFORMATION_EXTRACTION:
            raise ModelError(f"{model}: is a model for {loaded.task.name}; give a UIE checkpoint")
        settings.setdefault("sequence", min(512, loaded.max_sequence, int(loaded.tokenizer.model_max_length)))
        reader = Reader(TorchRunner(loaded.module()), loaded.tokenizer, loaded.inputs, **settings)
        return cls(reader, schema, schema_lang)

    def set_schema(self, schema: Any) -> None:
        """Look for another schema from now on. Raises ConfigError for one that is none."""
        nodes = schema if _is_nodes(schema) else read_schema(schema)
        self._trees: tuple[Node, ...] = nodes

    def __call__(self, texts: str | Sequence[str]) -> list[Result]:
        """One mapping for each text: names to answers, which have those of their children in ``relations``."""
        contents = [texts] if isinstance(texts, str) else list(texts)
        results: list[Result] = [{} for _ in contents]
        empty = [number for number, text in enumerate(contents) if not text.strip()]
        if empty:
            raise ConfigError(f"text {empty[0] + 1} is empty; leave it out")
        level = [
            _Asked(node, number, "", partial(_itself, results[number]))
            for node in self._trees
            for number in range(len(contents))
        ]
        while level:
            self._ask(level, contents)
            level = [child for asked in level for child in self._below(asked)]
        return results

    def _ask(self, level: Sequence[_Asked], contents: Sequence[str]) -> None:
        """Answer every node of a level, those with options in a batch of their own kind."""
        kinds: Mapping[bool, list[_Asked]] = {True: [], False: []}
        for asked in level:
            kinds[bool(asked.node.options)].append(asked)
        for choice, members in kinds.items():
            texts = [(self._prompt(asked), contents[asked.text]) for asked in members]
            for asked, found in zip(members, self.reader.answers(texts, choice) if texts else [], strict=True):
                asked.found = found

    def _prompt(self, asked: _Asked) -> str:
        node = asked.node
        name = of_options(node.label, node.options) if node.options else node.name
        return of_subject(asked.subject, name, self._language) if asked.subject else name

    def _below(self, asked: _Asked) -> list[_Asked]:
        """Write the answers of a node into the results; returns what its children ask of each."""
        rows = [found.as_json() for found in asked.found]
        if not rows:
            return []
        asked.into().setdefault(asked.node.label, []).extend(rows)
        deeper = []
        for found, row in zip(asked.found, rows, strict=True):
            into = partial(_relations, row)
            deeper += [_Asked(child, asked.text, found.text, into) for child in asked.node.children]
        return deeper


def _itself(result: Result) -> Result:
    return result


def _relations(row: Result) -> Result:
    """The mapping of what belongs to an answer, which is there only once something is found."""
    found: Result = row.setdefault("relations", {})
    return found


def _is_nodes(schema: Any) -> bool:
    return isinstance(schema, tuple) and all(isinstance(node, Node) for node in schema) and bool(schema)
