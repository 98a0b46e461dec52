"""Materials of `deployed_graph`: those of an FP32 candidate's folder, and those of a quantized ONNX file's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor
from torch.utils.data import TensorDataset
from transformers import AutoTokenizer, default_data_collator

from engines.interface import interface
from engines.types import MatmulNames
from export.to_onnx import export_onnx, save_proto
from qdq.base.choices import INFORMATION_EXTRACTION
from qdq.calibrate.checkpoint import TOKENIZER_FILES
from qdq.compress.datasets import Batches, Labels, NamedTensors
from qdq.compress.deployed_graph import Material
from qdq.compress.engine_module import Scoring
from qdq.compress.evaluators import evaluator_on
from qdq.compress.onnx_file import (
    FLOATING,
    LABELLED,
    ROWS,
    OnnxModule,
    builtin_evaluator,
    read_graph,
    with_int32_inputs,
)
from qdq.errors import ConfigError
from qdq.inject import inject
from qdq.inject.quantizer import folded
from qdq.inject.spec import named_spec
from qdq.loading.kinds import detect_task
from qdq.loading.model import load_model
from qdq.loading.own_class import require_named
from qdq.loading.reference import open_reference
from qdq.loading.source import read_config
from qdq.pipeline.options import CompileOptions, resolve
from qdq.pipeline.run import FLOAT, prepare_torch
from qdq.pipeline.stages.deploy import class_names
from qdq.pipeline.stages.export import export_example
from qdq.pipeline.stages.load import VERIFY_BATCH, check_shape
from qdq.pipeline.texts import calibration_texts, evaluation_texts
from qdq.tasks.loading import EvaluationSettings, evaluation_of
from qdq.text.workload import full_rows

if TYPE_CHECKING:
    from engines.types import Runner
    from qdq.base.types import Feeds, Outputs

Metric = Callable[["Runner"], tuple[str, float] | None]  # of an engine: the metric's name and value, None without one
NOTHING = named_spec("linear", linear=False)
TIMED = 5  # different batches that a benchmark rotates through


def of_checkpoint(folder: Path, work: Path, asked: CompileOptions) -> tuple[Material, CompileOptions, Metric]:
    """Material of a floating-point candidate, its options resolved, and the task metric of an engine by labelled text.

    Its FP32 graph is written to ``work/model.fp32.onnx``, its tokenizer and config to ``work/checkpoint``. Raises what
    loading and reading texts raise.
    """
    # The model, and its graph without quantizers
    require_named(folder, asked.model_class)
    task = asked.task or detect_task(read_config(folder).get("architectures"), str(folder)).name
    options = resolve(replace(asked, model=str(folder), task=task, placement="linear"), folder.name)
    prepare_torch(options.threads)
    loaded = load_model(str(folder), task, options.allow_pickle, options.model_class)
    check_shape(loaded, options.batch, options.sequence)
    texts = evaluation_texts(options, task, calibration_texts(options, task))
    required = options.label_column is not None and not texts.bundled
    settings = EvaluationSettings(options.sequence, VERIFY_BATCH, required=required)
    evaluation = evaluation_of(texts.records, loaded, settings, texts.source)
    timed = full_rows(
        loaded.tokenizer, texts.records, loaded.inputs, loaded.task.shape(options.batch, options.sequence), TIMED
    )
    inject(loaded.model, NOTHING)
    with folded(loaded.model):
        export_onnx(loaded.module(), export_example(loaded), loaded.outputs, work / FLOAT)
    if options.input_dtype == "int32":
        save_proto(with_int32_inputs(read_graph(work / FLOAT)), work / FLOAT)
    _copy_text_files(folder, work / "checkpoint", loaded.tokenizer)
    # Its own library's computation, and the score of an engine
    material = Material(
        name=folder.name,
        graph=work / FLOAT,
        floating=work / FLOAT,
        reference=open_reference(folder, task, options.allow_pickle, options.model_class),
        feeds=evaluation.feeds,
        timed=timed,
        task=evaluation.compared_as,
        token_level=loaded.token_level,
        cuts=evaluation.cuts,
        labels=class_names(loaded),
    )

    def metric(runner: Runner) -> tuple[str, float] | None:
        scores = evaluation.score(runner)
        return (scores.main, scores.value) if scores.metrics else None

    return material, options, metric


def _copy_text_files(source: Path, target: Path, tokenizer: Any) -> None:
    """Copy the files that turn text into ids and numbers into names."""
    target.mkdir(parents=True, exist_ok=True)
    for name in {"config.json", *TOKENIZER_FILES, *tokenizer.vocab_files_names.values()}:
        if (source / name).is_file():
            (target / name).write_bytes((source / name).read_bytes())


def of_file(folder: Path, output: Path, made: Mapping[str, Any], asked: CompileOptions) -> tuple[Any, ...]:
    """Material of a quantized ONNX file in `folder`, its options resolved, and the metric of an engine.

    What it is compared, timed and scored with are the rows of the evaluation data that `compress()` left in `output`;
    `made` is its row of compression.json.
    """
    # The rows as batches of their own lengths, and as batches of one shape
    floating, graph = output / FLOATING, folder / "model.onnx"
    rows = load_file(output / ROWS)
    inputs = [tensor.name for tensor in interface(graph)[0]]
    feeds = {name: rows[name] for name in inputs}
    options = resolve(replace(asked, model=None, placement="linear"), folder.name)
    module = OnnxModule(read_graph(floating))
    count = min(TIMED, -(-len(feeds[inputs[0]]) // options.batch)) * options.batch
    repeated = {name: np.resize(array, (count, *array.shape[1:])) for name, array in feeds.items()}
    # The material
    names = made["notes"]["multiplications"]
    material = Material(
        name=folder.name,
        graph=graph,
        floating=floating,
        reference=_runner(module),
        feeds=[_cropped(batch) for batch in _batches(feeds, VERIFY_BATCH)],
        timed=_batches(repeated, options.batch),
        task=asked.task or _task_of(graph),
        names=MatmulNames(tuple(names["linears"]), tuple(names["products"])),
    )
    return material, options, _file_metric(module, rows, inputs, folder)


def _batches(feeds: Feeds, size: int) -> list[Feeds]:
    """Rows in batches of `size`, the last one smaller."""
    count = len(next(iter(feeds.values())))
    return [{name: array[first : first + size] for name, array in feeds.items()} for first in range(0, count, size)]


def _cropped(feeds: Feeds) -> Feeds:
    """A batch without the columns that are padding in every row, where a mask says so."""
    if "attention_mask" not in feeds:
        return feeds
    longest = max(1, int(np.flatnonzero(feeds["attention_mask"].any(axis=0)).max(initial=0)) + 1)
    return {name: np.ascontiguousarray(array[:, :longest]) for name, array in feeds.items()}


def _runner(module: OnnxModule) -> Runner:
    def run(feeds: Feeds) -> Outputs:
        found = module(**{name: torch.from_numpy(array) for name, array in feeds.items()})
        return {name: value.float().numpy() for name, value in found.items()}

    return run


def _task_of(graph: Path) -> str:
    """The task that a graph's outputs look like."""
    ranks = {tensor.name: len(tensor.shape) for tensor in interface(graph)[1]}
    if {"start_logits", "end_logits"} <= set(ranks):
        return "question-answering"
    if {"start_prob", "end_prob"} <= set(ranks):
        return INFORMATION_EXTRACTION
    known = {2: "text-classification", 3: "token-classification"}
    return known.get(ranks.get("logits", 0), "feature-extraction") if set(ranks) == {"logits"} else "feature-extraction"


def _file_metric(module: OnnxModule, rows: Mapping[str, Any], inputs: Sequence[str], folder: Path) -> Metric:
    """The built-in evaluator of the rows' labels; no metric where none fits."""
    labels = [name for name in rows if name.startswith(LABELLED)]
    columns = [*inputs, *(name.removeprefix(LABELLED) for name in labels)]
    tensors: list[Tensor] = [torch.from_numpy(rows[name]) for name in (*inputs, *labels)]
    names = Labels(tuple(column for column in columns if column not in inputs))
    data = NamedTensors(TensorDataset(*tensors), columns)
    batches = Batches(data, default_data_collator, VERIFY_BATCH, torch.device("cpu"), names)
    tokenizer = AutoTokenizer.from_pretrained(folder) if (folder / "tokenizer_config.json").is_file() else None
    try:
        name, function = builtin_evaluator(module, data[0], tokenizer)
    except ConfigError:
        return lambda runner: None
    evaluate = evaluator_on(batches, None, lambda: (name, function))
    return lambda runner: (name, Scoring(module, evaluate).of(runner))
