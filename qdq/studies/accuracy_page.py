"""docs/accuracy.md from the JSON files of `qdq.studies.accuracy` and `qdq.studies.effects`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qdq.base.artifacts import read_json, write_text
from qdq.base.config import nearest
from qdq.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results" / "accuracy"
EFFECTS = RESULTS / "effects"
DECISIONS = RESULTS / "decisions"
COSTS = ROOT / "docs" / "results" / "calibration"
PAGE = ROOT / "docs" / "accuracy.md"


@dataclass(frozen=True)
class Figure:
    """One run: the content of one JSON file.

    Attributes:
        engine: what ran.
        kept: points placed, and candidates of the twenty per layer.
        metrics: name -> fp32, int8, drop_points and drop_interval (95 %, paired bootstrap).
        main: the metric that decides.
        closeness: output_mse and agreement with FP32.
        notes: anything a reader must know.
    """

    model: str
    engine: str
    placement: str
    calibrator: str
    kept: tuple[int, ...]
    samples: int
    main: str
    metrics: Mapping[str, Any]
    closeness: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """One line for the screen."""
        values = self.metrics[self.main]
        return f"{self.main} {values['fp32']:.4f} to {values['int8']:.4f}, drop {values['drop_points']:+.2f} points"


def load_figures(folder: Path = RESULTS) -> list[Figure]:
    """Every figure, in the order of the page. Raises ConfigError for a file that is none."""
    found = []
    for path in sorted(folder.glob("*.json")):
        values = json.loads(path.read_text(encoding="utf-8"))
        fields = {field.name for field in dataclasses.fields(Figure)}
        for key in values:
            if key not in fields:
                raise ConfigError(f"{path.name}: unknown key '{key}'; {nearest(key, fields)}")
        try:
            figure = Figure(**values)
        except TypeError as error:
            raise ConfigError(f"{path.name}: is no figure ({error}); write it again with 'make accuracy'") from error
        found.append(figure)
    return sorted(found, key=lambda f: (f.model, f.engine, -f.kept[0], f.placement))


def load_effects(folder: Path = EFFECTS) -> list[Mapping[str, Any]]:
    """Every report of `qdq.studies.effects`."""
    return [read_json(path) for path in sorted(folder.glob("*.json"))]


def load_calibration_costs(folder: Path = COSTS) -> list[Mapping[str, Any]]:
    """Every report of `qdq.studies.calibration_cost`."""
    return [read_json(path) for path in sorted(folder.glob("*.json"))]


def load_decisions(folder: Path = DECISIONS) -> dict[str, Mapping[str, Any]]:
    """Every report of `qdq.studies.accuracy_decisions` by its file's name, studies first."""
    paths = sorted(folder.glob("*.json"), key=lambda path: ("-search-" in path.stem, path.stem))
    return {path.stem: read_json(path) for path in paths}


def write_page() -> None:
    """docs/accuracy.md from everything that is there."""
    write_text(PAGE, render(load_figures(), load_effects(), load_calibration_costs(), load_decisions()))


