"""Loading a server: every row once before any comes again, honest figures, refusals counted by status."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.client import (
    Call,
    LoadSettings,
    TextRow,
    batches_between,
    connect,
    cpu_seconds,
    draw_load,
    feeds_of,
    figures_of,
    local_server,
    parse_address,
    render_load,
    run_load,
)

from .stand_in import NAME, StandIn


def loaded(url: str, texts: list[str], settings: LoadSettings) -> list[Call]:
    address = parse_address(url)
    with connect(address) as client:
        model = client.describe(NAME)
    return run_load(address, model, [feeds_of(model, TextRow(text)) for text in texts], settings, ("LOGITS",))


def test_all_rows_come_once_before_any_comes_again(url: str) -> None:
    calls = loaded(url, [f"text {number}" for number in range(10)], LoadSettings(4, 60.0, requests=25))
    rows = [call.row for call in calls]
    assert len(calls) == 25 and all(call.outputs is not None for call in calls)
    assert sorted(Counter(rows).values()) == [2] * 5 + [3] * 5
    again = loaded(url, [f"text {number}" for number in range(10)], LoadSettings(1, 60.0, requests=10))
    first = loaded(url, [f"text {number}" for number in range(10)], LoadSettings(1, 60.0, requests=10))
    assert [call.row for call in again] == [call.row for call in first] != list(range(10))


def test_refusals_are_counted_and_do_not_count_as_answers(stand_in: StandIn) -> None:
    calls = loaded(stand_in.http, ["", "text"], LoadSettings(2, 60.0, requests=8))
    figures = figures_of(calls)
    assert figures["answered"] == 4 and figures["errors"] == {"400": 4}
    assert "TEXT is empty" in next(call.message for call in calls if call.status == 400)
    stand_in.busy = True
    assert figures_of(loaded(stand_in.http, ["text"], LoadSettings(2, 60.0, requests=4)))["errors"] == {"503": 4}


def test_a_load_ends_when_its_time_is_over(stand_in: StandIn) -> None:
    stand_in.delay = 0.05
    started = time.perf_counter()
    calls = loaded(stand_in.http, ["text"], LoadSettings(3, 0.3))
    assert calls and max(call.sent for call in calls) < 0.3
    assert time.perf_counter() - started < 5


def test_percentiles_need_enough_answers() -> None:
    calls = [Call(0, 0.0, seconds / 1000, {"X": np.zeros(1)}) for seconds in range(1, 51)]
    latency = figures_of(calls)["latency_ms"]
    assert (latency["p50"], latency["p90"], latency["p99"]) == (25.5, pytest.approx(45.1), None)
    assert figures_of([])["latency_ms"]["p50"] is None and figures_of([])["texts_per_s"] == 0.0


def test_batches_are_the_difference_of_two_statistics() -> None:
    def statistics(*sizes: tuple[int, int]) -> dict[str, Any]:
        batches = [{"batch_size": str(size), "compute_infer": {"count": str(count)}} for size, count in sizes]
        rows = sum(size * count for size, count in sizes)
        return {"inference_count": str(rows), "execution_count": sum(c for _, c in sizes), "batch_stats": batches}

    found = batches_between(statistics((1, 5)), statistics((1, 6), (7, 2)))
    assert found == {"rows": 15, "executions": 3, "mean_batch": 5.0, "executions_by_batch": {"1": 1, "7": 2}}
    assert batches_between({}, {})["mean_batch"] is None


def test_the_server_of_this_machine_is_found_by_its_port_and_its_cpu_time_grows(stand_in: StandIn) -> None:
    address = parse_address(stand_in.http)
    assert local_server(address) == os.getpid()
    assert local_server(parse_address("http://triton.example:8000")) is None
    before = cpu_seconds(os.getpid())
    ends = time.process_time() + 0.1
    while time.process_time() < ends:
        pass
    after = cpu_seconds(os.getpid())
    assert before is not None and after is not None and after - before >= 0.05
    assert cpu_seconds(2**22 + 1) is None


def test_the_report_is_80_columns_wide_and_a_picture(tmp_path: Path) -> None:
    run = {
        "clients": 32,
        "answered": 1000,
        "errors": {"503": 3},
        "texts_per_s": 1234.5,
        "latency_ms": {"p50": 10.0, "p90": 20.0, "p99": None},
        "batches": {"mean_batch": 12.345},
        "cpu_ms_per_text": None,
        "messages": ["3 x the queue is full"],
        "check": {"right": 999, "wrong": 1},
    }
    report = {"model": "m", "url": "http://h:1", "texts": 68, "runs": [run], "check": {"engine": "e", "rule": "equal"}}
    text = render_load(report)
    assert max(map(len, text.splitlines())) <= 80
    assert "1234.5     10.0     20.0        -   12.35            -       3      1" in text
    assert "clients 32: 3 x the queue is full" in text and "compared with e" in text
    assert draw_load(report, tmp_path / "load.png").read_bytes().startswith(b"\x89PNG")
