"""The step `ptq`: one candidate per calibration algorithm, batch size and number of batches."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from qdq.calibrate.calibrate import CalibrationSettings, calibrate, default_percentile
from qdq.calibrate.calibrators import CALIBRATORS
from qdq.calibrate.table import CalibrationTable
from qdq.compress.arguments import CompressionArguments
from qdq.compress.datasets import Batches, without_labels
from qdq.compress.step import Candidate, Session
from qdq.errors import ConfigError
from qdq.inject import inject
from qdq.inject.families import family_of
from qdq.inject.spec import QuantSpec, named_spec

# Documented algorithm -> our calibrator. Codes are symmetric, so a minimum and a maximum give the larger magnitude.
CALIBRATOR_OF: Mapping[str, str] = {
    "abs_max": "max",
    "min_max": "max",
    "KL": "entropy",
    "hist": "percentile",
    "mse": "mse",
    "avg": "avg",
    "emd": "emd",
}


class Ptq:
    """Post-training quantization over `algo_list` x `batch_size_list` x `batch_num_list`."""

    name = "ptq"

    def check(self, session: Session) -> None:
        """Raise ConfigError for an algorithm this version lacks, ModelError for an unsupported family."""
        family_of(session.model.config.model_type)
        for algorithm in session.args.algo_list:
            if CALIBRATOR_OF[algorithm] not in CALIBRATORS:
                raise ConfigError(f"algo_list: {algorithm} is not available in this version; choose abs_max or hist")

    def run(self, session: Session, candidate: Candidate) -> list[Candidate]:
        """Every combination of the lists, the best one first."""
        args = session.args
        made = []
        for size, count in itertools.product(args.batch_size_list, args.batch_num_list):
            batches = calibration_batches(session.eval, size, count)
            for algorithm in args.algo_list:
                name = f"{algorithm}-{size}x{'all' if count is None else count}"
                with session.screen.stage(name) as stage:
                    model, table = quantized(candidate.model, quant_spec(args), algorithm, batches)
                    notes = {
                        "float_metric": candidate.metric,
                        "algorithm": algorithm,
                        "batch_size": size,
                        "batch_num": count,
                    }
                    new = candidate.evolve(name, notes, model=model, spec=quant_spec(args), table=table)
                    made.append(new.scored(session.evaluate(model)))
                    stage.say(f"{made[-1].metric:.4f}")
        return sorted(made, key=lambda one: -(one.metric or 0.0))


def quant_spec(args: CompressionArguments) -> QuantSpec:
    """What the arguments ask to be quantized."""
    return named_spec(args.placement, per_channel_weights=args.weight_quantize_type == "channel_wise_abs_max")


def quantized(
    model: PreTrainedModel, spec: QuantSpec, algorithm: str, batches: Sequence[Mapping[str, Tensor]]
) -> tuple[PreTrainedModel, CalibrationTable]:
    """A copy of `model` with calibrated quantizers, and its table."""
    copied = copy.deepcopy(model)
    copied.train(False)
    inject(copied, spec)
    settings = CalibrationSettings(CALIBRATOR_OF[algorithm], default_percentile(spec))
    table = calibrate(copied, batches, spec, settings)
    return copied, table


def calibration_batches(data: Batches, size: int, count: int | None) -> list[dict[str, Tensor]]:
    """The first `count` batches of `size` samples (all when None), without labels, with an attention mask."""
    batches = []
    for batch in itertools.islice(data.of_size(size), count):
        inputs = without_labels(batch)
        inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
        batches.append(inputs)
    return batches
