"""Fit the model's coefficients on the published rows meant for it: ``python -m qdq.studies.estimate_fit``.

Least squares on the logarithm of predicted over published latency, so 0.5 ms and 500 ms count alike. The result,
data/coefficients.json, is deterministic; a test fits again and compares.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

from engines.estimate.devices import find_device
from engines.estimate.kernels import graph_ops
from engines.estimate.model import COEFFICIENTS, Coefficients, setting, total_ms
from engines.estimate.published import Row, fitted, published_rows
from engines.estimate.workload import ENCODERS, LayerRecord, Op, encoder_layers
from qdq.base.artifacts import write_json
from qdq.studies.command import exit_code

START = Coefficients(0.9, 0.4, 0.6, 4.0, 4.0)  # also what a coefficient stays at when no row can see it
DIGITS = 4  # significant; more would only record rounding


def predicted_ms(row: Row, coefficients: Coefficients, power_limited: bool | None = None) -> float:
    """Latency that the model gives the network, device and shape of a published row, in ms."""
    on = setting(find_device(row.device), coefficients, power_limited)
    return total_ms(row_ops(row.encoder, row.precision, row.batch, row.sequence, row.whole), on)


@lru_cache(maxsize=256)
def row_ops(encoder: str, precision: str, batch: int, sequence: int, whole: bool) -> tuple[Op, ...]:
    """Kernels of a published network; the fit asks for the same ones over and over."""
    if precision != "int8-v1":
        return graph_ops(encoder_layers(ENCODERS[encoder], precision, whole=whole), batch, sequence)
    return _int32_outputs(graph_ops(_v1_layers(encoder, whole), batch, sequence))


def _v1_layers(encoder: str, whole: bool) -> tuple[LayerRecord, ...]:
    """FasterTransformer's INT8-v1: residuals in float, and GELU on its own because its GEMM writes INT32."""
    layers: list[LayerRecord] = []
    for layer in encoder_layers(ENCODERS[encoder], "int8", whole=whole):
        layers.append(replace(layer, precision="float16") if layer.kind == "residual" else layer)
        if layer.name.endswith(".intermediate"):
            layers.append(LayerRecord("gelu", layer.name, "float16"))
    return tuple(layers)


def _int32_outputs(ops: Sequence[Op]) -> tuple[Op, ...]:
    """INT8-v1 again: an INT8 GEMM writes its INT32 sums, and the kernel after it reads them."""
    changed, extra = [], 0
    for op in ops:
        op = replace(op, activation_bytes=op.activation_bytes + extra)
        extra = 3 * op.m * op.n if op.kind == "int8_gemm" else 0
        changed.append(replace(op, activation_bytes=op.activation_bytes + extra))
    return tuple(changed)


def fit(rows: Sequence[Row], names: Sequence[str] | None = None) -> Coefficients:
    """Coefficients for `rows`; only those in `names` move (default: all), the others stay at START."""
    from scipy.optimize import least_squares  # lazy: half a second that an estimate does not need

    names = tuple(names or asdict(START))

    def coefficients(logs: Sequence[float]) -> Coefficients:
        return replace(START, **{name: math.exp(value) for name, value in zip(names, logs, strict=True)})

    def residuals(logs: Sequence[float]) -> list[float]:
        tried = coefficients(logs)
        return [math.log(predicted_ms(row, tried) / row.ms) for row in rows]

    start = [math.log(asdict(START)[name]) for name in names]
    shares = [0.0 if name.endswith(("share", "share_cuda")) else math.inf for name in names]  # a share is at most 1
    # The waves make the residuals step; differences over 0.1 % look past the steps.
    solved = least_squares(residuals, start, bounds=([-math.inf] * len(names), shares), diff_step=1e-3)
    found = asdict(coefficients(solved.x))
    return Coefficients(**{name: float(f"{value:.{DIGITS}g}") for name, value in found.items()})


def coefficients_json() -> dict[str, Any]:
    """Fit anew: the content of data/coefficients.json."""
    rows = [row for row in published_rows() if fitted(row)]
    return {"coefficients": asdict(fit(rows)), "fitted_rows": sorted(row.label for row in rows)}


def main() -> None:
    """Write data/coefficients.json."""
    sys.stdout.write(f"wrote {write_json(COEFFICIENTS, coefficients_json())}\n")


if __name__ == "__main__":
    sys.exit(exit_code(main))
