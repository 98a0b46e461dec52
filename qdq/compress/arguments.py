"""CompressionArguments: every parameter of the compression API under its documented name and default.

The names and defaults are those of PaddleNLP's compression API (docs/compression.md of PaddleNLP 2.5). What
transformers 5 no longer spells that way is translated: `warmup_ratio`, ``optim=adamw`` and ``device=gpu``.
"""
# No `from __future__ import annotations`: HfArgumentParser reads the annotations as objects.

import logging
from dataclasses import dataclass, field, fields
from fractions import Fraction
from typing import Any

import torch
from transformers import TrainingArguments

from qdq.base.choices import PLACEMENTS
from qdq.base.config import choice
from qdq.base.option import check_value, help_of, values_for
from qdq.calibrate.algorithms import ALGORITHMS, ALIASES, CLIP, algorithm_named, spelled_today
from qdq.calibrate.treatments.settings import (
    ACTIVATION_TYPES,
    RANGES,
    TreatmentOptions,
    Treatments,
    refuse_idle,
)
from qdq.compress.strategy import Strategies, parse_strategies
from qdq.errors import ConfigError
from qdq.loading.kinds import TASKS
from qdq.pipeline.options import TARGETS, CompileOptions

logger = logging.getLogger(__name__)

DECLARED = {declared.name: declared for declared in fields(CompileOptions)}
CHECKED = (  # as `qdq compile` checks them
    *("input_dtype", "weight_quantize_type", "activation_quantize_type", "round_type", "placement"),
    *("batch_num_list", "batch_size_list"),
)
DEVICES = ("gpu", "cpu")
DOCUMENTED_OPTIM = "adamw"
DOCUMENTED_ALGORITHMS = ("mse", "KL")


def _option(default: Any, text: str) -> Any:
    """Declare a parameter of this API alone; every instance gets a list of its own."""
    if isinstance(default, list):
        return field(default_factory=default.copy, metadata={"help": text})
    return field(default=default, metadata={"help": text})


def _shared(name: str, default: Any) -> Any:
    """Declare a parameter that `qdq compile` has, too, with the default of this API."""
    return _option(default, help_of(DECLARED[name], default=False))


@dataclass
class DocumentedArguments(TrainingArguments):
    """Every parameter with its default and help; `CompressionArguments` checks and reads them."""

    strategy: str = _option(
        "dynabert+ptq", "steps joined by +: dynabert, ptq, qat, dynamic, embeddings; several strategies with commas"
    )
    input_infer_model_path: str | None = _option(
        None, "an ONNX file, or its path without .onnx, to quantize instead of a module"
    )
    input_dtype: str = _option("int64", "integer type of the exported graph's inputs: int64 or int32")
    # str is what HfArgumentParser reads an item as; an instance has fractions.
    width_mult_list: list[str] = _option(
        ["3/4"], "shares of heads and FFN neurons to keep, one model each; 3/4 suits 6 layers, 2/3 12"
    )
    # Names of the API whose default differs from transformers' or which transformers 5 dropped
    save_steps: float = _option(100, "steps between checkpoints: evaluated, continued from, and the best kept")
    optim: str = _option(DOCUMENTED_OPTIM, "optimizer: adamw, or any name transformers knows")
    warmup_ratio: float = _option(0.0, "share of all steps to warm the learning rate up over; warmup_steps wins")
    device: str = _option("gpu", "gpu (falls back to the CPU where there is none) or cpu")  # type: ignore[assignment]
    # PTQ
    algo_list: list[str] | None = _option(
        None, f"ranges to try, mse and KL unless given: {', '.join((*ALIASES, *ALGORITHMS, CLIP))}"
    )
    # str is what HfArgumentParser reads an item as; `batch_counts` has the numbers.
    batch_num_list: list[str] = _option(["1"], "numbers of calibration batches to try; None is all data")
    batch_size_list: list[int] = _option([4], "calibration batch sizes to try")
    weight_quantize_type: str = _shared("weight_quantize_type", "channel_wise_abs_max")
    activation_quantize_type: str | None = _option(
        None, f"{', '.join(ACTIVATION_TYPES)}; range_abs_max in ptq, moving_average_abs_max in qat"
    )
    round_type: str = _shared("round_type", "round")
    bias_correction: bool = _shared("bias_correction", False)
    # QAT
    use_pact: bool = _option(True, "learn the clipping of activations (PACT, arXiv 1805.06085)")
    moving_rate: float = _shared("moving_rate", 0.9)
    # Beyond the documented API
    value_centering: bool = _shared("value_centering", False)
    equalization: bool = _shared("equalization", False)
    smoothing: bool = _shared("smoothing", False)
    residual_scaling: bool = _shared("residual_scaling", False)
    softmax_scale: bool = _shared("softmax_scale", False)
    deploy: list[str] = _option(
        [], "targets to compile, benchmark and prepare for Triton at the end, for every candidate"
    )
    deploy_data: str | None = _option(None, "text the engines are compared and timed with; bundled text by default")
    task: str | None = _option(None, "deploy: the task, where the model's class does not say it")
    placement: str = _option("qdqbert", f"points to quantize: {', '.join(PLACEMENTS)}")
    distillation: bool = _option(True, "qat: learn from the given model's logits and states as well as from the labels")
    freeze_observers: float = _option(0.8, "qat: share of the training after which activation ranges stay")


