"""The engine of a work directory as the judge of a server's answers: the same texts, encoded and run here."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from engines.targets import TARGETS, EngineOptions
from qdq.base.artifacts import read_json
from qdq.errors import ConfigError

if TYPE_CHECKING:
    from engines.client import ModelInfo, TextRow
    from engines.types import Runner
    from qdq.load.model import LoadedModel
    from qdq.text.encode import TokenRow

FORM = "text.json"  # of a served text model, in its version folder
BATCH = 16  # texts of a direct call, sorted by length
COMPARED = ("EMBEDDING", "LABEL", "CHOICE", "CUT")  # outputs of a text model, beside logits
ROUNDING = 1e-4  # of float sums in another order
QA = "question-answering"
Array = NDArray[Any]


@dataclass(frozen=True)
class Expected:
    """The engine's outputs of one row by name, lower case, computed alone and among others of its length."""

    alone: Mapping[str, Array]
    batched: Mapping[str, Array]


@dataclass(frozen=True)
class Direct:
    """A direct engine call on batches of BATCH texts sorted by length."""

    cpu_ms_per_text: float
    ms_per_text: float


class Judge:
    """Compares served answers with those of the engine file that a text repository holds.

    A row is run twice, alone and in a batch of rows of its length, because an INT8 engine rounds an activation to
    another code when a float sum comes out one bit apart. An answer is right when its decision (class, tag of every
    token, place) is the engine's in either run and no value is further from it than `tolerance`, twice the largest
    distance between the two runs over all rows.
    """

    def __init__(self, work: Path, name: str) -> None:
        """Open the engine that `work` (a work directory, or its folder of one target) serves as `name`.

        Raises ConfigError when there is no such repository, ModelError and BuildError as loading does.
        """
        from qdq.calibrate.checkpoint import read_spec
        from qdq.load.model import load_model

        self.place = _served(work, name)
        self._form = read_json(self.place / FORM)
        checkpoint = next(folder / "checkpoint" for folder in self.place.parents if (folder / "checkpoint").is_dir())
        self.loaded: LoadedModel = load_model(str(checkpoint), task=read_spec(checkpoint)[1]["task"])
        options = EngineOptions(self._form["threads"], self._form["hint"])
        file = self.place / self._form["files"][0]
        self._runner: Runner = TARGETS[self._form["engine"]].open(file, options)
        self.engine = str(file)
        self.tolerance = ROUNDING
        self._expected: list[Expected] = []
        self._rows: list[list[TokenRow]] = []

    @property
    def rule(self) -> str:
        """The rule by which an answer is right, in words."""
        return (
            "right when every decision is the engine's and no value further than "
            f"{self.tolerance:.2g} from it, twice what the engine itself differs between batches"
        )

    def prepare(self, rows: Sequence[TextRow]) -> Direct:
        """Run every row alone and in sorted batches; returns the cost of the latter, without encoding."""
        self._rows = [self._encode(row) for row in rows]
        alone = [self._run([row])[0] for row in self._rows]
        batched, direct = self._in_batches()
        self._expected = [Expected(*both) for both in zip(alone, batched, strict=True)]
        apart = (_distance(entry.alone, entry.batched) for entry in self._expected)
        self.tolerance = max(2 * max(apart, default=0.0), ROUNDING)
        return direct

    @staticmethod
    def outputs(model: ModelInfo) -> tuple[str, ...]:
        """The outputs of a served model that are compared; a text model sends large ones only when some are named."""
        decisive = (*COMPARED, *(name for name in model.output_names if name.endswith("LOGITS")))
        return tuple(name for name in model.output_names if name in decisive) or model.output_names

    def feeds(self, model: ModelInfo, number: int) -> dict[str, Array]:
        """A prepared row as the request of a model that takes token ids, [1, S]."""
        return self._feed([self._rows[number]])

    def differs(self, number: int, outputs: Mapping[str, Array]) -> str:
        """The first difference of an answer to row `number`, "" when it is right."""
        expected = self._expected[number]
        known = {name.lower(): array[0] for name, array in outputs.items()}
        compared = 0
        for name, want in expected.alone.items():
            value = known.get(_served_name(name, known))
            if value is None:
                continue
            compared += 1
            if difference := self._difference(name, np.asarray(value), want, expected.batched[name]):
                return difference
        if not compared:
            return f"none of the outputs {', '.join(outputs)} is one of the engine's"
        return self._named(known, expected.alone)

    def _difference(self, name: str, value: Array, want: Array, other: Array) -> str:
        if value.shape != want.shape:
            return f"{name} has shape {list(value.shape)}, the engine's {list(want.shape)}"
        gap = min(float(np.abs(value - one).max(initial=0.0)) for one in (want, other))
        if not gap <= self.tolerance:  # NaN is no answer either
            return f"{name} is {gap:.3g} away from the engine's"
        if name in ("logits", "start_logits", "end_logits") and self._form.get("head") != "scores":
            decided = value.argmax(-1)
            if not np.logical_or(decided == want.argmax(-1), decided == other.argmax(-1)).all():
                return f"{name} decide otherwise than the engine's"
        return ""

    def _named(self, known: Mapping[str, Array], expected: Mapping[str, Array]) -> str:
        """A label or choice that is not the largest logit's."""
        if (label := known.get("label")) is not None and self._form["labels"]:
            best = self._form["labels"][int(known.get("logits", expected["logits"]).argmax())]
            if str(label.reshape(-1)[0]) != best:
                return f"label is {label.reshape(-1)[0]}, the engine's {best}"
        if (choice := known.get("choice")) is not None and int(choice.reshape(-1)[0]) != expected["logits"].argmax():
            return f"choice is {int(choice.reshape(-1)[0])}, the engine's {expected['logits'].argmax()}"
        return ""

    def _encode(self, row: TextRow) -> list[TokenRow]:
        """Tokens of one sample: one row, or one per choice."""
        from qdq.tasks.extraction import windows
        from qdq.text.data import Record
        from qdq.text.encode import has_types, tokenize

        loaded, sequence = self.loaded, self._form["sequence"]
        if loaded.task.name == QA:
            typed = has_types(loaded.tokenizer, loaded.inputs)
            return [windows(loaded.tokenizer, [Record(row.text, row.pair)], sequence, -1, typed)[0].tokens]
        records = [Record(row.text, choice) for choice in row.choices] or [Record(row.text, row.pair)]
        return [tokenize(loaded.tokenizer, record, loaded.inputs, sequence) for record in records]

    def _feed(self, samples: Sequence[list[TokenRow]]) -> dict[str, Array]:
        from qdq.text.encode import longest, pad, shaped

        flat = [row for sample in samples for row in sample]
        feed = pad(self.loaded.tokenizer, flat, self.loaded.inputs, longest(flat))
        return dict(shaped(feed, len(samples), len(samples[0]) if self.loaded.task.choices else None))

    def _run(self, samples: Sequence[list[TokenRow]]) -> list[dict[str, Array]]:
        """Outputs of each sample; of tokens only the real ones, of token states their mean as the server answers it."""
        feed = self._feed(samples)
        outputs = self._runner(feed)
        found = []
        for index in range(len(samples)):
            real = feed["attention_mask"][index].astype(bool)
            own = {name: values[index] for name, values in outputs.items()}
            if self._form["task"] in ("token-classification", QA, "fill-mask", "language-modeling"):
                own = {name: values[real] for name, values in own.items()}
            elif not self._form["pooled"]:
                mean = own["last_hidden_state"][real].mean(axis=0)
                length = max(float(np.linalg.norm(mean)), 1e-12) if self._form["normalized"] else 1.0
                own = {"embedding": mean / length}
            found.append({name.lower(): np.array(values) for name, values in own.items()})
        return found

    def _in_batches(self) -> tuple[list[dict[str, Array]], Direct]:
        lengths = [max(len(row["input_ids"]) for row in sample) for sample in self._rows]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        parts = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
        cpu, wall = 0.0, 0.0
        found: dict[int, dict[str, Array]] = {}
        for _ in range(2):  # the first time an engine prepares for each shape
            started = time.process_time(), time.perf_counter()
            for part in parts:
                found.update(zip(part, self._run([self._rows[number] for number in part]), strict=True))
            cpu, wall = time.process_time() - started[0], time.perf_counter() - started[1]
        texts = max(len(order), 1)
        return [found[number] for number in range(len(order))], Direct(1000 * cpu / texts, 1000 * wall / texts)


def _served(work: Path, name: str) -> Path:
    """The version folder of the text model `name` in a work directory. Raises ConfigError for none, or several."""
    repositories = f"model_repository/{name}/1/{FORM}"
    found = [*work.glob(repositories), *work.glob(f"*/{repositories}")]
    if not found:
        raise ConfigError(f"--check {work}: has no repository of a text model '{name}'; run 'qdq deploy --out {work}'")
    if len(found) > 1:
        folders = ", ".join(str(path.parents[3]) for path in found)
        raise ConfigError(f"--check {work}: several targets have '{name}'; name the one that is served: {folders}")
    return found[0].parent


def _distance(one: Mapping[str, Array], other: Mapping[str, Array]) -> float:
    return max((float(np.abs(values - other[name]).max(initial=0.0)) for name, values in one.items()), default=0.0)


def _served_name(name: str, known: Mapping[str, Array]) -> str:
    """The text model's name of an engine output."""
    return "embedding" if name == "sentence_embedding" and "embedding" in known else name
