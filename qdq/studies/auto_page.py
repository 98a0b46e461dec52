"""The table of automatic compression: model, strategy, accuracy, latency and speed-up, from docs/results/auto/."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from statistics import mean
from typing import Any

from qdq.studies.markdown import fixed, named, table

Record = Mapping[str, Any]
HEADERS = (
    *("model", "strategy", "metric", "points lost", "ms", "x FP32", "x INT8"),
    *("T4 ms, estimated", "x FP32", "x INT8"),
)
FP32, INT8, AUTO, HAND = "FP32", "INT8", "automatic", "by hand"  # engines in the records
ROWS = (FP32, INT8, AUTO, HAND)
AVERAGE = "average"


def auto_table(results: Mapping[str, Record]) -> str:
    """Four rows a model, then their averages, then the machine, the rows that scored, and what was chosen."""
    whole = {name: record for name, record in results.items() if {"search", "hand", "race", "t4"} <= record.keys()}
    if not whole:
        return "Not measured yet."
    rows = [_row(name, record, key) for name, record in whole.items() for key in ROWS]
    averages = [_average(list(whole.values()), key) for key in ROWS] if len(whole) > 1 else []
    return "\n\n".join([table(HEADERS, [*rows, *averages]), _measured(whole), "\n".join(_chosen(whole))])


def strategy(record: Record, key: str) -> str:
    """The strategy behind a row, as a table says it."""
    if key == AUTO:
        chosen = next(one for one in record["search"]["engines"] if one["name"] == record["search"]["chosen"])
        width = f", width {chosen['width']}" if chosen["width"] != "1" else ""
        way = chosen["name"].rpartition(", ")[2]
        variant = f" ({way})" if way.startswith("ptq-") else ""
        return f"automatic: {chosen['strategy']}{width}{variant}"
    return {FP32: "none, FP32", INT8: "ptq, whole model", HAND: "by hand: dynabert+ptq, width 3/4"}[key]


def _row(name: str, record: Record, key: str) -> list[str]:
    entry = record["race"]["engines"][key]
    judged = entry["judging"]
    lost = "–"
    if key != FP32:
        low, high = -judged["high_points"], -judged["low_points"]
        lost = f"{0.0 - judged['difference_points']:+.2f} [{low:+.2f}, {high:+.2f}]"
    return [
        name,
        strategy(record, key),
        f"{judged['value']:.4f}",
        lost,
        f"{entry['p50_ms']:.1f}",
        *_speeds(record, key),
    ]


def _speeds(record: Record, key: str) -> list[str]:
    """Speed-ups over FP32 and the whole INT8 engine measured, then the T4's time and speed-ups as estimated."""
    engines, t4 = record["race"]["engines"], record["t4"]["estimate_ms"]
    ratio, over = engines[key]["ratio"], engines[FP32]["ratio"]["value"]
    return [
        f"{ratio['value'] / over:.2f}",
        f"{ratio['value']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]",
        f"{t4[key]:.2f}",
        f"{t4[FP32] / t4[key]:.2f}",
        f"{t4[INT8] / t4[key]:.2f}",
    ]


def _average(records: list[Record], key: str) -> list[str]:
    """Means over the models; of speed-ups too, and of times where all are from one machine."""
    entries = [record["race"]["engines"][key] for record in records]
    t4 = [record["t4"]["estimate_ms"] for record in records]
    lost = mean(0.0 - one["judging"].get("difference_points", 0.0) for one in entries)
    floats = [record["race"]["engines"][FP32]["ratio"]["value"] for record in records]
    ratios = [one["ratio"]["value"] for one in entries]
    return [
        AVERAGE,
        {AUTO: "automatic", HAND: "by hand", FP32: "none, FP32", INT8: "ptq, whole model"}[key],
        f"{mean(one['judging']['value'] for one in entries):.4f}",
        "–" if key == FP32 else f"{lost:+.2f}",
        f"{mean(one['p50_ms'] for one in entries):.1f}" if len(_machines(records)) == 1 else "–",
        f"{mean(ratio / over for ratio, over in zip(ratios, floats, strict=True)):.2f}",
        f"{mean(ratios):.2f}",
        f"{mean(one[key] for one in t4):.2f}",
        f"{mean(one[FP32] / one[key] for one in t4):.2f}",
        f"{mean(one[INT8] / one[key] for one in t4):.2f}",
    ]


def _machines(records: Iterable[Record]) -> list[str]:
    """Processors that the races ran on, in the order of the records."""
    return list(dict.fromkeys(record["race"]["machine"]["cpu"] for record in records))


def _measured(results: Mapping[str, Record]) -> str:
    first = next(iter(results.values()))
    race, search = first["race"], first["search"]
    counts = "; ".join(
        f"{name}: {record['search']['fp32']['choosing']['samples']} rows choose, "
        f"{record['search']['fp32']['judging']['samples']} judge ({record['search']['metric']})"
        for name, record in results.items()
    )
    machines = _machines(results.values())
    where = machines[0] if len(machines) == 1 else "one machine"
    each = "" if len(machines) == 1 else f" ({', '.join(_where(*item) for item in results.items())})"
    packages = named(race["versions"], ("openvino", "onnxruntime", "torch"))
    return (
        f"Batch {race['batch']} × sequence {race['sequence']}, full rows, the four engines of a model interleaved in "
        f"one run of {race['rounds']} rounds on {race['threads']} threads of {where}{each}; ratios are "
        f"medians of per-round ratios with 95 % intervals. {packages}. Metric and points lost, with paired 95 % "
        f"intervals, on rows that chose nothing: {counts}. "
        f"{search['settings']['budget'] / 60:.0f} minutes each for the search and by hand. T4: an estimate."
    )


def _where(name: str, record: Record) -> str:
    return f"{name}: {record['race']['machine']['cpu']}"


def _chosen(results: Mapping[str, Record]) -> list[str]:
    """Sentences on what each search tried and kept, and how long search and hand took."""
    lines = []
    for name, record in results.items():
        search = record["search"]
        tried = ", ".join(
            f"{one['name']} ({one['ratio']['value']:.2f} x, {0.0 - one['choosing']['difference_points']:+.2f})"
            for one in search["engines"]
        )
        lines.append(
            f"- {name}: tried {tried} — times the INT8 engine's speed, points lost on the choosing rows. Kept "
            f"{search['chosen']}: {search['why']}. {fixed(search['wall_s'] / 60, 1)} minutes; by hand "
            f"{fixed(record['hand']['wall_s'] / 60, 1)}."
        )
    return lines
