"""CompressionArguments: every parameter of the compression API under its documented name and default.

The names and defaults are those of PaddleNLP's compression API (docs/compression.md of PaddleNLP 2.5). What
transformers 5 no longer spells that way is translated: `warmup_ratio`, ``optim=adamw`` and ``device=gpu``.
"""
# No `from __future__ import annotations`: HfArgumentParser reads the annotations as objects.

import logging
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, cast

import torch
from transformers import TrainingArguments

from qdq.base.config import choice
from qdq.calibrate.algorithms import ALGORITHMS, ALIASES, algorithm_named
from qdq.calibrate.treatments.settings import ACTIVATION_TYPES, ROUND_TYPES, WEIGHT_TYPES
from qdq.compress.strategy import Strategy, parse_strategy
from qdq.errors import ConfigError
from qdq.inject.spec import PLACEMENTS
from qdq.pipeline.options import INPUT_TYPES, SEARCH, TARGETS

logger = logging.getLogger(__name__)

DEVICES = ("gpu", "cpu")
DOCUMENTED_OPTIM = "adamw"


class Width(Fraction):
    """A share of heads and neurons to keep, written 3/4 or 0.75."""

    def __new__(cls, value: Any = 0, denominator: int | None = None) -> "Width":
        return super().__new__(cls, value, denominator)


class BatchCount(int):
    """A number of batches; "None" or "all" is the whole data set."""

    def __new__(cls, value: Any) -> "BatchCount | None":  # type: ignore[misc]  # None is what the API documents
        if value is None or str(value).lower() in ("none", "all"):
            return None
        return super().__new__(cls, value)


