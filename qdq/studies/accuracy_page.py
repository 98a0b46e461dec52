"""docs/accuracy.md from the JSON files of `accuracy` and `calibration_cost`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from qdq.studies.markdown import fixed, table
from qdq.studies.study import RESULTS, load_results

Figure = Mapping[str, Any]  # content of one file that `qdq.studies.accuracy` writes

MEASURED = RESULTS / "accuracy"
EFFECTS, DECISIONS, COSTS = MEASURED / "effects", MEASURED / "decisions", RESULTS / "calibration"
WHOLE = MEASURED / "whole"  # figures on all rows of data that the others take a part of
HURTING = 12  # rows of the table of groups
TIMED = ("predicted latency", "measured latency")
COMPILED = ("kernels added, predicted", "MB added, predicted", "kernels, compiled", "MB, compiled")
LATENCY = {
    "cpu": "Latency is in layers with everything quantized: predicted from measured costs of operations, and measured "
    "with the engine of that placement",
    "tensorrt": "Latency is in layers with everything quantized: predicted from the fusions that are lost; nothing was "
    "timed without a GPU",
}


def page() -> str:
    """docs/accuracy.md from everything that is there."""
    figures, effects, costs = ([*load_results(folder).values()] for folder in (MEASURED, EFFECTS, COSTS))
    return render(figures, effects, costs, load_results(DECISIONS), [*load_results(WHOLE).values()])


def render(
    figures: Sequence[Figure],
    effects: Sequence[Mapping[str, Any]] = (),
    costs: Sequence[Mapping[str, Any]] = (),
    decisions: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    whole: Sequence[Figure] = (),
) -> str:
    """docs/accuracy.md from figures, reports of effects and of calibration costs, and decisions by file name; `whole`
    are figures on all rows.
    """
    figures = sorted(figures, key=lambda f: (f["model"], f["engine"], -f["kept"][0], f["placement"]))
    parts = [_HEAD]
    if averages := _averages(figures):
        parts.append(table(["placement", "engine", "models", "average drop", "worst drop"], averages) + "\n")
    for model in dict.fromkeys(figure["model"] for figure in figures):
        mine = [figure for figure in figures if figure["model"] == model]
        fp32 = ", ".join(f"{name} {values['fp32']:.4f}" for name, values in mine[0]["metrics"].items())
        parts.append(f"## {model}\n\nFP32 over {mine[0]['samples']} samples: {fp32}.\n\n{_table(mine)}")
        for every in (figure for figure in whole if figure["model"] == model):
            parts.append(f"On all {every['samples']} development rows:\n\n{_table([every])}")
    parts += [_effects(report) for report in effects]
    parts += [_cost(report) for report in costs]
    parts += [_sensitivity(name, report) for name, report in decisions.items() if "curve" not in report]
    parts += [_searched(name, report) for name, report in decisions.items() if "curve" in report]
    return "\n".join(parts)


_HEAD = """\
# Accuracy after quantization

Every figure is of a real task: calibrated on 128 training texts, scored on the development rows by the task's published
metric. `drop` is FP32 minus INT8 in points, with its 95 % bootstrap interval over paired samples; a drop whose interval
holds zero is not significant. `points` counts quantizers placed of the twenty per layer; `auto` decided from the
calibration texts alone. OpenVINO rows are of the engine that was built; placements for TensorRT are scored by fake
quantization and by ONNX Runtime on the graph that a row names, because no TensorRT ran here.

