"""Trainings of a search: `compress()` on its rows, scored by those that choose; and what a training step costs here."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from transformers import DataCollatorForTokenClassification, DataCollatorWithPadding, PreTrainedModel

from engines.targets import TARGETS
from qdq.auto.search.candidates import Candidate
from qdq.auto.search.material import Judges, Sample, metric_of
from qdq.auto.search.plan import CHECKPOINTS
from qdq.auto.search.settings import SearchSettings
from qdq.base.artifacts import read_json
from qdq.compress import CompressionArguments, CompressionTrainer
from qdq.compress.datasets import Labels, LengthGrouped, lengths_of
from qdq.compress.distillation import WidthDistillation
from qdq.compress.elastic import make_elastic, sizes_at
from qdq.inject.widths import blocks
from qdq.loading.model import LoadedModel
from qdq.uie.rows import LABELS as MARKS
from qdq.uie.rows import MarksCollator

BATCH = 32  # texts of a step
LEARNING_RATE = {"dynabert": 3e-5, "qat": 1e-5}  # small: both start close to the model they learn from
# Placement of quantization-aware training, whose points no answers choose: what `--placement auto` starts from
PLACEMENTS = {"cpu": "linear+qk", "tensorrt": "fused"}
MEASURED_STEPS = 6
WARM_STEPS = 2
MEASURED_WIDTH = 2 / 3  # about which most students are


@dataclass(frozen=True)
class Step:
    """Measured seconds of a training step of `BATCH` texts at full width, and of the teacher's part of it.

    `bf16`: products in bfloat16 are faster on this machine, so trainings use them.
    """

    seconds: float
    teacher: float
    bf16: bool


def measure_step(loaded: LoadedModel, samples: Sequence[Sample], seed: int) -> Step:
    """Time steps of a distillation on batches of similar length, in FP32 and in bfloat16."""
    teacher = loaded.model
    heads = blocks(teacher)[0].heads
    sizes = sizes_at(teacher, [Fraction(max(1, round(heads * MEASURED_WIDTH)), heads)])
    student = copy.deepcopy(teacher).requires_grad_(True)
    module = WidthDistillation(student, make_elastic(student), teacher, sizes, Labels())
    batches, share = _some(loaded, samples, seed)
    optimizer = torch.optim.AdamW(student.parameters(), lr=0.0)

    def step(batch: Any) -> None:
        module(**batch)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()

    def forward(batch: Any) -> None:
        with torch.no_grad():
            teacher(**batch)

    found = []
    for bf16 in (False, True):
        whole, alone = (_seconds(function, batches, bf16) / share for function in (step, forward))
        own = max(0.0, whole - alone) / float(sizes[0].width)  # as it would be at full width
        found.append(Step(own + alone, alone, bf16))
    return min(found, key=lambda one: one.seconds)


def _some(loaded: LoadedModel, samples: Sequence[Sample], seed: int) -> tuple[list[dict[str, torch.Tensor]], float]:
    """A few batches as trainings see them, without labels, and the tokens of a timed one over those of the average."""
    lengths = lengths_of(samples)
    order = list(LengthGrouped(lengths, BATCH, seed))
    parts = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    sizes = [len(part) * max(lengths[index] for index in part) for part in parts]  # padding included
    # Rows of the first ones
    pad = DataCollatorWithPadding(loaded.tokenizer)
    few = parts[: WARM_STEPS + MEASURED_STEPS]
    batches = [dict(pad([{name: samples[index][name] for name in loaded.inputs} for index in part])) for part in few]
    timed = sizes[min(WARM_STEPS, len(few) - 1) : len(few)]
    return batches, (sum(timed) / len(timed)) / (sum(sizes) / len(sizes))


def _seconds(function: Callable[[Any], None], batches: Sequence[Any], bf16: bool) -> float:
    """Mean seconds of a call, behind a few that warm up; of the same batches for everyone."""
    start, warm = time.perf_counter(), min(WARM_STEPS, len(batches) - 1)
    for number, batch in enumerate(batches):
        if number == warm:
            start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
            function(batch)
    return (time.perf_counter() - start) / (len(batches) - warm)


@dataclass(frozen=True)
class Start:
    """Beginning of a training: the given model, which teaches, and the model of some width that is trained on."""

    given: LoadedModel
    model: PreTrainedModel
    width: Fraction


@dataclass(frozen=True)
class Trained:
    """A trained checkpoint, and the metric of its model in torch on the rows that choose."""

    folder: Path
    metric: float
    step: int | None  # whose model was the best


def train(
    candidate: Candidate,
    settings: SearchSettings,
    start: Start,
    samples: Sequence[Sample],
    judges: Judges,
    **how: Any,
) -> Trained:
    """Distil the candidate's width, or train its quantizers, in ``how["output"]`` with ``how["steps"]`` steps.

    A training that was killed continues from its last checkpoint. Raises what `compress()` raises.
    """
    # The arguments of the training
    method = "qat" if candidate.quantization == "qat" else "dynabert"
    steps, output = int(how["steps"]), Path(how["output"])
    kind = TARGETS[str(how["target"])].placement
    args = CompressionArguments(
        output_dir=str(output),
        strategy=method,
        width_mult_list=[str(candidate.width / start.width)],  # of what the start has
        placement=PLACEMENTS.get(kind, PLACEMENTS["cpu"]),
        **_ptq_arguments(method),
        max_steps=steps,
        save_steps=max(1, -(-steps // CHECKPOINTS)),
        per_device_train_batch_size=BATCH,
        learning_rate=LEARNING_RATE[method],
        warmup_ratio=0.1,
        weight_decay=0.01,
        lr_scheduler_type="linear",
        train_sampling_strategy="group_by_length",
        bf16=bool(how["bf16"]),
        seed=settings.seed,
        report_to="none",
        disable_tqdm=True,
        logging_steps=max(1, steps // 10),
        device="gpu" if torch.accelerator.is_available() else "cpu",
    )
    # Its data, and the metric that keeps the best model
    loaded = start.given
    options = _trainer_options(loaded)
    args.label_names = options.pop("label_names", None)
    metric = metric_of(judges.choosing, loaded)
    data = {"train_dataset": list(samples), "eval_dataset": list(samples[: 16 * BATCH])}
    trainer = CompressionTrainer(start.model, args, tokenizer=loaded.tokenizer, **data, **options)
    trainer.teacher = loaded.model
    trainer.compress(custom_evaluate=lambda model, loader: metric(model))
    best = read_json(output / "compression.json")["candidates"][0]
    return Trained(output / best["folder"], float(best["metric"]), best["notes"].get("best_step"))


def _ptq_arguments(method: str) -> dict[str, Any]:
    """Ranges and treatments that quantization-aware training starts from: those of `qdq compile` but rescaled adds."""
    if method != "qat":
        return {}
    treated = ("equalization", "smoothing", "softmax_scale", "bias_correction")
    ranges = {"algo_list": ["clip"], "batch_size_list": [8], "batch_num_list": [16], "round_type": "gptq"}
    return {**ranges, **dict.fromkeys(treated, True), "freeze_observers": 0.5}


def _trainer_options(loaded: LoadedModel) -> dict[str, Any]:
    """Collator and label names of the task."""
    if loaded.task.name == "token-classification":
        return {"data_collator": DataCollatorForTokenClassification(loaded.tokenizer)}
    if "start_prob" in loaded.outputs:
        return {"data_collator": MarksCollator(loaded.tokenizer), "label_names": list(MARKS)}
    return {"data_collator": DataCollatorWithPadding(loaded.tokenizer)}


def use_threads(threads: int) -> None:
    """Train on that many threads."""
    from qdq.pipeline.run import prepare_torch

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    prepare_torch(threads)