@dataclass
class CompressionArguments(DocumentedArguments):
    """Training arguments and compression parameters; parsed by HfArgumentParser.

    Raises ConfigError for a value that cannot be used, when it is made. What depends on the model or the data is
    checked by `CompressionTrainer.compress` before anything is trained.
    """

    def __post_init__(self) -> None:
        if str(self.optim) == DOCUMENTED_OPTIM:
            self.optim = TrainingArguments.default_optim
        if self._requested_device == "cpu" or not torch.accelerator.is_available():
            self.use_cpu = True
        if isinstance(self.strategy, (list, tuple)):
            self.strategy = ",".join(self.strategy)
        self._settle_algorithms()
        self.batch_num_list = list(self.batch_counts)  # type: ignore[arg-type]  # what the API documents
        self._check_choices()
        self._check_numbers()
        try:
            super().__post_init__()  # type: ignore[no-untyped-call]
        except ValueError as error:
            raise ConfigError(f"training arguments: {error}") from error

    def _settle_algorithms(self) -> None:
        """Fill in `algo_list`. Raises ConfigError where the activation type of PTQ leaves it nothing to choose."""
        kind, methods = str(self.activation_quantize_type), self.chosen_strategy.methods
        alone = kind in RANGES and "ptq" in methods and "qat" not in methods
        if self.algo_list is None:
            self.algo_list = [kind] if alone else list(DOCUMENTED_ALGORITHMS)
        self.algo_list = [spelled_today(name) for name in self.algo_list]
        if alone:
            refuse_idle(kind, self.algo_list, "activation_quantize_type", "algo_list")

    def _check_choices(self) -> None:
        for name in CHECKED:
            check_value(DECLARED[name], getattr(self, name), name)
        asked = Treatments(**values_for(TreatmentOptions, self), clip_search=False).asked
        if asked and not {"ptq", "qat"} & set(self.chosen_strategy.methods):
            raise ConfigError(
                f"{asked[0]}: is a treatment of ptq and qat, and strategy {self.strategy} has neither; leave it out"
            )
        for algorithm in self.algorithms:
            if algorithm != CLIP:
                algorithm_named(algorithm, where="algo_list")
        for target in self.deploy:
            choice(target, TARGETS, "deploy")
        if self.task is not None:
            choice(self.task, TASKS, "task")

    def _check_numbers(self) -> None:
        for name in ("algo_list", "batch_num_list", "batch_size_list", "width_mult_list"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: is empty; give at least one value")
        try:
            widths = [Fraction(width) for width in self.width_mult_list]
        except (ValueError, TypeError, ZeroDivisionError) as error:
            raise ConfigError(f"width_mult_list: {error}; write fractions such as 3/4 or 0.75") from error
        self.width_mult_list = widths  # type: ignore[assignment]  # what the API documents
        for width in widths:
            if not 0 < width <= 1:
                raise ConfigError(f"width_mult_list: {width} is outside (0, 1]; write fractions such as 3/4 or 0.75")
        for name in ("warmup_ratio", "moving_rate", "freeze_observers"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is outside [0, 1]")

    @property
    def chosen_strategy(self) -> Strategies:
        """`strategy`, parsed: one, or the several to try."""
        return parse_strategies(self.strategy)

    @property
    def algorithms(self) -> list[str]:
        """`algo_list`, which is never None in an instance."""
        return self.algo_list or []

    @property
    def widths(self) -> tuple[Fraction, ...]:
        """`width_mult_list` as exact fractions, largest first, without repetitions."""
        return tuple(sorted({Fraction(width) for width in self.width_mult_list}, reverse=True))

    @property
    def batch_counts(self) -> tuple[int | None, ...]:
        """`batch_num_list` as numbers; None is all data."""
        return tuple(_batch_count(count) for count in self.batch_num_list)

    @property  # type: ignore[misc, override]  # the option and what Trainer reads have one name
    def device(self) -> torch.device:
        """The device of this process; set to gpu or cpu."""
        return self._setup_devices

    @device.setter
    def device(self, value: Any) -> None:
        requested = str(value).partition(":")[0].replace("cuda", "gpu")
        choice(requested, DEVICES, "device")
        if requested == "gpu" and not torch.accelerator.is_available():
            logger.warning("device=gpu: this machine has none; running on the CPU")
        self._requested_device = requested

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Steps of the warm-up: `warmup_steps`, else `warmup_ratio` of all steps."""
        if self.warmup_steps:
            return int(super().get_warmup_steps(num_training_steps))
        return -int(-num_training_steps * Fraction(self.warmup_ratio).limit_denominator(10**6) // 1)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values as typed: widths as fractions, the device by its documented name."""
        values: dict[str, Any] = super().to_dict()  # type: ignore[no-untyped-call]
        return values | {"device": self._requested_device, "width_mult_list": [str(width) for width in self.widths]}


def _batch_count(value: Any) -> int | None:
    """Read a number of batches; None, "None" and "all" are the whole data set. Raises ConfigError."""
    if value is None or str(value).lower() in ("none", "all"):
        return None
    try:
        return int(value)
    except ValueError:
        raise ConfigError(f"batch_num_list: expected a whole number or None, such as 16, found '{value}'") from None