This page is written by `make accuracy` from [docs/results/accuracy](results/accuracy), after measuring what is not
there yet.
"""


def _averages(figures: Sequence[Figure]) -> list[list[object]]:
    """Average and worst drop of every way that was measured on all models."""
    drops: dict[tuple[str, str], list[float]] = {}
    for figure in figures:
        drop = figure["metrics"][figure["main"]]["drop_points"]
        drops.setdefault((figure["placement"], figure["engine"]), []).append(drop)
    models = {figure["model"] for figure in figures}
    return [
        [*way, len(found), f"{sum(found) / len(found):+.2f}", f"{max(found):+.2f}"]
        for way, found in drops.items()
        if len(found) == len(models)
    ]


def _table(figures: Sequence[Figure]) -> str:
    headers = ["placement", "engine", "points", "metric", "INT8", "drop", "95 % interval", "agreement", "output MSE"]
    rows = []
    for figure in figures:
        main, kept = figure["main"], "/".join(map(str, figure["kept"]))
        values = figure["metrics"][main]
        low, high = values["drop_interval"]
        drop = [f"{values['int8']:.4f}", f"{values['drop_points']:+.2f}", f"{low:+.2f} … {high:+.2f}"]
        rows.append([figure["placement"], figure["engine"], kept, main, *drop, *_closeness(figure["closeness"])])
    return table(headers, rows) + "\n"


def _closeness(values: Mapping[str, Any]) -> list[str]:
    error = values.get("output_mse")
    return [fixed(values.get("agreement"), 4), "–" if error is None else f"{error:.4g}"]


def _cost(report: Mapping[str, Any]) -> str:
    """The cost of calibrating with every algorithm at once."""
    return (
        f"## What calibrating costs: {report['model']}\n\n"
        f"All {len(report['algorithms'])} algorithms at once, {report['points']} points, {report['samples']} samples, "
        f"{report['threads']} threads: {report['cost']:.2f} times the plain FP32 passes on top of them, of which "
        f"{report['cost_of_search']:.2f} are the choice of thresholds; {report['kept_bytes'] / 2**20:.0f} MiB of "
        "counts however many samples there are. [Why not less](calibration.md#cost).\n"
    )


def _effects(report: Mapping[str, Any]) -> str:
    """The worth of each treatment and each algorithm on one model."""
    rows = [
        [row["placement"], row["variant"], f"{row['metrics'][row['metric']]:.4f}", *_closeness(row)]
        for row in report["rows"]
    ]
    return (
        f"## What each part is worth: {report['model']}\n\n"
        f"Fake-quantized, {report['samples']} calibration texts, scored on {report['evaluated']} samples. `default` is "
        "every treatment together; `plain` rows are ranges alone, without any.\n\n"
        f"{table(['placement', 'variant', 'metric', 'agreement', 'output MSE'], rows)}\n"
    )


def _sensitivity(name: str, report: Mapping[str, Any]) -> str:
    """Groups of points, most damaging first."""
    everything = report["everything"]
    rows = []
    for row in report["groups"][:HURTING]:
        points = f"{0.0 - row['metric_damage_points']:+.2f} / {row['metric_gain_points']:+.2f}"
        divergence = (f"{row['damage']:.6f}", f"{row['gain']:+.6f}")
        rows.append([row["name"], row["points"], *divergence, points, f"{row['snr_db']:.1f}"])
    return (
        f"## Which points hurt: {name.removesuffix('-sensitivity')}\n\n"
        f"`qdq sensitivity --metric` over {report['source']}, all twenty points per layer, treated: divergence "
        f"{everything['divergence']:.5f} ({report['divergence']}) with everything quantized, metric "
        f"{report['floating']['metric']:.4f} in FP32 and {everything['metric']:.4f}. `damage` is the divergence with "
        "only this group quantized, `gain` what leaving only this group out takes off the whole's, `points` the metric "
        f"lost by the one and won back by the other. The {HURTING} most damaging groups of {len(report['groups'])}; "
        f"every point is in [the report](results/accuracy/decisions/{name}.json).\n\n"
        f"{table(['group', 'quantizers', 'damage', 'gain', 'points', 'SNR dB'], rows)}\n\n"
        f"![damage by point](results/accuracy/decisions/{name}.png)\n"
    )


def _searched(name: str, report: Mapping[str, Any]) -> str:
    """The curve of one search: where it was timed, and the best."""
    model, _, target = name.partition("-search-")
    compiled = report.get("target_kind") == "tensorrt"
    step = max(1, len(report["curve"]) // 8)
    rows = []
    for index, tried in enumerate(report["curve"]):
        costs, built = (_compiled if compiled else _timed)(tried)
        best = index == report["best"]
        if built or index % step == 0 or best:
            judged = (f"{tried['divergence']:.6f}", f"{0.0 + tried['drop_points']:+.2f}")
            rows.append([tried["dropped"], *judged, *costs, "best" if best else ""])
    headers = ["units left out", "divergence", "points lost", *(COMPILED if compiled else TIMED), ""]
    about = f"Kernels and megabytes are {report['about']}" if compiled else LATENCY.get(target, LATENCY["cpu"])
    return (
        f"## What the search finds: {model}, {target}\n\n"
        f"`qdq calibrate --search --target {target}`, at most {report['limit']:g} points lost on {report['samples']} "
        f"training rows that did not calibrate. {about}.\n\n"
        f"{table(headers, rows)}\n\n![trade-off](results/accuracy/decisions/{name}.png)\n"
    )


def _timed(tried: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Cells of a placement's latency, and whether an engine of it was timed."""
    measured = tried["measured"]
    return [f"+{tried['cost']:.3f}", "–" if measured is None else f"{measured:+.3f}"], measured is not None


def _compiled(tried: Mapping[str, Any]) -> tuple[list[str], bool]:
    """Cells of a placement's kernels and bytes, and whether it was compiled."""
    kernels, megabytes = tried["compiled_kernels"], tried["compiled_megabytes"]
    found = ["–", "–"] if kernels is None else [str(kernels), f"{megabytes:.1f}"]
    return [f"{tried['kernels']:+g}", f"{tried['megabytes']:+.1f}", *found], kernels is not None
