"""Sections QuantAware (also written Quantization), QuantPost and HyperParameterOptimization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qdq.auto.config.keys import mapping, positive, section, within
from qdq.base.choices import PLACEMENTS
from qdq.base.config import choice
from qdq.calibrate.treatments.settings import ACTIVATION_TYPES, WEIGHT_TYPES
from qdq.errors import ConfigError

# Paddle's operators -> what they are in an encoder: a linear, a product of the attention, or nothing
OPERATORS: Mapping[str, str] = {
    **dict.fromkeys(("conv2d", "depthwise_conv2d", "conv2d_transpose"), ""),
    **dict.fromkeys(("mul", "matmul_v2"), "linear"),
    "matmul": "product",
}
DEFAULT_OPERATORS = ("conv2d", "depthwise_conv2d", "conv2d_transpose", "mul", "matmul", "matmul_v2")
PTQ_ALGORITHMS = ("KL", "mse", "hist", "avg", "abs_max", "emd")
SEARCHED = ("KL", "hist", "avg", "mse")
WINDOW, RATE = 10000, 0.9


def points(operators: Sequence[str], full: bool, for_tensorrt: bool = False) -> dict[str, Any]:
    """Fields of a QuantSpec for the operators of a section: its placement and the switches beside it."""
    kinds = {OPERATORS[name] for name in operators}
    if for_tensorrt:
        return {"placement": "fused", **PLACEMENTS["fused"]}
    if full:
        return {"placement": "qdqbert"}
    linear = "linear" in kinds
    return {
        "placement": "linear",
        "linear": linear,
        "matmul": tuple("qkav") if "product" in kinds else (),
        "residual": (),
    }


@dataclass(frozen=True)
class Codes:
    """Keys that both kinds of quantization have.

    Attributes:
        weight_bits: 2 to 8; fewer than 8 still live in INT8.
        activation_bits: 8.
        weight_quantize_type: one scale per output channel, or abs_max: one per tensor.
        quantize_op_types: mul and matmul_v2 are the linears, matmul the products of the attention, and an encoder has
            no convolutions.
        is_full_quantize: operands of residual adds as well.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    weight_quantize_type: str = "channel_wise_abs_max"
    quantize_op_types: tuple[str, ...] = DEFAULT_OPERATORS
    onnx_format: bool = True
    is_full_quantize: bool = False

    def __post_init__(self) -> None:
        where = type(self).__name__
        within(self.weight_bits, 2, 8, f"{where}: weight_bits")
        if self.activation_bits != 8:
            raise ConfigError(f"{where}: activation_bits: {self.activation_bits}: engines multiply 8 bits; write 8")
        choice(self.weight_quantize_type, WEIGHT_TYPES, f"{where}: weight_quantize_type")
        for name in self.quantize_op_types:
            choice(name, OPERATORS, f"{where}: quantize_op_types")
        if not any(OPERATORS[name] for name in self.quantize_op_types):
            raise ConfigError(f"{where}: quantize_op_types: names convolutions only, which an encoder has none of")
        if not self.onnx_format:
            raise ConfigError(f"{where}: onnx_format: engines are built from QuantizeLinear and DequantizeLinear; true")

    def spec(self) -> dict[str, Any]:
        """Fields of the QuantSpec."""
        per_channel = self.weight_quantize_type == "channel_wise_abs_max"
        fields = points(self.quantize_op_types, self.is_full_quantize)
        return fields | {"weight_bits": self.weight_bits, "per_channel_weights": per_channel}


@dataclass(frozen=True)
class QuantAware(Codes):
    """Quantization-aware training.

    Attributes:
        not_quant_pattern: points whose name contains one of these stay in floating point.
        use_pact: learn the clipping of activations (arXiv 1805.06085).
        activation_quantize_type: how ranges follow the training.
        window_size: batches that range_abs_max looks back.
        moving_rate: of moving_average_abs_max.
        for_tensorrt: the points that TensorRT's compiler computes in INT8.
    """

    not_quant_pattern: tuple[str, ...] = ("skip_quant",)
    use_pact: bool = False
    activation_quantize_type: str = "moving_average_abs_max"
    dtype: str = "int8"
    window_size: int = WINDOW
    moving_rate: float = RATE
    for_tensorrt: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        kind = choice(self.activation_quantize_type, ACTIVATION_TYPES, "QuantAware: activation_quantize_type")
        if self.dtype != "int8":
            raise ConfigError(f"QuantAware: dtype: {self.dtype}: codes are int8; write int8, or leave it out")
        positive(self.window_size, "QuantAware: window_size")
        if not 0 < self.moving_rate < 1:
            raise ConfigError(f"QuantAware: moving_rate: {self.moving_rate} is outside (0, 1)")
        owners = {"window_size": (WINDOW, "range_abs_max"), "moving_rate": (RATE, "moving_average_abs_max")}
        for name, (default, owner) in owners.items():
            if getattr(self, name) != default and (self.use_pact or kind != owner):
                reason = "use_pact learns the ranges" if self.use_pact else f"is of {owner}, and the type is {kind}"
                raise ConfigError(f"QuantAware: {name}: {reason}; leave it out")
        if self.for_tensorrt and self.quantize_op_types != DEFAULT_OPERATORS:
            raise ConfigError("QuantAware: for_tensorrt chooses the operators; leave quantize_op_types out")

    def spec(self) -> dict[str, Any]:
        """Fields of the QuantSpec."""
        fields = super().spec() | {"disable_keywords": self.not_quant_pattern}
        return fields | (points((), False, True) if self.for_tensorrt else {})


