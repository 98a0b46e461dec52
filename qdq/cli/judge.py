"""The engine of a work directory as the judge of a server's answers: the same texts, encoded and run here."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qdq.cli.served import Served, open_served

if TYPE_CHECKING:
    from engines.client import ModelInfo, TextRow
    from qdq.text.encode import TokenRow

BATCH = 16  # texts of a direct call, sorted by length
COMPARED = ("EMBEDDING", "LABEL", "CHOICE", "START_PROB", "END_PROB", "CUT")  # outputs of a text model, beside logits
QA = "question-answering"
PLACES = ("start_logits", "end_logits", "start_prob", "end_prob")  # a number per token
LOGITS = ("logits", "start_logits", "end_logits")  # outputs that decide by their largest value

# Distances are shares of how far the answers to different texts lie from their mean: another text's answer is 1.4 away.
# An INT8 engine is not one function of a text. The width that a batch is padded to changes the order of float sums, a
# value on the edge between two INT8 codes falls to the other side, and what follows differs: bit for bit the same in
# 998 of 1000 runs of all-MiniLM-L6-v2's OpenVINO engine, 0.016 away in the others (minilm-mrpc: 963, at most 0.003).
# Another engine is further away on every text: ONNX Runtime's of the same graph 0.027 to 0.07, FP32 0.05 to 0.2.
LEAST = 0.025
ROUNDING = 1e-5  # of float sums in another order
SHUFFLES = 2  # times that every row is run in batches as they come, of 1 to BATCH rows
Array = NDArray[Any]
Answer = Mapping[str, Array]  # the engine's outputs of one row by name, lower case


@dataclass(frozen=True)
class Direct:
    """A direct engine call on batches of BATCH texts sorted by length."""

    cpu_ms_per_text: float
    ms_per_text: float


class Judge:
    """Compares served answers with those of the engine file that the server's repository holds.

    Every row is run alone, in sorted batches and in mixed ones. An answer is right when its decision (class, tag of
    every token, place) is the engine's in one of these runs and none of its vectors is further from that run's than
    `tolerance`: LEAST, or twice the largest distance between the engine's own runs, where that is more.
    """

    def __init__(self, work: Path, name: str, text: bool = True) -> None:
        """Open the engine that `work` (a work directory, or its folder of one target) serves as `name`: the text
        model's, or that of the model which takes token ids, often another one.

        Raises ConfigError when there is no such repository, ModelError and BuildError as loading does.
        """
        self.served: Served = open_served(work, name, text)
        self.engine = str(self.served.file)
        self.tolerance = LEAST
        self._expected: list[tuple[Answer, ...]] = []
        self._spread: dict[str, float] = {}
        self._rows: list[list[TokenRow]] = []

    @property
    def rule(self) -> str:
        """The rule by which an answer is right, in words."""
        return (
            "right when every decision is the engine's and no vector further from it than "
            f"{self.tolerance:.2g} of the answers' own spread over texts (another text's: 1.4)"
        )

    def prepare(self, rows: Sequence[TextRow], progress: Callable[[int, int], None] = lambda *_: None) -> None:
        """Run every row alone and in batches of all kinds; `progress` gets finished and all kinds."""
        self._rows = [self._encode(row) for row in rows]
        kinds = [[[number] for number in range(len(rows))], self._sorted(), *map(self._mixed, range(SHUFFLES))]
        runs = []
        for number, batches in enumerate(kinds):
            progress(number, len(kinds))
            runs.append(self._in_batches(batches))
        alone = runs[0]
        self._expected = list(zip(*runs, strict=True))
        self._spread = {name: _spread(name, [answer[name] for answer in alone]) for name in (alone[0] if alone else ())}
        apart = (self._distance(run, known[0]) for known in self._expected for run in known[1:])
        self.tolerance = max(2 * max(apart, default=0.0), LEAST)

    def direct(self, seconds: float = 1.0) -> Direct:
        """The cost of sorted batches of BATCH prepared rows, without encoding, over at least so many seconds."""
        parts, texts = self._sorted(), 0
        cpu, wall = time.process_time(), time.perf_counter()
        while not texts or time.perf_counter() - wall < seconds:
            self._in_batches(parts)
            texts += max(len(self._rows), 1)
        return Direct(1000 * (time.process_time() - cpu) / texts, 1000 * (time.perf_counter() - wall) / texts)

    @staticmethod
    def outputs(model: ModelInfo) -> tuple[str, ...]:
        """The outputs of a served model that are compared; a text model sends large ones only when some are named."""
        decisive = (*COMPARED, *(name for name in model.output_names if name.endswith("LOGITS")))
        return tuple(name for name in model.output_names if name in decisive) or model.output_names

    def feeds(self, model: ModelInfo, number: int) -> dict[str, Array]:
        """A prepared row as the request of a model that takes token ids, [1, S]."""
        return self._feed([self._rows[number]])

    def away(self, number: int, outputs: Mapping[str, Array]) -> float:
        """Distance of an answer to row `number` from the engine's nearest; infinite when they cannot be compared."""
        known = self._known(outputs, number)
        return min(self._distance(known, run) for run in self._expected[number])

    def differs(self, number: int, outputs: Mapping[str, Array]) -> str:
        """The first difference of an answer to row `number`, "" when it is right."""
        known, runs = self._known(outputs, number), self._expected[number]
        compared = [name for name in runs[0] if name in known]
        if not compared:
            return f"none of the outputs {', '.join(outputs)} is one of the engine's"
        for name in compared:
            if known[name].shape != runs[0][name].shape:
                return f"{name} has shape {list(known[name].shape)}, the engine's {list(runs[0][name].shape)}"
            if difference := self._difference(name, known[name], [run[name] for run in runs]):
                return difference
        return self._named(known, runs)

    def _difference(self, name: str, value: Array, runs: Sequence[Array]) -> str:
        gap = min(_apart(name, value, run) for run in runs) / self._spread[name]
        if not gap <= self.tolerance:  # NaN is no answer either
            return f"{name} is {gap:.3g} away from the engine's"
        if name in LOGITS and not self.served.scores:
            decided = value.argmax(-1)
            if not np.any([decided == run.argmax(-1) for run in runs], axis=0).all():
                return f"{name} decide otherwise than the engine's"
        return ""

    def _named(self, known: Answer, runs: Sequence[Answer]) -> str:
        """A label or choice that is not the largest logit's."""
        labels = self.served.labels
        for name, names in (("label", labels), ("choice", ())):
            if (value := known.get(name)) is None:
                continue
            logits = [known["logits"]] if "logits" in known else [run["logits"] for run in runs]
            best = [int(one.argmax()) for one in logits]
            right = [names[index] if names else str(index) for index in best]
            if str(value.reshape(-1)[0]) not in right:
                return f"{name} is {value.reshape(-1)[0]}, the engine's {right[0]}"
        return ""

    def _distance(self, one: Answer, other: Answer) -> float:
        names = [name for name in other if name in one]
        fit = names and all(one[name].shape == other[name].shape for name in names)
        if not fit:
            return float("inf")
        return max(_apart(name, one[name], other[name]) / self._spread[name] for name in names)

    def _known(self, outputs: Mapping[str, Array], number: int) -> dict[str, Array]:
        """Outputs of a request of one row by name, lower case; of a row that was padded only its own tokens."""
        known = {name.lower(): np.asarray(array[0]) for name, array in outputs.items()}
        if self.served.width is None or not self.served.by_token:
            return known
        return {name: values[: len(self._rows[number][0]["input_ids"])] for name, values in known.items()}

    def _encode(self, row: TextRow) -> list[TokenRow]:
        """Tokens of one sample: one row, or one per choice."""
        from qdq.tasks.extraction import windows
        from qdq.text.data import Record
        from qdq.text.encode import has_types, tokenize

        loaded, sequence = self.served.loaded, self.served.sequence
        if loaded.task.name == QA:
            typed = has_types(loaded.tokenizer, loaded.inputs)
            return [windows(loaded.tokenizer, [Record(row.text, row.pair)], sequence, -1, typed)[0].tokens]
        records = [Record(row.text, choice) for choice in row.choices] or [Record(row.text, row.pair)]
        return [tokenize(loaded.tokenizer, record, loaded.inputs, sequence) for record in records]

    def _feed(self, samples: Sequence[list[TokenRow]]) -> dict[str, Array]:
        from qdq.text.encode import longest, pad, shaped

        loaded = self.served.loaded
        flat = [row for sample in samples for row in sample]
        feed = pad(loaded.tokenizer, flat, loaded.inputs, self.served.width or longest(flat))
        return dict(shaped(feed, len(samples), len(samples[0]) if loaded.task.choices else None))

    def _run(self, samples: Sequence[list[TokenRow]]) -> list[Answer]:
        """Outputs of each sample; of tokens only the real ones, of token states their mean as the server answers it."""
        feed = self._feed(samples)
        outputs = self.served.runner(feed)
        found: list[Answer] = []
        for index in range(len(samples)):
            real = feed["attention_mask"][index].astype(bool)
            own = {name: values[index] for name, values in outputs.items()}
            if self.served.by_token:
                own = {name: values[real] for name, values in own.items()}
            elif self.served.states:
                mean = own["last_hidden_state"][real].mean(axis=0)
                length = max(float(np.linalg.norm(mean)), 1e-12) if self.served.normalized else 1.0
                own = {"embedding": mean / length}
            found.append({_served_name(name, self.served.text): np.array(values) for name, values in own.items()})
        return found

    def _sorted(self) -> list[list[int]]:
        lengths = [max(len(row["input_ids"]) for row in sample) for sample in self._rows]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        return [order[start : start + BATCH] for start in range(0, len(order), BATCH)]

    def _mixed(self, seed: int) -> list[list[int]]:
        """All rows in an order of chance, in batches of 1 to BATCH."""
        chance, order, found = random.Random(seed), list(range(len(self._rows))), []
        chance.shuffle(order)
        while order:
            size = chance.randint(1, BATCH)
            found.append(order[:size])
            order = order[size:]
        return found

    def _in_batches(self, parts: Sequence[Sequence[int]]) -> list[Answer]:
        """Answers to all rows, in order, from these batches of them."""
        found: dict[int, Answer] = {}
        for part in parts:
            if len({len(self._rows[number]) for number in part}) == 1:
                found.update(zip(part, self._run([self._rows[number] for number in part]), strict=True))
            else:  # of unequal many choices
                found.update((number, self._run([self._rows[number]])[0]) for number in part)
        return [found[number] for number in range(len(self._rows))]


def _served_name(name: str, text: bool) -> str:
    """A served model's name of an engine output, lower case."""
    return "embedding" if text and name == "sentence_embedding" else name.lower()


def _vectors(name: str, values: Array) -> Array:
    """The vectors of an output: one of a text, or one of each token."""
    return np.asarray(values, np.float64).reshape(-1, 1 if name in PLACES else values.shape[-1] if values.ndim else 1)


def _apart(name: str, one: Array, other: Array) -> float:
    """The largest distance between two answers' vectors."""
    return float(np.linalg.norm(_vectors(name, one) - _vectors(name, other), axis=-1).max(initial=0.0))


def _spread(name: str, answers: Sequence[Array]) -> float:
    """Root mean square of the vectors' distance from their mean; never 0."""
    vectors = [_vectors(name, answer) for answer in answers]
    if len({one.shape[1] for one in vectors}) > 1:  # of unequal many choices
        vectors = [one.reshape(-1, 1) for one in vectors]
    every = np.concatenate(vectors)
    apart = float(np.sqrt(((every - every.mean(axis=0)) ** 2).sum(axis=-1).mean()))
    return max(apart, 1e-6 * float(np.linalg.norm(every, axis=-1).max(initial=0.0)), 1e-12)
