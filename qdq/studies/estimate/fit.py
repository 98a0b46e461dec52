"""Coefficients fitted on published rows, and the errors on those they never saw.

The fit is least squares on the logarithm of predicted over published latency, so 0.5 ms and 500 ms count alike. It is
deterministic; a test fits again and compares. It is made on the kernels that the compiler builds of the published
networks; the same coefficients are then judged on the predicted kernels, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from engines.estimate.devices import find_device
from engines.estimate.model import Coefficients, load_coefficients, setting, total_ms
from engines.estimate.published import A100, T4, Row, fitted, held_out_groups, published_rows
from qdq.studies.estimate.networks import row_ops

Predict = Callable[[Row], float]

START = Coefficients(0.9, 0.4, 0.6, 4.0, 4.0)  # also what a coefficient stays at when no row can see it
DIGITS = 4  # significant; more would only record rounding
TARGET = Row(T4, "t4", "bert-base", 40, 128, "int8", 22.2)  # 22.2 and 41.6 ms are interpolated, so never scored
TARGET_FLOAT = replace(TARGET, precision="float16", ms=41.6)


def predicted_ms(
    row: Row, coefficients: Coefficients, power_limited: bool | None = None, *, compiled: bool = True
) -> float:
    """Latency that the model gives the network, device and shape of a published row, in ms."""
    on = setting(find_device(row.device), coefficients, power_limited)
    return total_ms(row_ops(row, compiled=compiled), on)


def fit(rows: Sequence[Row], names: Sequence[str] | None = None) -> Coefficients:
    """Coefficients for `rows`; only those in `names` move (default: all), the others stay at START."""
    from scipy.optimize import least_squares

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


def validate() -> dict[str, Any]:
    """The content of data/validation.json: errors in percent, per held-out group and per device."""
    coefficients, rows = load_coefficients(), published_rows()
    official = [row for row in rows if row.source in (T4, A100)]
    unseen = [row for row in official if not fitted(row)]
    compiled = partial(predicted_ms, coefficients=coefficients)
    both = {"compiled": compiled, "predicted": partial(compiled, compiled=False)}
    groups = {"fitted rows": [row for row in rows if fitted(row)], **held_out_groups(rows)}
    scores = {name: _scores(group, both) for name, group in groups.items()}
    scores["FP16/INT8 ratio"] = {name: _ratios(unseen, predict) for name, predict in both.items()}
    scores |= _other_devices(rows)
    # The shape that people ask about first, then every row by itself.
    int8, wide = compiled(TARGET), compiled(TARGET_FLOAT)
    return {
        "coefficients": asdict(coefficients),
        "groups": [{"name": name, **score} for name, score in scores.items()],  # a list: JSON objects lose order
        "devices": {name: _scores([r for r in unseen if r.device == name], both) for name in ("t4", "a100")},
        "target": {
            "estimate_ms": {"int8": round(int8, 1), "float16": round(wide, 1)},
            "interpolated_ms": {"int8": TARGET.ms, "float16": TARGET_FLOAT.ms},
            "ratio": round(wide / int8, 2),
        },
        "rows": [_row(row, compiled(row)) for row in official],
    }


def _row(row: Row, estimate: float) -> dict[str, Any]:
    return {
        "row": f"{row.device} {row.encoder} b{row.batch} {row.precision}",
        "published_ms": row.ms,
        "estimate_ms": round(estimate, 2),
        "error_percent": round(100 * (estimate / row.ms - 1), 1),
        "use": "fitted" if fitted(row) else "held out",
    }


def _scores(rows: Iterable[Row], both: Mapping[str, Predict]) -> dict[str, Any]:
    """Errors with compiled and with predicted kernels."""
    found = tuple(rows)
    return {name: _score(found, predict) for name, predict in both.items()}


def _score(rows: Iterable[Row], predict: Predict) -> dict[str, Any]:
    return _summary({row.label: predict(row) / row.ms for row in rows})


def _ratios(rows: Sequence[Row], predict: Predict) -> dict[str, Any]:
    """FP16 over INT8 latency wherever both are published and neither was fitted."""
    published = {replace(row, ms=0.0): row.ms for row in rows}
    found = {}
    for row in rows:
        if row.precision == "int8":
            wide = replace(row, precision="float16", ms=0.0)
            truth = published[wide] / row.ms
            found[row.label.replace("int8", "ratio")] = predict(wide) / predict(row) / truth
    return _summary(found)


def _summary(ratios: dict[str, float]) -> dict[str, Any]:
    """Mean and worst of estimate over truth by name: mean of absolute errors, worst with its sign."""
    errors = {name: 100 * (ratio - 1) for name, ratio in ratios.items()}
    worst = max(errors, key=lambda name: abs(errors[name]))
    return {
        "rows": len(errors),
        "mean_error_percent": round(sum(map(abs, errors.values())) / len(errors), 1),
        "worst_error_percent": round(errors[worst], 1),
        "worst_row": worst,
    }


def _other_devices(rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """Each device predicted without any of its own rows, by the rules a device without rows gets."""
    turing = fit([row for row in rows if fitted(row) and row.source == T4], ["sustained_share", "overhead_turing_us"])
    ampere = fit([row for row in rows if fitted(row) and row.source == A100], ["tensor_share", "overhead_ampere_us"])
    blind = {
        "A100 from T4": (A100, replace(turing, overhead_ampere_us=turing.overhead_turing_us)),
        "T4 from A100": (T4, replace(ampere, overhead_turing_us=ampere.overhead_ampere_us)),
    }
    found = {}
    for name, (source, coefficients) in blind.items():
        # Without T4 rows nothing tells that small boards are power-limited, so neither prediction has the limit.
        predict = partial(predicted_ms, coefficients=coefficients, power_limited=False)
        both = {"compiled": predict, "predicted": partial(predict, compiled=False)}
        found[f"other device: {name} rows alone"] = _scores([row for row in rows if row.source == source], both)
    return found
