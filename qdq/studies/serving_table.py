"""The tables of docs/triton.md about real servers, from what `qdq.studies.serving` has written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdq.studies.markdown import fixed, table

FORMS: Mapping[str, str] = {"text": "text", "raw": "token ids"}
Reports = Mapping[str, Mapping[str, Any]]


def serving_tables(reports: Reports) -> str:
    """Answers of every task beside the engine's, and loads of every loaded model; without any, how to get them."""
    if not reports:
        return "No figures yet: `python -m qdq.studies.serving TARGET …` starts servers, asks and loads them."
    loaded = [report for report in reports.values() if report["loads"]]
    return "\n\n".join((_asked(reports), *map(_section, loaded)))


def _asked(reports: Reports) -> str:
    """One row per model and protocol: texts of its own task, and how their answers lie to the engine's."""
    headers = ["model", "task", "texts", "over", "answers right", "the same", "furthest"]
    rows = [
        [
            f"{report['model']}, {report['target']}",
            report["task"],
            report["data"],
            asked["over"],
            f"{asked['right']} of {asked['texts']}",
            str(asked["same"]),
            fixed(asked["furthest"], 3),
        ]
        for report in reports.values()
        for asked in report["asked"]
    ]
    return (
        f"**Answers beside the engine's**\n\n{table(headers, rows, '--:')}\n\n"
        "Each text once, from 8 clients, so that batches mix lengths. *Right*: the same class, tags, or place, and no "
        "vector further off than an INT8 engine's own between batches; *the same*: to float rounding; *furthest*: as a "
        "share of the answers' own spread over texts, by which another text's answer is 1.4 away."
    )


def _section(report: Mapping[str, Any]) -> str:
    headers = ["repository", "over", "clients", "texts/s", "p50 ms", "p90 ms", "p99 ms", "mean batch"]
    headers += ["CPU ms per text", "× the engine", "answers right"]
    rows = [_row(load, run) for load in report["loads"] for run in load["runs"]]
    rows += [_floor(floor) for floor in report.get("floors", ())]
    first = report["loads"][0]
    machine = first["machine"]
    return (
        f"**{report['model']}, {report['target']}, under load**\n\n{table(headers, rows, '--:')}\n\n"
        f"{first['texts']} bundled texts of their own lengths, clients on the same machine; every answer is compared "
        "with that of the engine the repository holds. *× the engine*: CPU time per text, tokenizer and server "
        "included, over that of this engine by itself on batches of 16 texts sorted by length, which ran before and "
        f"after each load. *No engine*: a model that waits as long as the engine takes and does nothing, which is "
        "what the server and its python backend cost by themselves, on top of the engine. "
        f"{report['server']}; {machine['cpu']}, {machine['cores']} cores."
    )


def _floor(floor: Mapping[str, Any]) -> list[str]:
    cpu = floor["cpu_ms_per_text"]
    return [
        "no engine",
        floor["over"],
        str(floor["clients"]),
        f"{floor['texts_per_s']:.0f}",
        *(fixed(floor["latency_ms"][name], 0) for name in ("p50", "p90", "p99")),
        fixed(floor["batches"]["mean_batch"], 1),
        fixed(cpu, 1),
        fixed(cpu / floor["direct_cpu_ms_per_text"] if cpu else None, 2),
        "–",
    ]


def _row(load: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    right, latency = run["check"]["right"], run["latency_ms"]
    refused, cpu = sum(run["errors"].values()), run["cpu_ms_per_text"]
    return [
        FORMS[load["form"]],
        load["over"],
        str(run["clients"]),
        f"{run['texts_per_s']:.0f}",
        *(fixed(latency[name], 0) for name in ("p50", "p90", "p99")),
        fixed(run["batches"]["mean_batch"], 1),
        fixed(cpu, 1),
        fixed(cpu / run["direct_cpu_ms_per_text"] if cpu else None, 2),
        f"{right} of {run['requests']}" + (f", {refused} refused" if refused else ""),
    ]
