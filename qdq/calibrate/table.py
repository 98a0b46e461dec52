"""CalibrationTable: the amax of every quantizer, as calibration.json shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CalibrationTable:
    """The ranges that calibration chose.

    Attributes:
        activations: point name -> amax.
        weights: point name -> amax per output channel (one value when per-tensor).
        zero_channels: point name -> number of all-zero channels, which got the floor scale.
        algorithm: calibrator of the activations ("imported" when they came with the checkpoint).
        percentile: of the percentile calibrator, else None.
        samples: texts that were run.
        tokens: positions that counted (padding does not).
    """

    activations: Mapping[str, float]
    weights: Mapping[str, tuple[float, ...]]
    zero_channels: Mapping[str, int]
    algorithm: str
    percentile: float | None
    samples: int
    tokens: int

    @property
    def source(self) -> dict[str, Any]:
        """The calibrator and the data that chose the ranges, as calibration.json and quant_spec.json name them."""
        return {name: getattr(self, name) for name in ("algorithm", "percentile", "samples", "tokens")}

    def as_json(self) -> dict[str, Any]:
        """The content of calibration.json. Per-channel weight amax are summarised; checkpoint/ holds them all."""
        return {
            "activations": {name: {"amax": amax} for name, amax in self.activations.items()},
            "weights": {
                name: {
                    "channels": len(amax),
                    "amax_min": min(amax),
                    "amax_max": max(amax),
                    "zero_channels": self.zero_channels.get(name, 0),
                }
                for name, amax in self.weights.items()
            },
            **self.source,
        }
