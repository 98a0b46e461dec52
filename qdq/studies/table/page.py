"""The table of docs/compression.md that the compression documents print, from docs/results/table/."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdq.studies.markdown import named, table
from qdq.studies.table.cases import BUNDLED, CASES, LAYERS, PRUNED_WIDTH, TableCase
from qdq.studies.table.measure import BOTH, FP32, INT8, PRUNED

Record = Mapping[str, Any]
ROWS = (FP32, INT8, PRUNED, BOTH)


def render(results: Mapping[str, Record]) -> str:
    """Both halves of the table, Chinese and English data, with what each model is; a dash where nothing is measured."""
    parts = [
        _half([case for case in CASES.values() if bool(case.finetuning) is chinese], results)
        for chinese in (True, False)
    ]
    return "\n\n".join([*parts, *_notes(results)])


def _half(cases: list[TableCase], results: Mapping[str, Record]) -> str:
    """One column of speed and one of accuracy per data set."""
    headers = ["engine"]
    for case in cases:
        record = results.get(case.name, {})
        metric = record.get("score", {}).get("metric", "metric")
        headers += [f"{case.data} texts/s", f"{case.data} {metric}"]
    rows = []
    for name in ROWS:
        cells = [f"{name}" if name in (FP32, INT8) else f"{name}, width {PRUNED_WIDTH}"]
        for case in cases:
            cells += _cells(results.get(case.name, {}), name)
        rows.append(cells)
    return table(headers, rows)


def _cells(record: Record, name: str) -> list[str]:
    """Texts per second with the factor over FP32, and the metric in per cent with the difference in points."""
    speed, metric = "–", "–"
    if "time" in record:
        entry = record["time"]["contestants"][name]
        speed = f"{entry['sequences_per_s']:.1f} ({entry['speedup'][FP32]:.2f}x)"
    if "score" in record:
        scored = record["score"]
        entry = scored["engines"][name]
        metric = f"{100 * entry['values'][scored['metric']]:.2f}"
        metric += "" if name == FP32 else f" ({entry['points']:+.2f})"
    return [speed, metric]


def _notes(results: Mapping[str, Record]) -> list[str]:
    """Notes on what is timed, and the size, training and data of each model."""
    timed = next((record["time"] for record in results.values() if "time" in record), None)
    notes = []
    if timed is not None:
        packages = named(timed["versions"], ("openvino", "torch", "transformers"))
        notes.append(
            f"OpenVINO engines, {timed['threads']} threads, the four of a model interleaved in one run on full rows; "
            f"factors are medians of per-round ratios. {timed['machine']['cpu']}; {packages}."
        )
    notes.append("\n".join(_about(case, results.get(case.name, {})) for case in CASES.values()))
    return notes


def _about(case: TableCase, record: Record) -> str:
    """One line on a model: where it is from, how it was trained and pruned, and the rows that score it."""
    if case.finetuning:
        made = (
            f"{_steps(case.finetuning)} training steps here on {case.train}, with the first layers of "
            f"{case.start or BUNDLED} and a new vocabulary of characters"
        )
    else:
        made = "a fine-tuned checkpoint as it is"
    layers = LAYERS if case.finetuning else 6
    candidates = record.get("compress", {}).get("candidates", ())
    size = next((row["parameters"] for row in candidates if "width" not in row["notes"]), None)
    given = f"{size / 1e6:.1f} M parameters, " if size else ""
    samples = record.get("score", {}).get("samples")
    scored = f"; scored on {samples} of {case.dev}" if samples else ""
    return (
        f"- {case.data}: {case.name}, {layers} layers of 384, {given}{made}; pruned model trained for "
        f"{_steps(case.pruning)} steps; {case.batch} × {case.sequence} tokens timed{scored}."
    )


def _steps(flags: str) -> str:
    words = flags.split()
    return words[words.index("--max_steps") + 1]
