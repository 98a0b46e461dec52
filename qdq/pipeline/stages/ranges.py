"""Part of stage 3: text through the injected model, for one calibration or a sweep over several."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from qdq.base.screen import Stage
from qdq.loading.kinds import CHOICES
from qdq.pipeline.run import Run

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qdq.calibrate.table import CalibrationTable
    from qdq.calibrate.treatments.sweep import Score, Swept
    from qdq.inject.spec import QuantSpec
    from qdq.loading.model import EncoderModule, LoadedModel
    from qdq.text.data import Record
    from qdq.text.encode import Feed

ENCODED_AT_ONCE = 64  # texts; bounds the padding of one array
SCORED = ("text-classification", "next-sentence-prediction", "multiple-choice")
SCORE_BATCH = 32


@dataclass(frozen=True)
class Calibrated:
    """The table, the source of its text, a line for the screen, what treatments did, and the content of sweep.json."""

    table: CalibrationTable
    source: str
    summary: str
    treatments: Mapping[str, Any] = field(default_factory=dict)
    sweep: Mapping[str, Any] = field(default_factory=dict)


def measured(run: Run, loaded: LoadedModel, spec: QuantSpec, stage: Stage) -> Calibrated:
    """Calibrate and treat the injected model of `loaded` as the options say."""
    from qdq.calibrate.calibrate import default_percentile
    from qdq.calibrate.rebatch import MicroBatches
    from qdq.calibrate.treatments.order import finish, prepare
    from qdq.text.encode import check_language

    options, texts = run.options, run.calibration
    if options.calibration is None and (warning := check_language(loaded.tokenizer, texts.records)):
        run.screen.warn(warning)
    batches = encoded(run, loaded)
    if options.sweeps:
        return _swept(run, loaded, spec, batches, stage)
    algorithm = options.algorithm(default_percentile(spec))
    forwards = MicroBatches.of(batches, options.ptq_settings().batch_size_list[0])
    prepared = prepare(loaded.module(), forwards, spec, [algorithm], options.treatments, stage.progress)
    table, report = finish(prepared, algorithm)
    how = "clipped ranges" if options.treatments.clip_search else algorithm.label
    summary = f"{how}{_smoothed(report)} over {table.tokens} tokens of {texts.source}"
    return Calibrated(table, texts.source, summary, report)


def _smoothed(report: Mapping[str, Any]) -> str:
    rows = report.get("smoothing", [])
    return f", {sum(row['alpha'] is not None for row in rows)} of {len(rows)} inputs smoothed," if rows else ""


def encoded(run: Run, loaded: LoadedModel) -> list[dict[str, Tensor]]:
    """The calibration texts as tensors, in their order."""
    import torch

    records = run.calibration.records
    # The other texts are a question's wrong answers, so all of them at once.
    size = len(records) if loaded.task.choices else ENCODED_AT_ONCE
    feeds = feeds_of(run, loaded, records, size)
    return [{name: torch.from_numpy(array) for name, array in feed.items()} for feed in feeds]


def feeds_of(run: Run, loaded: LoadedModel, records: Sequence[Record], size: int) -> list[Feed]:
    """Feeds of up to `size` records each as the model's task takes them, padded to their longest."""
    from qdq.text.encode import encode_batch

    tokenizer, inputs, sequence = loaded.tokenizer, loaded.inputs, run.options.sequence
    choices = CHOICES if loaded.task.choices else None
    parts = (records[i : i + size] for i in range(0, len(records), size))
    return [encode_batch(tokenizer, part, inputs, sequence, "longest", choices) for part in parts]


def _swept(
    run: Run, loaded: LoadedModel, spec: QuantSpec, batches: list[dict[str, Tensor]], stage: Stage
) -> Calibrated:
    """Try the options' lists on copies of the model; give the model itself what the best one decided."""
    from qdq.calibrate.treatments.sweep import set_quantization_state, sweep, table_text

    settings = run.options.ptq_settings()
    blank = copy.deepcopy(loaded.module())
    score, scored_on = scorer(run, loaded)
    found: Swept = sweep(
        lambda: copy.deepcopy(blank), batches, spec, settings, run.options.treatments, score, stage.progress
    )
    set_quantization_state(loaded.module(), found.state)
    run.screen.line(table_text(found.trials))
    best = next(trial for trial in found.trials if trial.best)
    summary = f"{best.algorithm} is the best of {len(found.trials)} candidates, scored on {scored_on}"
    content = {
        "settings": run.options.ptq_json(),
        "scored_on": scored_on,
        "candidates": [trial.as_json() for trial in found.trials],
    }
    return Calibrated(found.table, run.calibration.source, summary, found.report, content)


def scorer(run: Run, loaded: LoadedModel) -> tuple[Callable[[nn.Module], Score], str]:
    """A function that scores a quantized module on the evaluation text against FP32, and what that text is.

    With labels the task metric counts first and closeness to FP32 second; without, closeness alone.
    """
    from engines.compare import Reading, compare
    from qdq.loading.runner import TorchRunner
    from qdq.tasks.gold import gold_of
    from qdq.tasks.heads import head_of_model

    texts, threads = run.evaluation, run.options.threads
    labels, records, head = None, texts.records, head_of_model(loaded.model)
    if head.kind == "classes" and loaded.task.name in SCORED:
        gold = gold_of(texts.records, loaded)
        labels, records = gold.values, tuple(gold.records)
    feeds = feeds_of(run, loaded, records, SCORE_BATCH)
    expected = _floating(loaded, feeds, threads)
    reading = Reading(head.compared_as or loaded.task.name, head.cuts)

    def score(module: nn.Module) -> Score:
        outputs = iter(expected)
        runner = TorchRunner(cast("EncoderModule", module), threads)  # a copy of loaded.module()
        report = compare(lambda _: next(outputs), runner, feeds, reading, labels)
        distance = report["logit_mse"] if report["logit_mse"] is not None else report["mean_abs_error"]
        metric = report.get("metric")
        scores = {} if metric is None else {metric["name"]: metric["int8"]}
        return {**scores, "minus_error": -distance, "agreement": report["agreement"], "cosine": report["cosine_mean"]}

    return score, texts.source


def _floating(loaded: LoadedModel, feeds: list[Any], threads: int) -> list[Any]:
    """FP32 outputs of every feed, by the injected model with its quantizers disabled."""
    from qdq.inject import quantizers
    from qdq.loading.runner import TorchRunner

    module = loaded.module()
    for point in quantizers(module).values():
        point.disable_quant()
    runner = TorchRunner(module, threads)
    return [runner(feed) for feed in feeds]