def render(
    figures: Sequence[Figure],
    effects: Sequence[Mapping[str, Any]] = (),
    costs: Sequence[Mapping[str, Any]] = (),
    decisions: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> str:
    """docs/accuracy.md."""
    parts = [_HEAD]
    if figures:
        parts.append(_averages(figures))
    for model in dict.fromkeys(figure.model for figure in figures):
        mine = [figure for figure in figures if figure.model == model]
        parts.append(f"## {model}\n\n{_sentence(mine[0])}\n")
        parts.append(_table(mine))
    parts += [_effects(report) for report in effects]
    parts += [_cost(report) for report in costs]
    parts += [(_searched if "curve" in report else _sensitivity)(name, report) for name, report in decisions.items()]
    return "\n".join(parts)


_HEAD = """\
# Accuracy after quantization

Every figure is of a real task: calibrated on 128 training texts, scored on the development rows by the task's published
metric. `drop` is FP32 minus INT8 in points, with its 95 % bootstrap interval over paired samples; a drop whose interval
holds zero is not told apart from none. `points` counts quantizers placed of the twenty per layer; `auto` decided from
the calibration texts alone. OpenVINO rows are of the engine that was built; placements for TensorRT are scored by fake
quantization and by ONNX Runtime on the exported graph, because no TensorRT ran here.

This page is written by `make accuracy` from [docs/results/accuracy](results/accuracy), after measuring what is not
there yet.
"""


def _averages(figures: Sequence[Figure]) -> str:
    """Average and worst drop of every way that was measured on all models."""
    models = {figure.model for figure in figures}
    rows = ["| placement | engine | models | average drop | worst drop |", "|" + "---|" * 5]
    for placement, engine in dict.fromkeys((f.placement, f.engine) for f in figures):
        drops = {
            f.model: f.metrics[f.main]["drop_points"] for f in figures if (f.placement, f.engine) == (placement, engine)
        }
        if set(drops) == models:
            average, worst = sum(drops.values()) / len(drops), max(drops.values())
            rows.append(f"| {placement} | {engine} | {len(drops)} | {average:+.2f} | {worst:+.2f} |")
    return "\n".join(rows) + "\n" if len(rows) > 2 else ""


def _sentence(figure: Figure) -> str:
    fp32 = ", ".join(f"{name} {values['fp32']:.4f}" for name, values in figure.metrics.items())
    return f"FP32 over {figure.samples} samples: {fp32}."


def _table(figures: Iterable[Figure]) -> str:
    head = "| placement | engine | points | metric | INT8 | drop | 95 % interval | agreement | output MSE |"
    rows = [head, "|" + "---|" * 9]
    for figure in figures:
        values = figure.metrics[figure.main]
        low, high = values["drop_interval"]
        points = f"{figure.kept[0]}/{figure.kept[1]}"
        rows.append(
            f"| {figure.placement} | {figure.engine} | {points} | {figure.main} | {values['int8']:.4f} | "
            f"{values['drop_points']:+.2f} | {low:+.2f} … {high:+.2f} | {_closeness(figure.closeness)} |"
        )
    return "\n".join(rows) + "\n"


def _closeness(values: Mapping[str, Any]) -> str:
    agreement, error = values.get("agreement"), values.get("output_mse")
    return f"{'–' if agreement is None else f'{agreement:.4f}'} | {'–' if error is None else f'{error:.4g}'}"


def _cost(report: Mapping[str, Any]) -> str:
    """What calibrating with every algorithm at once costs."""
    return (
        f"## What calibrating costs: {report['model']}\n\n"
        f"All {len(report['algorithms'])} algorithms at once, {report['points']} points, {report['samples']} samples, "
        f"{report['threads']} threads: {report['cost']:.2f} times the plain FP32 passes on top of them, of which "
        f"{report['cost_of_search']:.2f} are the threshold searches; {report['kept_bytes'] / 2**20:.0f} MiB of counts "
        "however many samples there are. [Why not less](calibration.md#cost).\n"
    )


def _effects(report: Mapping[str, Any]) -> str:
    """What each treatment and each algorithm is worth on one model."""
    lines = [
        f"## What each part is worth: {report['model']}",
        "",
        f"Fake-quantized, {report['samples']} calibration texts, scored on {report['evaluated']} samples. `default` is "
        "every treatment together; `plain` rows are ranges alone, without any.",
        "",
        "| placement | variant | metric | agreement | output MSE |",
        "|" + "---|" * 5,
    ]
    for row in report["rows"]:
        lines.append(
            f"| {row['placement']} | {row['variant']} | {row['metrics'][row['metric']]:.4f} | {_closeness(row)} |"
        )
    return "\n".join(lines) + "\n"


HURTING = 12  # rows of the table of groups


def _sensitivity(name: str, report: Mapping[str, Any]) -> str:
    """Groups of points, most damaging first."""
    model, everything = name.removesuffix("-sensitivity"), report["everything"]
    lines = [
        f"## Which points hurt: {model}",
        "",
        f"`qdq sensitivity --metric` over {report['source']}, all twenty points per layer, treated: divergence "
        f"{everything['divergence']:.5f} ({report['divergence']}) with everything quantized, metric "
        f"{report['floating']['metric']:.4f} in FP32 and {everything['metric']:.4f}. `damage` is the divergence with "
        "only this group quantized, `gain` what leaving only this group out takes off the whole's, `points` the metric "
        f"lost by the one and won back by the other. The {HURTING} most damaging groups of {len(report['groups'])}; "
        f"every point is in [the report](results/accuracy/decisions/{name}.json).",
        "",
        "| group | quantizers | damage | gain | points | SNR dB |",
        "|" + "---|" * 6,
    ]
    for row in report["groups"][:HURTING]:
        lines.append(
            f"| {row['name']} | {row['points']} | {row['damage']:.6f} | {row['gain']:+.6f} | "
            f"{0.0 - row['metric_damage_points']:+.2f} / {row['metric_gain_points']:+.2f} | {row['snr_db']:.1f} |"
        )
    return "\n".join([*lines, "", f"![damage by point](results/accuracy/decisions/{name}.png)"]) + "\n"


def _searched(name: str, report: Mapping[str, Any]) -> str:
    """The curve of one search: where it was timed, and the best."""
    model, _, target = name.partition("-search-")
    if target == "tensorrt":
        latency = "predicted from the fusions that are lost; nothing was timed without a GPU"
    else:
        latency = "predicted from measured costs of operations, and measured with the engine of that placement"
    lines = [
        f"## What the search finds: {model}, {target}",
        "",
        f"`qdq calibrate --search --target {target}`, at most {report['limit']:g} points lost on {report['samples']} "
        f"training rows that did not calibrate. Latency is in layers with everything quantized: {latency}.",
        "",
        "| units left out | divergence | points lost | predicted latency | measured latency | |",
        "|" + "---|" * 6,
    ]
    step = max(1, len(report["curve"]) // 8)
    for index, tried in enumerate(report["curve"]):
        timed = tried["measured"]
        if timed is None and index % step and index != report["best"]:
            continue
        measured, mark = "–" if timed is None else f"{timed:+.3f}", "best" if index == report["best"] else ""
        lines.append(
            f"| {tried['dropped']} | {tried['divergence']:.6f} | {0.0 + tried['drop_points']:+.2f} | "
            f"+{tried['cost']:.3f} | {measured} | {mark} |"
        )
    return "\n".join([*lines, "", f"![trade-off](results/accuracy/decisions/{name}.png)"]) + "\n"
