"""The table of docs/triton.md about a server under load, from what `qdq.studies.serving` has written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdq.studies.markdown import fixed, table

FORMS: Mapping[str, str] = {"text": "text", "raw": "token ids"}


def serving_tables(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """A table per served model and what it was measured on; without any, how to get one."""
    if not reports:
        return "No figures yet: `python -m qdq.studies.serving TARGET` starts a server, loads it and writes them."
    return "\n\n".join(_section(report) for report in reports.values())


def _section(report: Mapping[str, Any]) -> str:
    headers = ["repository", "over", "clients", "texts/s", "p50 ms", "p90 ms", "p99 ms", "mean batch"]
    headers += ["CPU ms per text", "answers right"]
    rows = [_row(load, run) for load in report["loads"] for run in load["runs"]]
    first = report["loads"][0]
    direct, machine = first["direct"], first["machine"]
    return (
        f"**{first['model']}**\n\n{table(headers, rows, '--:')}\n\n"
        f"{first['texts']} texts of their own lengths ({report['data']}), clients on the same machine; every answer is "
        f"compared with the {report['target']} engine. That engine by itself, on batches of {direct['batch']} texts "
        f"sorted by length, takes {direct['cpu_ms_per_text']:.2f} ms of CPU per text. {report['server']}; "
        f"{machine['cpu']}, {machine['cores']} cores."
    )


def _row(load: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    right, latency = run["check"]["right"], run["latency_ms"]
    refused = sum(run["errors"].values())
    return [
        FORMS[load["form"]],
        load["over"],
        str(run["clients"]),
        f"{run['texts_per_s']:.0f}",
        *(fixed(latency[name], 0) for name in ("p50", "p90", "p99")),
        fixed(run["batches"]["mean_batch"], 1),
        fixed(run["cpu_ms_per_text"], 1),
        f"{right} of {run['requests']}" + (f", {refused} refused" if refused else ""),
    ]
