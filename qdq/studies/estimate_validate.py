"""Errors of the estimates on published rows the fit never saw: ``python -m qdq.studies.estimate_validate``.

Writes data/validation.json and the generated part of docs/estimate.md.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from engines.estimate.model import VALIDATION, Coefficients, load_coefficients
from engines.estimate.published import A100, T4, Row, fitted, held_out_groups, published_rows
from qdq.base.artifacts import write_json
from qdq.studies import pages
from qdq.studies.command import exit_code
from qdq.studies.estimate_fit import fit, predicted_ms

TARGET = Row(T4, "t4", "bert-base", 40, 128, "int8", 22.2)  # 22.2 and 41.6 ms are interpolated, so never scored
TARGET_FLOAT = replace(TARGET, precision="float16", ms=41.6)

Predict = Callable[[Row], float]


def validate() -> dict[str, Any]:
    """The content of data/validation.json: errors in percent, per held-out group and per device."""
    coefficients, rows = load_coefficients(), published_rows()
    unseen = [row for row in rows if not fitted(row) and row.source in (T4, A100)]

    def predict(row: Row) -> float:
        return predicted_ms(row, coefficients)

    groups = {"fitted rows": _score([row for row in rows if fitted(row)], predict)}
    groups |= {name: _score(group, predict) for name, group in held_out_groups(rows).items()}
    groups["FP16/INT8 ratio"] = _ratios(unseen, predict)
    groups |= _other_devices(rows)
    return {
        "coefficients": asdict(coefficients),
        "groups": [{"name": name, **score} for name, score in groups.items()],  # a list: JSON objects lose order
        "devices": {name: _score([r for r in unseen if r.device == name], predict) for name in ("t4", "a100")},
        "target": {
            "estimate_ms": {"int8": round(predict(TARGET), 1), "float16": round(predict(TARGET_FLOAT), 1)},
            "interpolated_ms": {"int8": TARGET.ms, "float16": TARGET_FLOAT.ms},
            "ratio": round(predict(TARGET_FLOAT) / predict(TARGET), 2),
        },
        "rows": [_row(row, predict(row)) for row in rows if row.source in (T4, A100)],
    }


def _row(row: Row, estimate: float) -> dict[str, Any]:
    return {
        "row": f"{row.device} {row.encoder} b{row.batch} {row.precision}",
        "published_ms": row.ms,
        "estimate_ms": round(estimate, 2),
        "error_percent": _percent(estimate, row.ms),
        "use": "fitted" if fitted(row) else "held out",
    }


def _percent(estimate: float, truth: float) -> float:
    return round(100 * (estimate / truth - 1), 1)


def _score(rows: Iterable[Row], predict: Predict) -> dict[str, Any]:
    return _summary([(row.label, predict(row), row.ms) for row in rows])


def _ratios(rows: Sequence[Row], predict: Predict) -> dict[str, Any]:
    """FP16 over INT8 latency wherever both are published and neither was fitted."""
    pairs = [(row, replace(row, precision="float16")) for row in rows if row.precision == "int8"]
    published = {replace(row, ms=0.0): row.ms for row in rows}
    scored = []
    for int8, wide in pairs:
        truth = published[replace(wide, ms=0.0)] / int8.ms
        scored.append((int8.label.replace("int8", "ratio"), predict(wide) / predict(int8), truth))
    return _summary(scored)


def _summary(scored: Sequence[tuple[str, float, float]]) -> dict[str, Any]:
    """Mean and worst of (name, estimate, truth): mean of absolute errors, worst with its sign."""
    errors = {name: 100 * (estimate / truth - 1) for name, estimate, truth in scored}
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
    blind_a100 = replace(turing, overhead_ampere_us=turing.overhead_turing_us)
    blind_t4 = replace(ampere, overhead_turing_us=ampere.overhead_ampere_us)
    return {
        "other device: A100 from T4 rows alone": _blind(rows, A100, blind_a100),
        "other device: T4 from A100 rows alone": _blind(rows, T4, blind_t4),
    }


def _blind(rows: Sequence[Row], source: str, coefficients: Coefficients) -> dict[str, Any]:
    # Without T4 rows nothing tells that small boards are power-limited, so neither prediction has the limit.
    return _score([row for row in rows if row.source == source], lambda row: predicted_ms(row, coefficients, False))


def main() -> None:
    """Write the result everywhere it is shown."""
    write_json(VALIDATION, validate())
    pages.main()


if __name__ == "__main__":
    sys.exit(exit_code(main))
