"""Options of post-training quantization beside the calibrator: treatments, and the lists that a sweep tries.

The names are those of PaddleNLP's compression API where it has one. Its documentation describes a static graph too, but
leaves open what the activation types mean there. Here:

- range_abs_max (default): the frozen range is the calibration algorithm's threshold.
- abs_max: PaddleNLP rescales every batch at run time. A scale of the batch at hand cannot be exported to a static Q/DQ
  graph, so it freezes to the largest magnitude of the calibration data.
- moving_average_abs_max: the moving average, with `moving_rate`, of the batches' largest magnitudes as they stand after
  the last calibration batch.

The last two are ranges by themselves: another algorithm beside them has nothing to choose and is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from typing import Any

from qdq.base.config import choice
from qdq.base.option import option
from qdq.calibrate.algorithms import CLIP, DEFAULT_MOVING_RATE, Algorithm, algorithm_named
from qdq.errors import ConfigError

WEIGHT_TYPES = ("abs_max", "channel_wise_abs_max")
RANGES = ("abs_max", "moving_average_abs_max")  # activation types that are an algorithm by themselves
ACTIVATION_TYPES = ("abs_max", "range_abs_max", "moving_average_abs_max")
ROUND_TYPES = ("round", "adaround", "gptq")  # to nearest; arXiv 2004.10568; arXiv 2210.17323

PTQ = "post-training parameters (PaddleNLP's names) and treatments"  # group of these options in --help
CALIBRATE = "calibrate"  # the stage that decides them
_ptq = partial(option, decided_by=CALIBRATE, group=PTQ)


@dataclass(frozen=True, kw_only=True)
class TreatmentOptions:
    """Treatments that keep accuracy. Each can be switched; each leaves the floating-point function as it is."""

    round_type: str = _ptq("gptq", "rounding of weights", metavar="T", choices=ROUND_TYPES)
    bias_correction: bool = _ptq(True, "absorb a linear's mean error in its bias")
    # Where attention probabilities are quantized. Exact, because softmax rows sum to one; free at run time.
    value_centering: bool = _ptq(True, "move a constant per value channel out of attention, into the bias behind it")
    # By powers of two, so exact; free at run time.
    equalization: bool = _ptq(True, "scale query against key and value against output channels")
    # SmoothQuant: pays where it lowers the linear's output error enough for the multiplication it adds to the graph.
    smoothing: bool = _ptq(True, "divide outlier channels in front of linears where it pays")
    # Adds two multiplications by constants: the linear's rows take its division, the sum is multiplied back.
    residual_scaling: bool = _ptq(True, "divide outlier channels of residual operands by powers of two where it pays")
    softmax_scale: bool = _ptq(True, "amax 1 for softmax outputs whatever the data")


@dataclass(frozen=True, kw_only=True)
class Treatments(TreatmentOptions):
    """Everything that is done beside choosing ranges by an algorithm.

    clip_search: the range of residual operands is chosen by the error of the normalized sum, not by the tensor alone.
    adaround: steps and learning rate of round_type adaround; None is its own.
    """

    clip_search: bool = True
    adaround: tuple[int, float] | None = None

    def __post_init__(self) -> None:
        choice(self.round_type, ROUND_TYPES, "round_type")

    @property
    def observes(self) -> bool:
        """True when inputs of linears are observed before ranges are measured."""
        return self.moves_ranges or self.clip_search or self.rewrites

    @property
    def moves_ranges(self) -> bool:
        """True when weights change before ranges are measured."""
        return self.value_centering or self.equalization or self.smoothing or self.residual_scaling

    @property
    def rewrites(self) -> bool:
        """True when weights or biases change after ranges are known."""
        return self.round_type != "round" or self.bias_correction

    @property
    def asked(self) -> list[str]:
        """Names of what is done: "smoothing", "adaround"."""
        rounding = [] if self.round_type == "round" else [self.round_type]
        return [name for name, value in asdict(self).items() if value is True] + rounding


def refuse_idle(kind: str, algorithms: Sequence[str], where: str, named: str) -> None:
    """Raise ConfigError for `algorithms` that an activation type leaves nothing to choose.

    `where` and `named` are the options of the type and of the algorithms, as the user spells them.
    """
    if kind not in RANGES:
        return
    others = [
        name for name in algorithms if name == CLIP or algorithm_named(name, where=named) != algorithm_named(kind)
    ]
    if others:
        raise ConfigError(
            f"{where}: {kind} is a range by itself, so {named} ({', '.join(others)}) has nothing to choose; leave "
            f"{named} out, or give range_abs_max"
        )


NOTHING: dict[str, Any] = {known.name: False for known in fields(Treatments)} | {"round_type": "round"}
PLAIN = Treatments(**NOTHING)  # ranges only, as other tools quantize


@dataclass(frozen=True)
class PtqSettings:
    """Settings that a sweep tries: every algorithm on every number of batches of every size.

    None batches are all of the data; `seed` is that of AdaRound; the other names are explained in the module's text.
    """

    algo_list: tuple[str, ...] = ("mse", "KL")
    batch_num_list: tuple[int | None, ...] = (1,)
    batch_size_list: tuple[int, ...] = (4,)
    activation_quantize_type: str = "range_abs_max"
    moving_rate: float = DEFAULT_MOVING_RATE
    seed: int = 42

    def algorithms(self) -> tuple[Algorithm, ...]:
        """The algorithms to try, without repeats. Raises ConfigError naming an unknown one."""
        if self.activation_quantize_type == "abs_max":
            return (Algorithm("max"),)
        if self.activation_quantize_type == "moving_average_abs_max":
            return (algorithm_named("moving_average", moving_rate=self.moving_rate, where="moving_rate"),)
        found = [algorithm_named(n, moving_rate=self.moving_rate, where="algo_list") for n in self.algo_list]
        return tuple(dict.fromkeys(found))
