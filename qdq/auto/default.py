"""The strategy of a configuration that names none, where nothing can be measured: a narrower model in INT8.

A quarter of the width is cut (or what `target_speedup` asks for), then one calibration decides: by how far it moves the
outputs, it is kept, its settings are searched, or the quantized model is trained. Source: PaddleSlim's rule for
transformers in 2022, which is the version that its document describes. `qdq auto` measures engines instead.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from qdq.auto.config import (
    Configuration,
    Distillation,
    HyperParameterOptimization,
    QuantAware,
    QuantPost,
    TrainConfig,
    TransformerPrune,
)
from qdq.auto.steps import STEPS, Step, calibrated, ptq, qat
from qdq.compress.evaluators import evaluating, logits_of
from qdq.compress.method import CompressedModel, Session
from qdq.errors import ConfigError

STEPS_OF_DEFAULT = ("prune", "trial")
RATIO = 0.25
UNPRUNED = 0.7  # of target_speedup that INT8 gives by itself
KEPT, SEARCHED = 0.01, 0.02  # earth mover's distance of the outputs, below which calibration, and a search, are enough
TRIAL = ("avg", "mse", "KL")
TRIAL_BATCHES = 5
TRAINING = TrainConfig(
    epochs=1,
    eval_iter=500,
    learning_rate=1e-4,
    optimizer_builder={"optimizer": {"type": "Momentum"}, "weight_decay": 4e-5},
)


def default_configuration(given: Configuration, heads: int, target_speedup: float | None) -> Configuration:
    """`given` with the sections of the default strategy; a ratio becomes the next one that cuts whole heads.

    Raises ConfigError for a `target_speedup` that INT8 reaches without pruning, or that leaves no head.
    """
    ratio = RATIO
    if target_speedup is not None:
        if target_speedup <= UNPRUNED:
            raise ConfigError(
                f"target_speedup: {target_speedup} is reached by INT8 alone; give more than {UNPRUNED}, or a section "
                "QuantPost"
            )
        ratio = target_speedup - UNPRUNED
    cut = math.ceil(heads * Fraction(ratio).limit_denominator(1000))
    if cut >= heads:
        raise ConfigError(
            f"target_speedup: {target_speedup} asks for {ratio:.2f} of {heads} heads to be cut; give less than "
            f"{UNPRUNED + (heads - 1) / heads:.2f}"
        )
    train = given.train or TRAINING
    return replace(
        given, train=train, prune=TransformerPrune(cut / heads), distillation=given.distillation or Distillation()
    )


def trial(step: Step, before: CompressedModel) -> CompressedModel:
    """The calibrated model where it is close to `before`; else the best of a search, or a trained one."""
    known = None if step.finished is None else step.finished.part("trial")
    made = before
    if known is None or known["decision"] == "kept":
        section = QuantPost(batch_size=step.materials.rows.batch_size, batch_nums=TRIAL_BATCHES)
        made = calibrated(step, section, before, algo_list=list(TRIAL))
        moved = output_distance(before.model, made.model, step.session)
        known = {"moved": moved, "decision": "kept" if moved < KEPT else "searched" if moved < SEARCHED else "trained"}
        if step.finished is not None:
            step.finished.keep("trial", known)
    how = known["decision"]
    step.session.screen.row("trial", f"outputs moved by {known['moved']:.4f}: {how}")
    if how == "searched":
        searching = replace(step.configuration, quant_post=QuantPost(), search=HyperParameterOptimization())
        made = ptq(replace(step, configuration=searching), before)
    if how == "trained":
        made = qat(replace(step, configuration=replace(step.configuration, quant_aware=QuantAware())), before)
    return replace(made, notes={**made.notes, "trial": known})


@torch.no_grad()
def output_distance(one: nn.Module, other: nn.Module, session: Session) -> float:
    """Earth mover's distance between the values of two models' outputs on a few batches of the evaluation data."""
    values: list[list[Tensor]] = [[], []]
    for batch in itertools.islice(session.eval, TRIAL_BATCHES):
        for model, found in zip((one, other), values, strict=True):
            with evaluating(model):
                output: Any = logits_of(model(**session.eval.labels.without(batch)))
            found += [part.flatten() for part in (output if isinstance(output, tuple) else (output,))]
    first, second = (torch.cat(found).sort().values for found in values)
    return float((first - second).abs().mean())


ALL_STEPS = {**STEPS, "trial": trial}
