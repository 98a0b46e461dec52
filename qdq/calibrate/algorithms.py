"""Names of the calibration algorithms and their aliases; no torch, so that the command line can use them.

| name | aliases | amax of a point |
|---|---|---|
| max | abs_max, min_max | the largest magnitude seen |
| percentile | hist (99.999) | the magnitude that P per cent of the elements do not exceed |
| entropy | KL | least Kullback-Leibler divergence between the histogram and its 128 quantized levels |
| mse | | least mean squared quantization error |
| emd | | least earth mover's distance to the quantized values, which is the mean absolute error |
| avg | | per batch: the mean over batches of the mean over samples of the largest magnitude |
| moving_average | moving_average_abs_max | per batch: the exponential moving average of the largest magnitude |

The aliases are the names of PaddleNLP's compression API. Its `min_max` keeps the two ends of the range apart; with
symmetric codes, which TensorRT requires, only the larger end matters, so it equals `abs_max` here.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from qdq.base.config import nearest
from qdq.errors import ConfigError

logger = logging.getLogger(__name__)

# The default calibrator is no algorithm of its own: it takes max, because smoothing has taken the outliers, and for
# residual operands the range with the least error of the normalized sum (`qdq.calibrate.treatments.clip`).
CLIP = "clip"
FORMER_CLIP = "search"  # its name up to 0.1

ALGORITHMS = ("max", "percentile", "entropy", "mse", "emd", "avg", "moving_average")
ALIASES: Mapping[str, str] = {
    "abs_max": "max",
    "min_max": "max",
    "hist": "percentile:99.999",
    "KL": "entropy",
    "moving_average_abs_max": "moving_average",
}
PER_BATCH = ("avg", "moving_average")  # defined by the batches they see; all others do not depend on batching
DEFAULT_PERCENTILE = 99.99  # QDQBERT's recipe for BERT (transformers/examples/research_projects/quantization-qdqbert)
DEFAULT_MOVING_RATE = 0.9  # PaddleNLP's default


@dataclass(frozen=True)
class Algorithm:
    """One algorithm. `percentile` is None but for percentile, `moving_rate` None but for moving_average."""

    name: str
    percentile: float | None = None
    moving_rate: float | None = None

    @property
    def label(self) -> str:
        """Text of tables: ``mse``, ``percentile 99.99``."""
        return f"{self.name} {self.percentile:g}" if self.percentile is not None else self.name


def spelled_today(calibrator: str, said: bool = True) -> str:
    """Translate the former name of CLIP, by default with a warning; any other name is returned as it is."""
    if calibrator != FORMER_CLIP:
        return calibrator
    if said:
        logger.warning(
            f"calibrator '{FORMER_CLIP}' is called '{CLIP}' now; the next version will not know its old name"
        )
    return CLIP


def algorithm_named(
    text: str, percentile: float | None = None, moving_rate: float = DEFAULT_MOVING_RATE, where: str = "calibrator"
) -> Algorithm:
    """The algorithm of a name or alias; ``percentile:99.9`` names the percentile itself.

    `percentile` is used when the text names none (None: 99.99). Raises ConfigError naming the nearest name for an
    unknown one, and for an impossible percentile or moving rate.
    """
    spelled = {alias.lower(): name for alias, name in ALIASES.items()}.get(text.lower(), text)
    name, _, value = spelled.partition(":")
    if name not in ALGORITHMS:
        raise ConfigError(f"{where}: unknown value '{text}'; {nearest(text, (*ALGORITHMS, *ALIASES))}")
    if value and name != "percentile":
        raise ConfigError(f"{where}: '{text}': only percentile takes a number")
    if not 0 < moving_rate < 1:
        raise ConfigError(f"{where}: moving_rate {moving_rate} is outside (0, 1)")
    if name != "percentile":
        return Algorithm(name, moving_rate=moving_rate if name == "moving_average" else None)
    return Algorithm(name, percentile=_percentile(value, percentile, where))


def _percentile(text: str, given: float | None, where: str) -> float:
    try:
        value = float(text) if text else DEFAULT_PERCENTILE if given is None else given
    except ValueError:
        raise ConfigError(f"{where}: percentile: '{text}' is not a number") from None
    if not 0 < value <= 100:
        raise ConfigError(f"{where}: percentile: {value} is outside (0, 100]")
    return value
