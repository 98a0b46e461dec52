"""Build an `Evaluation` for one model from labelled data of any supported kind.

Texts that are truncated or left out are counted in the evaluation's notes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qdq.base.choices import INFORMATION_EXTRACTION
from qdq.base.config import choice
from qdq.errors import ConfigError, DataError
from qdq.loading.kinds import CHOICES, SENTENCE_EMBEDDING
from qdq.tasks.answers import SCORINGS, Scoring, detect_scoring
from qdq.tasks.evaluation import Evaluation
from qdq.tasks.extraction import Extraction, windows
from qdq.tasks.gold import any_label, gold_of, tags_of
from qdq.tasks.heads import Head, head_of_model
from qdq.tasks.labels import numbers
from qdq.tasks.problems import STATES, Classification, MultiLabel, Problem, Regression, Similarity, Unscored
from qdq.tasks.prompted import PromptedSpans
from qdq.tasks.spans import parts
from qdq.tasks.tagging import Tagging, tagged_rows, unseen
from qdq.text.data import Record, TextSource, read_records
from qdq.text.encode import TokenRow, batched, choice_records, has_types, tokenize

if TYPE_CHECKING:
    from qdq.loading.model import LoadedModel


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings by which data become feeds.

    Attributes:
        sequence: tokens per row; longer texts are truncated, longer contexts continue in another window.
        batch: rows per feed.
        overlap: tokens neighbouring windows of a context share; None is a third of `sequence`, -1 one window only.
        scoring: squad or cmrc; None decides by the contexts' script.
        metric: the metric that decides; None is the task's own.
        required: missing or unknown labels are an error instead of the reason there is no metric.
    """

    sequence: int = 128
    batch: int = 32
    overlap: int | None = None
    scoring: str | None = None
    metric: str | None = None
    required: bool = False

    def __post_init__(self) -> None:
        if self.sequence < 4 or self.batch < 1 or (self.overlap is not None and self.overlap < -1):
            raise ConfigError(
                f"evaluation: sequence {self.sequence}, batch {self.batch}, overlap {self.overlap}; give a sequence of "
                "at least 4, a batch of at least 1 and an overlap of at least 0 (-1: one window)"
            )
        if self.scoring is not None:
            choice(self.scoring, SCORINGS, "--scoring")


def load_evaluation(
    source: str | TextSource,
    loaded: LoadedModel,
    settings: EvaluationSettings | None = None,
    samples: int | None = None,
    task: str | None = None,
) -> Evaluation:
    """The first `samples` usable rows of `source` (all when None) for `loaded`.

    `source`: TSV, CSV, JSON lines, CoNLL, SQuAD or CMRC JSON, a folder of them, or ``datasets:NAME[:SPLIT]``. `task`
    overrides the model's, for scoring one encoder in another way. Raises DataError for unusable data, ConfigError for
    settings that do not fit the task.
    """
    place = TextSource(source) if isinstance(source, str) else source
    records, columns = read_records(place, samples)
    names = " + ".join(name for name in (columns.text, columns.pair) if name)
    note = (f"{columns.skipped} rows without text left out",) if columns.skipped else ()
    evaluation = evaluation_of(records, loaded, settings, f"{place.path} ({names})", task)
    return replace(evaluation, notes=note + evaluation.notes)


def evaluation_of(
    records: Sequence[Record],
    loaded: LoadedModel,
    settings: EvaluationSettings | None = None,
    source: str = "the given texts",
    task: str | None = None,
) -> Evaluation:
    """As `load_evaluation`, from records at hand."""
    settings = settings or EvaluationSettings()
    name = task or loaded.task.name
    if not records:
        raise DataError(f"{source}: there is nothing to evaluate on; give at least one text")
    # Token rows and the problem that scores them, by task
    rows, problem, notes = _BUILDERS[name](records, loaded, settings)
    _check_metric(settings.metric, problem, loaded, name)
    batches = tuple(batched(loaded.tokenizer, rows, loaded.inputs, settings.batch, loaded.task.choices))
    head = head_of_model(loaded.model) if name == "text-classification" else Head("classes")
    kept = tuple(note for note in notes if note)
    return Evaluation(name, source, problem.samples, batches, problem, kept, head.compared_as or name, head.cuts)


Built = tuple[Sequence[Sequence[TokenRow]], Problem, tuple[str, ...]]


def _check_metric(metric: str | None, problem: Problem, loaded: LoadedModel, task: str) -> None:
    """Make `metric` the one that decides. Raises ConfigError when the task does not have it."""
    if metric is None:
        return
    if not problem.main:
        raise ConfigError(f"--metric {metric}: {problem.reason}; give labelled data, or leave it out")
    valid = _metric_names(problem, len(loaded.labels))
    if metric not in valid:
        choice(metric, valid, f"--metric for {task}")
    problem.main = metric


def _metric_names(problem: Problem, classes: int) -> tuple[str, ...]:
    if isinstance(problem, Classification):
        return ("accuracy", "macro_f1") if classes > 2 else ("accuracy", "f1", "accuracy_f1")
    if isinstance(problem, MultiLabel):
        return ("micro_f1", "macro_f1", "exact_match", "label_accuracy")
    if isinstance(problem, Tagging):
        named = problem.decides == "f1"
        return ("f1", "precision", "recall", "token_accuracy") if named else ("token_accuracy",)
    if isinstance(problem, PromptedSpans):
        return ("f1", "precision", "recall")
    return ("f1", "exact_match") if isinstance(problem, Extraction) else ("pearson", "spearman", "pearson_spearman")