@dataclass(frozen=True)
class QuantPost(Codes):
    """Post-training quantization.

    Attributes:
        batch_size: of calibration.
        batch_nums: calibration batches, None is all data.
        algo: how a point's values become its range.
        hist_percent: share of the values that `hist` represents.
        bias_correction: a linear's mean error goes into its bias.
        recon_level: layer-wise rounds weights by AdaRound (arXiv 2004.10568) in `epochs` passes with rate `lr`.
        skip_tensor_list: points of these names stay in floating point.
    """

    batch_size: int = 32
    batch_nums: int | None = None
    algo: str = "hist"
    hist_percent: float = 0.999
    bias_correction: bool = False
    activation_quantize_type: str = "range_abs_max"
    recon_level: str | None = None
    epochs: int = 20
    lr: float = 0.1
    skip_tensor_list: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        choice(self.algo, PTQ_ALGORITHMS, "QuantPost: algo")
        choice(self.activation_quantize_type, ACTIVATION_TYPES, "QuantPost: activation_quantize_type")
        for name in ("batch_size", "batch_nums", "epochs", "lr"):
            positive(getattr(self, name), f"QuantPost: {name}")
        if not 0 < self.hist_percent <= 1:
            raise ConfigError(f"QuantPost: hist_percent: {self.hist_percent} is outside (0, 1]")
        if self.recon_level == "region-wise":
            raise ConfigError("QuantPost: recon_level: region-wise is not built here; layer-wise is")
        if self.recon_level not in (None, "layer-wise"):
            raise ConfigError(f"QuantPost: recon_level: unknown value '{self.recon_level}'; (valid: layer-wise)")
        if self.recon_level is None and (self.epochs, self.lr) != (20, 0.1):
            raise ConfigError("QuantPost: epochs and lr are those of recon_level; give recon_level: layer-wise")
        if self.activation_quantize_type != "range_abs_max" and self.algo != "hist":
            raise ConfigError(
                f"QuantPost: algo: {self.activation_quantize_type} is a range by itself, so that {self.algo} has "
                "nothing to choose; leave one of them out"
            )
        if self.hist_percent != 0.999 and self.algo != "hist":
            raise ConfigError(f"QuantPost: hist_percent: is of algo hist, and algo is {self.algo}; leave it out")

    @property
    def algorithm(self) -> str:
        """`algo` as `qdq.calibrate.algorithms` names it."""
        if self.activation_quantize_type != "range_abs_max":
            return self.activation_quantize_type
        return algorithm_of(self.algo, self.hist_percent)

    def spec(self) -> dict[str, Any]:
        """Fields of the QuantSpec."""
        return super().spec() | {"disable_keywords": tuple(self.skip_tensor_list or ())}


def algorithm_of(name: str, hist_percent: float) -> str:
    """A calibration algorithm by its name here; `hist` is a percentile."""
    return f"percentile:{100 * hist_percent:.10g}" if name == "hist" else name


_REGIONS = "belongs to recon_level region-wise, which is not built here; leave it out"
QUANT_POST_REFUSED = {
    "regions": _REGIONS,
    "region_weights_names": _REGIONS,
    "simulate_activation_quant": "AdaRound looks at inputs in floating point here; leave it out",
}


@dataclass(frozen=True)
class HyperParameterOptimization:
    """A search over settings of post-training quantization, drawn at random; the best one by the metric is kept.

    Attributes:
        ptq_algo, bias_correct, weight_quantize_type: values to draw from.
        hist_percent, batch_num: bounds, drawn from uniformly.
        max_quant_count: settings that are tried, each once.
    """

    ptq_algo: tuple[str, ...] = SEARCHED
    bias_correct: tuple[bool, ...] = (True, False)
    weight_quantize_type: tuple[str, ...] = ("channel_wise_abs_max",)
    hist_percent: tuple[float, ...] = (0.98, 0.999)
    batch_num: tuple[int, ...] = (10, 30)
    max_quant_count: int = 20

    def __post_init__(self) -> None:
        where = "HyperParameterOptimization"
        for name in ("ptq_algo", "bias_correct", "weight_quantize_type"):
            if not getattr(self, name):
                raise ConfigError(f"{where}: {name}: is empty; give at least one value")
        for value in self.ptq_algo:
            choice(value, PTQ_ALGORITHMS, f"{where}: ptq_algo")
        for value in self.weight_quantize_type:
            choice(value, WEIGHT_TYPES, f"{where}: weight_quantize_type")
        for name, bounds in (("hist_percent", self.hist_percent), ("batch_num", self.batch_num)):
            if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1]:
                raise ConfigError(f"{where}: {name}: {list(bounds)} must be a lower and an upper bound above 0")
        if self.hist_percent[1] > 1:
            raise ConfigError(f"{where}: hist_percent: {self.hist_percent[1]} is outside (0, 1]")
        positive(self.max_quant_count, f"{where}: max_quant_count")


TRAINING_ONLY = ("use_pact", "window_size", "moving_rate", "for_tensorrt", "dtype", "not_quant_pattern")


def read_searched(values: Any, where: str) -> QuantPost:
    """The section Quantization beside HyperParameterOptimization: what is quantized in every trial."""
    given = dict(mapping({} if values is None else values, where))
    known = section(QuantAware, {**given}, where)  # names, types and values
    for name in ("use_pact", "window_size", "moving_rate", "for_tensorrt"):
        if getattr(known, name) != getattr(QuantAware, name):
            raise ConfigError(f"{where}: {name}: HyperParameterOptimization trains nothing; leave it out")
    kept = {key: value for key, value in given.items() if key not in (*TRAINING_ONLY, "activation_quantize_type")}
    patterns = tuple(known.not_quant_pattern)
    return section(QuantPost, kept | {"skip_tensor_list": patterns}, where)
