"""The tables of real servers: what was measured, how to get it when nothing was, one row per load and per protocol."""

from __future__ import annotations

from typing import Any

from qdq.studies.serving_table import serving_tables


def load(form: str, over: str, wrong: int = 0, refused: int = 0) -> dict[str, Any]:
    run = {
        "clients": 16,
        "requests": 100,
        "texts_per_s": 71.4,
        "latency_ms": {"p50": 219.4, "p90": 270.7, "p99": None},
        "batches": {"mean_batch": 9.09},
        "cpu_ms_per_text": 7.65,
        "direct_cpu_ms_per_text": 6.04,
        "errors": {"503": refused} if refused else {},
        "check": {"right": 100 - wrong - refused, "wrong": wrong},
    }
    return {"form": form, "over": over, "texts": 68, "machine": {"cpu": "a CPU", "cores": 2}, "runs": [run]}


def report(**changes: Any) -> dict[str, Any]:
    asked = {"over": "gRPC", "texts": 200, "right": 199, "same": 190, "furthest": 0.0161}
    plain = {"model": "m", "target": "openvino", "task": "a-task", "data": "mrpc/dev.tsv", "server": "Triton"}
    return {**plain, "loads": [], "asked": [asked], **changes}


def test_every_load_has_a_row() -> None:
    loads = [load("text", "HTTP"), load("text", "gRPC", refused=3), load("raw", "HTTP", wrong=40)]
    text = serving_tables({"m": report(loads=loads)})
    assert "| text | HTTP | 16 | 71 | 219 | 271 | – | 9.1 | 7.7 | 1.27 | 100 of 100 |" in text
    assert "| 97 of 100, 3 refused |" in text and "| token ids | HTTP |" in text and "| 60 of 100 |" in text
    assert "68 bundled texts of their own lengths" in text and "**m, openvino, under load**" in text


def test_a_server_without_an_engine_has_a_row() -> None:
    (run,) = load("text", "HTTP")["runs"]
    floor = {**run, "over": "HTTP", "cpu_ms_per_text": 0.604}
    text = serving_tables({"m": report(loads=[load("text", "HTTP")], floors=[floor])})
    assert "| no engine | HTTP | 16 | 71 | 219 | 271 | – | 9.1 | 0.6 | 0.10 | – |" in text


def test_every_task_has_a_row_for_each_protocol() -> None:
    text = serving_tables({"a": report(), "b": report(model="n", task="another", loads=[load("text", "HTTP")])})
    assert "| m, openvino | a-task | mrpc/dev.tsv | gRPC | 199 of 200 | 190 | 0.016 |" in text
    assert "| n, openvino | another |" in text and text.count("under load**") == 1


def test_without_figures_it_says_how_to_get_them() -> None:
    assert "python -m qdq.studies.serving" in serving_tables({})
