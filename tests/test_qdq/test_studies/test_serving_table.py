"""The table of a server under load: what was measured, how to get it when nothing was, one row per load."""

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
        "errors": {"503": refused} if refused else {},
        "check": {"right": 100 - wrong - refused, "wrong": wrong},
    }
    machine = {"cpu": "a CPU", "cores": 2}
    direct = {"batch": 16, "cpu_ms_per_text": 6.04}
    return {"form": form, "over": over, "model": "m", "texts": 200, "direct": direct, "machine": machine, "runs": [run]}


def test_every_load_has_a_row() -> None:
    loads = [load("text", "HTTP"), load("text", "gRPC", refused=3), load("raw", "HTTP", wrong=40)]
    text = serving_tables({"m": {"target": "openvino", "data": "mrpc/dev.tsv", "server": "Triton", "loads": loads}})
    assert "| text | HTTP | 16 | 71 | 219 | 271 | – | 9.1 | 7.7 | 100 of 100 |" in text
    assert "| 97 of 100, 3 refused |" in text and "| token ids | HTTP |" in text and "| 60 of 100 |" in text
    assert "200 texts of their own lengths (mrpc/dev.tsv)" in text and "takes 6.04 ms of CPU per text" in text


def test_without_figures_it_says_how_to_get_them() -> None:
    assert "python -m qdq.studies.serving" in serving_tables({})
