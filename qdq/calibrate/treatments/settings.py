"""PtqSettings: every post-training parameter of the compression API under its documented name, and the treatments.

PaddleNLP's documentation describes a static graph too, but leaves open what the activation types mean there. Here:

- range_abs_max (default): the frozen range is the calibration algorithm's threshold.
- abs_max: PaddleNLP rescales every batch at run time. A scale of the batch at hand cannot be exported to a static Q/DQ
  graph, so it freezes to the largest magnitude of the calibration data, whatever the algorithm.
- moving_average_abs_max: the moving average, with `moving_rate`, of the batches' largest magnitudes as they stand after
  the last calibration batch, whatever the algorithm.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qdq.base.config import choice
from qdq.calibrate.algorithms import DEFAULT_MOVING_RATE, Algorithm, algorithm_named
from qdq.errors import ConfigError

WEIGHT_TYPES = ("abs_max", "channel_wise_abs_max")
ACTIVATION_TYPES = ("abs_max", "range_abs_max", "moving_average_abs_max")
ROUND_TYPES = ("round", "adaround", "gptq")


@dataclass(frozen=True)
class Treatments:
    """What else is done to keep accuracy. Each can be switched; each leaves the floating-point function as it is.

    Attributes:
        value_centering: move a constant per value channel out of attention with quantized probabilities, into the bias
            behind it; exact (softmax rows sum to one), costs nothing at run time.
        equalization: scale query against key channels, and value channels against the output projection's columns;
            exact (powers of two), costs nothing at run time.
        smoothing: divide outlier channels in front of a linear and multiply its columns (SmoothQuant), where that
            lowers the linear's output error enough to pay for the multiplication it adds to the graph.
        residual_scaling: divide outlier channels of both operands of a residual add by powers of two, and multiply the
            sum; the linear's own rows take its division, so two multiplications by a constant are added to the graph.
        clip_search: choose the range of residual operands by the error of the normalized sum instead of by the tensor
            alone.
        softmax_scale: the softmax output is in [0, 1] whatever the data, so its amax is 1.
        round_type: round (to nearest), adaround, or gptq (error-compensating).
        bias_correction: absorb the mean error of a quantized linear in its bias.
    """

    value_centering: bool = True
    equalization: bool = True
    smoothing: bool = True
    residual_scaling: bool = True
    clip_search: bool = True
    softmax_scale: bool = True
    round_type: str = "gptq"
    bias_correction: bool = True

    def __post_init__(self) -> None:
        choice(self.round_type, ROUND_TYPES, "round_type")

    @property
    def observes(self) -> bool:
        """Whether a pass over inputs of linears is needed before ranges are measured."""
        return self.moves_ranges or self.clip_search or self.rewrites

    @property
    def moves_ranges(self) -> bool:
        """Whether weights change before ranges are measured."""
        return self.value_centering or self.equalization or self.smoothing or self.residual_scaling

    @property
    def rewrites(self) -> bool:
        """Whether weights or biases change after ranges are known."""
        return self.round_type != "round" or self.bias_correction

    @property
    def asked(self) -> list[str]:
        """Names of what is done: "smoothing", "adaround"."""
        rounding = [] if self.round_type == "round" else [self.round_type]
        return [name for name, value in asdict(self).items() if value is True] + rounding

    def as_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        return asdict(self)


PLAIN = Treatments(False, False, False, False, False, False, "round", False)  # ranges only, as other tools quantize


@dataclass(frozen=True)
class PtqSettings:
    """Parameters of PaddleNLP's compression API for post-training quantization; the defaults are its own.

    Attributes:
        algo_list: calibration algorithms to try, by name or alias (`qdq.calibrate.algorithms`).
        batch_num_list: numbers of batches to try; None in the list is all of the data.
        batch_size_list: samples in a batch; batch_size * batch_num samples are calibrated with.
        weight_quantize_type: abs_max is one scale per weight, channel_wise_abs_max one per output channel.
        activation_quantize_type: see the module's text.
        moving_rate: decay of moving_average_abs_max.
        round_type: round or adaround, or gptq, which PaddleNLP does not have.
        bias_correction: absorb the mean error of a quantized linear in its bias (arXiv 1810.05723).
        seed: of AdaRound.
    """

    algo_list: tuple[str, ...] = ("mse", "KL")
    batch_num_list: tuple[int | None, ...] = (1,)
    batch_size_list: tuple[int, ...] = (4,)
    weight_quantize_type: str = "channel_wise_abs_max"
    activation_quantize_type: str = "range_abs_max"
    moving_rate: float = DEFAULT_MOVING_RATE
    round_type: str = "round"
    bias_correction: bool = False
    value_centering: bool = False
    equalization: bool = False
    smoothing: bool = False
    residual_scaling: bool = False
    softmax_scale: bool = False
    seed: int = 42

    def __post_init__(self) -> None:
        choice(self.weight_quantize_type, WEIGHT_TYPES, "weight_quantize_type")
        choice(self.activation_quantize_type, ACTIVATION_TYPES, "activation_quantize_type")
        choice(self.round_type, ROUND_TYPES, "round_type")
        for name in ("algo_list", "batch_num_list", "batch_size_list"):
            if not getattr(self, name):
                raise ConfigError(f"{name}: is empty; give at least one value")
        for name in ("batch_num_list", "batch_size_list"):
            for value in getattr(self, name):
                if value is not None and value < 1:
                    raise ConfigError(f"{name}: {value} must be at least 1")
        self.algorithms()

    def algorithms(self) -> tuple[Algorithm, ...]:
        """What is to be tried, without repeats. Raises ConfigError naming an unknown one."""
        if self.activation_quantize_type == "abs_max":
            return (Algorithm("max"),)
        if self.activation_quantize_type == "moving_average_abs_max":
            return (algorithm_named("moving_average", moving_rate=self.moving_rate, where="moving_rate"),)
        found = [algorithm_named(n, moving_rate=self.moving_rate, where="algo_list") for n in self.algo_list]
        return tuple(dict.fromkeys(found))

    @property
    def treatments(self) -> Treatments:
        """What the engine is told beside the algorithm."""
        return Treatments(
            value_centering=self.value_centering,
            equalization=self.equalization,
            smoothing=self.smoothing,
            residual_scaling=self.residual_scaling,
            clip_search=False,
            softmax_scale=self.softmax_scale,
            round_type=self.round_type,
            bias_correction=self.bias_correction,
        )

    def as_json(self) -> dict[str, Any]:
        """Plain JSON value of every field."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


def spec_overrides(settings: PtqSettings) -> Mapping[str, Any]:
    """What of a QuantSpec the settings decide."""
    return {"per_channel_weights": settings.weight_quantize_type == "channel_wise_abs_max"}
