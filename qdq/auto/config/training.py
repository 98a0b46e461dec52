"""Section TrainConfig: steps, learning rate, optimizer, and what is measured before and while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qdq.auto.config.keys import positive, section, typed
from qdq.auto.config.optimizers import CLIPS, OPTIMIZERS, OPTIMIZERS_REFUSED, REGULARIZERS, GradClip, Regularizer
from qdq.auto.config.rates import Rate, Scaled, rate_of
from qdq.base.config import choice
from qdq.errors import ConfigError

DEFAULT_EPOCHS = 100
QUANTIZATION_SHARE = 0.1  # of learning_rate and train_iter in the quantization step of several steps


@dataclass(frozen=True)
class OptimizerBuilder:
    """Optimizer by name, and what is done to gradients beside it.

    `weight_decay` is the optimizer's own: decoupled in AdamW, added to the gradients in the others.
    """

    optimizer: dict[str, Any] = field(default_factory=lambda: {"type": "SGD"})
    weight_decay: float | None = None
    regularizer: dict[str, Any] | None = None
    grad_clip: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        where = "TrainConfig: optimizer_builder"
        typed(OPTIMIZERS, self.optimizer, f"{where}: optimizer", OPTIMIZERS_REFUSED)
        if self.weight_decay is not None and self.weight_decay < 0:
            raise ConfigError(f"{where}: weight_decay: {self.weight_decay} must not be negative")
        _, _ = self.penalty, self.clip

    @property
    def penalty(self) -> Regularizer | None:
        """The regularizer."""
        where = "TrainConfig: optimizer_builder: regularizer"
        return None if self.regularizer is None else typed(REGULARIZERS, self.regularizer, where)

    @property
    def clip(self) -> GradClip | None:
        """The clipping of gradients."""
        where = "TrainConfig: optimizer_builder: grad_clip"
        return None if self.grad_clip is None else typed(CLIPS, self.grad_clip, where)


DTYPES = ("float16", "bfloat16")
_SCALER = "the loss is scaled by torch's GradScaler with its own values; leave it out"
_LISTS = "operators are chosen by torch's autocast; leave it out"
AMP_REFUSED = {
    **dict.fromkeys(("init_loss_scaling", "incr_every_n_steps", "decr_every_n_nan_or_inf", "incr_ratio"), _SCALER),
    **dict.fromkeys(("decr_ratio", "use_dynamic_loss_scaling"), _SCALER),
    **dict.fromkeys(("custom_white_list", "custom_black_list", "custom_black_varnames"), _LISTS),
    **dict.fromkeys(("use_fp16_guard", "use_optimizer_fp16", "use_master_grad"), "weights stay in FP32; leave it out"),
}


@dataclass(frozen=True)
class AmpConfig:
    """Mixed precision: products in `dtype` (without one float16 on a GPU, bfloat16 on a CPU), weights in FP32."""

    dtype: str | None = None
    use_pure_fp16: bool = False

    def __post_init__(self) -> None:
        if self.dtype is not None:
            choice(self.dtype, DTYPES, "TrainConfig: amp_config: dtype")
        if self.use_pure_fp16:
            raise ConfigError("TrainConfig: amp_config: use_pure_fp16: weights stay in FP32 here; leave it out")


@dataclass(frozen=True)
class RecomputeConfig:
    """Layers are computed again in the backward pass, which saves memory: all of them."""


@dataclass(frozen=True)
class TrainConfig:
    """Training of every step of a run.

    Attributes:
        epochs: passes over the training data, 100 without `train_iter`.
        train_iter: batches, in place of epochs.
        learning_rate: a number, or a schedule by `type` (`qdq.auto.config.rates`).
        optimizer_builder: see `OptimizerBuilder`.
        eval_iter: batches between two evaluations; the best model is kept.
        logging_iter: batches between two lines of the loss.
        origin_metric: of the given model; a measured one more than 0.05 off stops the run before any training.
        target_metric: the training ends above it.
        amp_config: mixed precision, see `AmpConfig`; an empty mapping is its defaults.
        recompute_config: an empty mapping: every layer is computed again in the backward pass.
    """

    epochs: int | None = None
    train_iter: int | None = None
    learning_rate: float | dict[str, Any] = 0.02
    optimizer_builder: dict[str, Any] = field(default_factory=dict)
    eval_iter: int = 1000
    logging_iter: int = 10
    origin_metric: float | None = None
    target_metric: float | None = None
    amp_config: dict[str, Any] | None = None
    recompute_config: dict[str, Any] | None = None
    sparse_model: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "train_iter", "eval_iter", "logging_iter"):
            positive(getattr(self, name), f"TrainConfig: {name}")
        if self.epochs is not None and self.train_iter is not None:
            raise ConfigError(
                f"TrainConfig: epochs is {self.epochs} and train_iter {self.train_iter}; both say how long to train, "
                "give one"
            )
        if self.sparse_model:
            raise ConfigError("TrainConfig: sparse_model: no engine here is faster with zeros; leave it out")
        rate_of(self.learning_rate)
        _, _, _ = self.builder, self.amp, self.recompute

    @property
    def builder(self) -> OptimizerBuilder:
        """`optimizer_builder`, read."""
        return section(OptimizerBuilder, self.optimizer_builder, "TrainConfig: optimizer_builder")

    @property
    def amp(self) -> AmpConfig | None:
        """`amp_config`, read; None is FP32."""
        where = "TrainConfig: amp_config"
        return None if self.amp_config is None else section(AmpConfig, self.amp_config, where, AMP_REFUSED)

    @property
    def recompute(self) -> bool:
        """True where layers are computed again in the backward pass."""
        if self.recompute_config is None:
            return False
        names = "names variables of a Paddle program; all layers are computed again here, leave it out"
        where = "TrainConfig: recompute_config"
        section(RecomputeConfig, self.recompute_config, where, {"checkpoints": names, "enable_offload": names})
        return True

    def rate(self, quantization_last: bool = False) -> Rate:
        """The learning rate; a tenth of it in the quantization step of several."""
        rate = rate_of(self.learning_rate)
        return Scaled(rate, QUANTIZATION_SHARE) if quantization_last else rate

    def iterations(self, quantization_last: bool = False) -> int | None:
        """`train_iter`, a tenth of it in the quantization step of several; None is by epochs."""
        if self.train_iter is None:
            return None
        return max(1, round(self.train_iter * QUANTIZATION_SHARE)) if quantization_last else self.train_iter


TRAIN_REFUSED: Mapping[str, str] = {
    "sharding_config": "parameters are sharded by 'accelerate launch' with FSDP; leave it out",
}