def _classes(records: Sequence[Record], loaded: LoadedModel, settings: EvaluationSettings) -> Built:
    gold, reading = gold_of(records, loaded, settings.required), head_of_model(loaded.model)
    samples = choice_records(gold.records, CHOICES) if loaded.task.choices else [[record] for record in gold.records]
    rows = [[tokenize(loaded.tokenizer, part, loaded.inputs, settings.sequence) for part in s] for s in samples]
    if reading.kind == "multi-label" and loaded.labels:
        notes = (*gold.notes, _without_any(gold.values))
        return rows, MultiLabel(gold.records, gold.names, gold.values, gold.reason, reading), notes
    if reading.kind == "scores":
        return rows, Regression(gold.records, gold.values, gold.reason, reading), gold.notes
    return rows, Classification(gold.records, gold.names, gold.values, gold.reason), gold.notes


def _without_any(sets: Any) -> str:
    """A note on texts without any class, which an empty cell stands for."""
    empty = 0 if sets is None else int((~sets.any(axis=1)).sum())
    return f"{empty} of {len(sets)} texts have none of the classes" if empty else ""


def _pairs(records: Sequence[Record], loaded: LoadedModel, settings: EvaluationSettings) -> Built:
    if not {SENTENCE_EMBEDDING, STATES} & set(loaded.outputs):  # those of a class of the user's own
        rows = [[tokenize(loaded.tokenizer, record, loaded.inputs, settings.sequence)] for record in records]
        return rows, Unscored(records, f"there is no metric for the outputs {', '.join(loaded.outputs)}"), ()
    if not any_label(records) or any(record.pair is None for record in records):
        rows = [[tokenize(loaded.tokenizer, record, loaded.inputs, settings.sequence)] for record in records]
        return rows, Unscored(records, "similarity needs text pairs with a score, and these are none"), ()
    sides = [Record(text) for record in records for text in (record.text, str(record.pair))]
    rows = [[tokenize(loaded.tokenizer, side, loaded.inputs, settings.sequence)] for side in sides]
    gold, reason = numbers(records, settings.required)
    similarity = loaded.chain.similarity if loaded.chain else "cosine"
    note = f"similarity is the {similarity} one that the model's files ask for" if similarity != "cosine" else ""
    return rows, Similarity(records, gold, reason, similarity), (note,)


def _tags(records: Sequence[Record], loaded: LoadedModel, settings: EvaluationSettings) -> Built:
    typed = has_types(loaded.tokenizer, loaded.inputs)
    tagged = tagged_rows(loaded.tokenizer, records, settings.sequence, typed)
    gold = tags_of(records, loaded, settings.required)
    problem = Tagging(records, tagged, gold.names, gold.values, gold.reason)
    return [[row.tokens] for row in tagged], problem, (unseen(tagged),)


def _answers(records: Sequence[Record], loaded: LoadedModel, settings: EvaluationSettings) -> Built:
    if any(record.pair is None for record in records):
        return _plain(records, loaded, settings)
    typed = has_types(loaded.tokenizer, loaded.inputs)
    found = windows(loaded.tokenizer, records, settings.sequence, settings.overlap, typed)
    scoring: Scoring = settings.scoring or detect_scoring([record.pair or "" for record in records])  # type: ignore[assignment]
    bare = sum(record.answers is None for record in records)
    reason = ""
    if bare:
        reason = f"{bare} of {len(records)} questions have no answers"
        if settings.required and bare < len(records):
            raise DataError(f"{reason}; give a file with the answers of all, or of none")
    note = f"{len(found)} windows for {len(records)} questions" if len(found) > len(records) else ""
    return [[part.tokens] for part in found], Extraction(records, found, scoring, reason), (note,)


def _prompted(records: Sequence[Record], loaded: LoadedModel, settings: EvaluationSettings) -> Built:
    if any(record.pair is None for record in records):
        return _plain(records, loaded, settings)
    rows = parts(loaded.tokenizer, records, settings.sequence, has_types(loaded.tokenizer, loaded.inputs))
    bare = sum(record.spans is None for record in records)
    reason = f"{bare} of {len(records)} prompts have no result_list" if bare else ""
    if settings.required and 0 < bare < len(records):
        raise DataError(f"{reason}; give a file with the answers of all, or of none")
    # Contents in several rows, and answers that no row holds
    several = f"{len(rows)} rows for {len(records)} prompts" if len(rows) > len(records) else ""
    lost = sum(row.lost for row in rows)
    cut = f"{lost} answers do not fit into a row of {settings.sequence} tokens and are not scored" if lost else ""
    return [[row.tokens] for row in rows], PromptedSpans(records, rows, reason), (several, cut)


def _plain(records: Sequence[Record], loaded: LoadedModel, settings: EvaluationSettings) -> Built:
    rows = [[tokenize(loaded.tokenizer, record, loaded.inputs, settings.sequence)] for record in records]
    return rows, Unscored(records, f"there is no metric for {loaded.task.name} on this kind of file"), ()


_BUILDERS: Mapping[str, Callable[[Sequence[Record], Any, EvaluationSettings], Built]] = {
    "text-classification": _classes,
    "next-sentence-prediction": _classes,
    "multiple-choice": _classes,
    "feature-extraction": _pairs,
    "token-classification": _tags,
    "question-answering": _answers,
    INFORMATION_EXTRACTION: _prompted,
    "fill-mask": _plain,
    "language-modeling": _plain,
}