def _option(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


def _help(text: str) -> dict[str, str]:
    return {"help": text}


@dataclass
class CompressionArguments(TrainingArguments):
    """Training arguments and compression parameters; parsed by HfArgumentParser.

    Raises ConfigError for a value that cannot be used, when it is made. What depends on the model or the data is
    checked by `CompressionTrainer.compress` before anything is trained.
    """

    strategy: str = _option("dynabert+ptq", "steps joined by +: dynabert, ptq, qat, dynamic, embeddings")
    input_infer_model_path: str | None = _option(None, "an ONNX file to quantize instead of a module (strategy ptq)")
    input_dtype: str = _option("int64", "integer type of the exported graph's inputs: int64 or int32")
    width_mult_list: list[Width] = field(
        default_factory=lambda: [Width("3/4")],
        metadata=_help("shares of heads and FFN neurons to keep, one model each; 3/4 suits 6 layers, 2/3 12"),
    )
    # Names of the API whose default differs from transformers' or which transformers 5 dropped
    save_steps: float = _option(100, "steps between checkpoints: evaluated, continued from, and the best kept")
    optim: str = _option(DOCUMENTED_OPTIM, "optimizer: adamw, or any name transformers knows")
    warmup_ratio: float = _option(0.0, "share of all steps to warm the learning rate up over; warmup_steps wins")
    device: str = _option("gpu", "gpu (falls back to the CPU where there is none) or cpu")  # type: ignore[assignment]
    # PTQ
    algo_list: list[str] = field(
        default_factory=lambda: ["mse", "KL"],
        metadata=_help(f"ranges to try: {', '.join((*ALIASES, *ALGORITHMS, SEARCH))}"),
    )
    batch_num_list: list[BatchCount] = field(
        default_factory=lambda: [cast(BatchCount, 1)],
        metadata=_help("numbers of calibration batches to try; None is all data"),
    )
    batch_size_list: list[int] = field(default_factory=lambda: [4], metadata=_help("calibration batch sizes to try"))
    weight_quantize_type: str = _option("channel_wise_abs_max", f"scale of weights: {', '.join(WEIGHT_TYPES)}")
    activation_quantize_type: str | None = _option(
        None, f"{', '.join(ACTIVATION_TYPES)}; range_abs_max in ptq, moving_average_abs_max in qat"
    )
    round_type: str = _option("round", "weight rounding: round, adaround (arXiv 2004.10568) or gptq (arXiv 2210.17323)")
    bias_correction: bool = _option(False, "correct the mean error of quantized weights (arXiv 1810.05723)")
    # QAT
    use_pact: bool = _option(True, "learn the clipping of activations (PACT, arXiv 1805.06085)")
    moving_rate: float = _option(0.9, "decay of moving_average_abs_max")
    # Beyond the documented API
    value_centering: bool = _option(False, "ptq: move a constant per value channel out of attention")
    equalization: bool = _option(False, "ptq: equalize query against key and value against output channels")
    smoothing: bool = _option(False, "ptq: divide outlier channels in front of linears (SmoothQuant)")
    residual_scaling: bool = _option(False, "ptq: scale outlier channels of residual adds by powers of two")
    softmax_scale: bool = _option(False, "ptq: softmax outputs have the range 1 whatever the data")
    deploy: list[str] = field(
        default_factory=list,
        metadata=_help("targets to compile, benchmark and prepare for Triton at the end, for every candidate"),
    )
    deploy_data: str | None = _option(None, "text the engines are compared and timed with; bundled text by default")
    placement: str = _option("qdqbert", f"points to quantize: {', '.join(PLACEMENTS)}")
    distillation: bool = _option(True, "qat: learn from the given model's logits and states as well as from the labels")
    freeze_observers: float = _option(0.8, "qat: share of the training after which activation ranges stay")

    def __post_init__(self) -> None:
        self._requested_device: str
        if str(self.optim) == DOCUMENTED_OPTIM:
            self.optim = TrainingArguments.default_optim
        if self._requested_device == "cpu" or not torch.accelerator.is_available():
            self.use_cpu = True
        self._check_choices()
        self._check_numbers()
        try:
            super().__post_init__()  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise ConfigError(f"training arguments: {error}") from error

    def _check_choices(self) -> None:
        parse_strategy(self.strategy)
        choice(self.input_dtype, INPUT_TYPES, "input_dtype")
        choice(self.weight_quantize_type, WEIGHT_TYPES, "weight_quantize_type")
        choice(self.round_type, ROUND_TYPES, "round_type")
        choice(self.placement, PLACEMENTS, "placement")
        if self.activation_quantize_type is not None:
            choice(self.activation_quantize_type, ACTIVATION_TYPES, "activation_quantize_type")
        for name in ("algo_list", "batch_num_list", "batch_size_list", "width_mult_list"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: is empty; give at least one value")
        for algorithm in self.algo_list:
            if algorithm != SEARCH:
                algorithm_named(algorithm, where="algo_list")
        for target in self.deploy:
            choice(target, TARGETS, "deploy")

    def _check_numbers(self) -> None:
        try:
            widths = [Width(width) for width in self.width_mult_list]
        except (ValueError, TypeError, ZeroDivisionError) as error:
            raise ConfigError(f"width_mult_list: {error}; write fractions such as 3/4 or 0.75") from error
        for width in widths:
            if not 0 < width <= 1:
                raise ConfigError(f"width_mult_list: {width} is outside (0, 1]; write fractions such as 3/4 or 0.75")
        for name in ("batch_num_list", "batch_size_list"):
            for value in getattr(self, name):
                if (value is None and name == "batch_size_list") or (value is not None and int(value) < 1):
                    raise ConfigError(f"{name}: {value} is not a positive number; give at least 1")
        for name, upper in (("warmup_ratio", 1.0), ("moving_rate", 1.0), ("freeze_observers", 1.0)):
            if not 0 <= getattr(self, name) <= upper:
                raise ConfigError(f"{name}: {getattr(self, name)} is outside [0, {upper:g}]")

    @property
    def chosen_strategy(self) -> Strategy:
        """`strategy`, parsed."""
        return parse_strategy(self.strategy)

    @property
    def widths(self) -> tuple[Fraction, ...]:
        """`width_mult_list` as exact fractions, largest first, without repetitions."""
        return tuple(sorted({Fraction(width) for width in self.width_mult_list}, reverse=True))

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Steps of the warm-up: `warmup_steps`, else `warmup_ratio` of all steps."""
        if self.warmup_steps:
            return int(super().get_warmup_steps(num_training_steps))
        return -int(-num_training_steps * Fraction(self.warmup_ratio).limit_denominator(10**6) // 1)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values as typed: widths as fractions, the device by its documented name."""
        values: dict[str, Any] = super().to_dict()  # type: ignore[no-untyped-call]
        return values | {"device": self._requested_device, "width_mult_list": [str(width) for width in self.widths]}


def _get_device(self: CompressionArguments) -> torch.device:
    return self._setup_devices


def _set_device(self: CompressionArguments, value: Any) -> None:
    requested = {"cuda": "gpu"}.get(str(value).partition(":")[0], str(value).partition(":")[0])
    choice(requested, DEVICES, "device")
    if requested == "gpu" and not torch.accelerator.is_available():
        logger.warning("device=gpu: this machine has none; running on the CPU")
    self._requested_device = requested


# TrainingArguments has a property of this name, which Trainer reads; the documented option has it too. The dataclass
# has taken the field's default by now, so one property can serve both.
CompressionArguments.device = property(_get_device, _set_device)  # type: ignore[assignment]
