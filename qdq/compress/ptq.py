"""The method `ptq`: one model per calibration algorithm, batch size and number of batches.

Activation types for a graph with one scale per tensor: range_abs_max takes the algorithm's range;
abs_max, which PaddleNLP measures anew on every batch, is the largest magnitude of the calibration data; and
moving_average_abs_max is the moving average of the batches' largest magnitudes. The last two are ranges by themselves:
`algo_list` beside them is refused.

`algo_list` may name `clip` as well, and the treatments are those of `qdq compile` (docs/calibration.md).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from qdq.base.option import values_for
from qdq.calibrate.algorithms import CLIP, Algorithm, algorithm_named
from qdq.calibrate.rebatch import MicroBatches
from qdq.calibrate.treatments.order import finish, prepare
from qdq.calibrate.treatments.settings import RANGES, TreatmentOptions, Treatments
from qdq.compress.arguments import CompressionArguments
from qdq.compress.datasets import Batches
from qdq.compress.method import CompressedModel, Method, Session
from qdq.inject import inject, quantizers
from qdq.inject.spec import named_spec


class Ptq(Method):
    """Post-training quantization over `algo_list` x `batch_size_list` x `batch_num_list`.

    `name` is the method that it calibrates for: ptq itself, or qat, which trains the best one on. `adaround`: passes
    over the calibration batches and learning rate of round_type adaround; None is its own number of steps.
    """

    def __init__(self, name: str = "ptq", adaround: tuple[int, float] | None = None) -> None:
        self.name, self._adaround = name, adaround

    def run(self, session: Session, before: CompressedModel) -> list[CompressedModel]:
        """Every combination of the lists, the best one first; one pass over the data serves all algorithms."""
        args = session.args
        per_channel = args.weight_quantize_type == "channel_wise_abs_max"
        spec = session.spec or named_spec(args.placement, per_channel_weights=per_channel)
        found = algorithms(args, self.name)
        treated = treatments(args, found)
        made = []
        # Collect statistics once per amount of data.
        for size, count in itertools.product(args.batch_size_list, args.batch_counts):
            batches = MicroBatches.as_given(calibration_batches(session.eval, size, count))
            if self._adaround is not None:
                treated = replace(treated, adaround=(self._adaround[0] * len(batches), self._adaround[1]))
            model = copy.deepcopy(before.model).train(False)
            inject(model, spec)
            with session.screen.stage("calibrate") as stage:
                prepared = prepare(model, batches, spec, list(found.values()), treated, stage.progress)
                stage.say(f"{prepared.collected.samples} samples, {prepared.collected.tokens} tokens")
            # Take each algorithm's ranges from them, and score the result.
            for label, algorithm in found.items():
                name = f"{label}-{size}x{'all' if count is None else count}"
                mine = replace(treated, clip_search=label == CLIP)
                table, _ = finish(replace(prepared, treatments=mine), algorithm, args.seed)
                notes: dict[str, Any] = {"float_metric": before.metric, "treatments": mine.asked}
                notes |= {"algorithm": label, "batch_size": size, "batch_num": count}
                with session.screen.stage(name) as stage:
                    metric = session.evaluate(model)
                    stage.say(f"{metric:.4f}")
                made.append(before.evolve(name, notes, model=_detached(model), spec=spec, table=table, metric=metric))
        return sorted(made, key=lambda one: -(one.metric or 0.0))


def algorithms(args: CompressionArguments, method: str) -> dict[str, Algorithm]:
    """Algorithms to try, by the name that was typed, each once.

    The activation type decides for `method` ptq; in qat it is how ranges follow the training, which starts from these.
    """
    kind = args.activation_quantize_type if method == "ptq" else None
    if kind in RANGES:
        return {kind: algorithm_named(kind, moving_rate=args.moving_rate)}
    found: dict[str, Algorithm] = {}
    for name in args.algorithms:
        algorithm = algorithm_named("max" if name == CLIP else name, where="algo_list")
        if name == CLIP or algorithm not in found.values():
            found[name] = algorithm
    return found


def treatments(args: CompressionArguments, algorithms: Collection[str]) -> Treatments:
    """Treatments that the arguments ask for; `clip_search` is set when any of the `algorithms` is `clip`."""
    return Treatments(**values_for(TreatmentOptions, args), clip_search=CLIP in algorithms)


def _detached(model: torch.nn.Module) -> torch.nn.Module:
    """Copy `model` without its calibration statistics, which the next algorithm still reads."""
    # deepcopy takes what its memo says of an object instead of copying it.
    return copy.deepcopy(model, {id(point.calibrator): None for point in quantizers(model).values()})


def calibration_batches(data: Batches, size: int, count: int | None) -> Sequence[dict[str, Tensor]]:
    """The first `count` batches of `size` samples (all when None), without labels, with an attention mask."""
    batches = []
    for batch in itertools.islice(data.of_size(size), count):
        inputs = data.labels.without(batch)
        inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
        batches.append(inputs)
    return batches
