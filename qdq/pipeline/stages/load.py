"""Stage 1, load: the model in memory, and whatever of the request it cannot take refused before anything is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdq.base.screen import Stage
from qdq.errors import ConfigError, DataError, ModelError
from qdq.loading.kinds import CHOICES
from qdq.pipeline.run import Run, prepare_torch

if TYPE_CHECKING:
    from qdq.loading.model import LoadedModel
    from qdq.tasks.evaluation import Evaluation

VERIFY_BATCH = 32
ONNX_TENSOR_BYTES = 2**31
VOCABULARY_TASKS = ("fill-mask", "language-modeling")  # tasks whose output has a row over the vocabulary per token


def load(run: Run, stage: Stage) -> tuple[LoadedModel]:
    """Stage 1: the model. Refuses, before anything is written, a shape or labels this model cannot take."""
    from qdq.loading.model import load_model

    prepare_torch(run.options.threads)
    options = run.options
    loaded = load_model(options.model, options.task, options.allow_pickle, options.model_class)
    check_shape(loaded, run.options.batch, run.options.sequence)
    check_tables(loaded)
    evaluation_for(run, loaded)
    parameters = sum(parameter.numel() for parameter in loaded.model.parameters())
    said = f"{loaded.model.config.model_type}, {loaded.task.name}, {parameters / 1e6:.1f} M parameters"
    prompts = loaded.chain.says() if loaded.chain else ""
    stage.say(f"{said}; {prompts}" if prompts else said)
    return (loaded,)


def check_shape(loaded: LoadedModel, batch: int, sequence: int) -> None:
    """Raise ConfigError for a sequence beyond the position embeddings or what the tokenizer makes, or a batch beyond
    this machine's memory.
    """
    from engines.bench.machine import machine

    if sequence > loaded.max_sequence:
        raise ConfigError(
            f"--sequence (SEQ=): {sequence} is beyond the {loaded.max_sequence} positions of {loaded.name}; "
            f"give at most {loaded.max_sequence}"
        )
    config = loaded.model.config
    hidden, heads = config.hidden_size, config.num_attention_heads
    per_token = 8 * hidden + heads * sequence + (config.vocab_size if loaded.task.name in VOCABULARY_TASKS else 0)
    floats = batch * sequence * per_token * (CHOICES if loaded.task.choices else 1)
    needed, memory = floats * 4 / 2**30, machine()["memory_gib"]
    if memory and needed > memory / 2:
        raise ConfigError(
            f"--batch (BATCH=): {batch} x {sequence} needs about {needed:.0f} GiB for activations and this machine has "
            f"{memory:.0f} GiB; give a smaller batch or sequence"
        )
    if sequence > loaded.tokenizer.model_max_length:  # its texts would be cut there, and no row could be filled
        longest = int(loaded.tokenizer.model_max_length)
        raise ConfigError(
            f"--sequence (SEQ=): {sequence} is beyond the {longest} tokens that the tokenizer of {loaded.name} cuts "
            f"its texts to; give at most {longest}, or a larger model_max_length (max_seq_length) in the checkpoint"
        )


def check_tables(loaded: LoadedModel) -> None:
    """Raise ModelError for a table that no ONNX file can hold: protobuf limits one tensor to 2 GiB."""
    for name, parameter in loaded.model.named_parameters():
        size = 4 * parameter.numel()
        if size >= ONNX_TENSOR_BYTES:
            rows = int(parameter.shape[0] * ONNX_TENSOR_BYTES / size)
            raise ModelError(
                f"{loaded.name}: {name} {list(parameter.shape)} is {size / 2**30:.1f} GiB in FP32, and a tensor of an "
                f"ONNX file holds 2 GiB at most; give a model with fewer than {rows} rows (a smaller vocabulary)"
            )


def evaluation_for(run: Run, loaded: LoadedModel) -> Evaluation:
    """The evaluation texts as feeds and labels of `loaded`'s task.

    Raises DataError when the user named the label column and it does not hold the model's classes.
    """
    from qdq.tasks.loading import EvaluationSettings, evaluation_of

    texts, required = run.evaluation, run.options.label_column is not None
    settings = EvaluationSettings(run.options.sequence, VERIFY_BATCH, required=required and not texts.bundled)
    evaluation = evaluation_of(texts.records, loaded, settings, texts.source)
    if required and not evaluation.labelled and all(record.label is None for record in texts.records):
        reason = f"no text of {texts.source} has a label"
        if not texts.bundled:
            raise DataError(f"{reason}; name another --label-column, or leave it out")
        # the column is there, but the calibration took every row
        run.screen.warn(f"no task metric: {reason}; give labelled text to --eval-data (EVAL=)")
    return evaluation
