"""The benchmark with fake runners on a fake clock: what is timed when, and what the numbers mean."""

from __future__ import annotations

import gc
import itertools
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.bench import BenchSettings, Contestant, bench, render_table
from engines.bench.interleave import MIN_SAMPLES, Race, balanced_order, plan_strides
from engines.bench.report import paired_speedup, summarize
from qdq.base.types import Feeds, Outputs
from qdq.errors import BuildError, ConfigError

from .bench_parts import Track, feeds, fixed, run_bench

pytestmark = pytest.mark.usefixtures("light_collections")


# The scheme


def test_without_a_budget_everyone_runs_every_round_on_the_batch_of_that_round() -> None:
    track = Track()
    report = run_bench(track, [track.contestant(n, c) for n, c in (("a", 1), ("b", 5), ("c", 900))], fixed(samples=12))
    assert {name: entry["samples"] for name, entry in report["contestants"].items()} == {"a": 12, "b": 12, "c": 12}
    counted = track.calls[3:]  # after one warm-up round
    rounds = [counted[i : i + 3] for i in range(0, len(counted), 3)]
    assert all({name for name, _ in calls} == {"a", "b", "c"} for calls in rounds)
    assert [{tag for _, tag in calls} for calls in rounds] == [{100 * (i % 3)} for i in range(12)]


@pytest.mark.parametrize("size", range(1, 8))
def test_order_lets_everyone_follow_everyone_equally_often(size: int) -> None:
    orders = [balanced_order(size, turn) for turn in range(size if size % 2 == 0 else 2 * size)]
    assert all(sorted(order) == list(range(size)) for order in orders)
    follows = Counter(pair for order in orders for pair in itertools.pairwise(order))
    places = Counter((place, who) for order in orders for place, who in enumerate(order))
    assert len(follows) == size * (size - 1) and len(set(follows.values())) <= 1
    assert len(places) == size * size and len(set(places.values())) == 1


def test_warm_up_is_not_counted() -> None:
    track = Track()
    cold = track.contestant("a", lambda call: 1000 if call < 3 else 2)
    entry = run_bench(track, [cold], fixed(samples=5, warmup=3))["contestants"]["a"]
    assert (entry["warmup"], entry["samples"]) == (3, 5)
    assert entry["latency_ms"]["mean"] == entry["latency_ms"]["p90"] == 2


def test_a_slow_contestant_does_not_eat_the_budget() -> None:
    track = Track()
    costs = {"int8": 10, "openvino-fp32": 30, "onnxruntime-fp32": 40, "torch-fp32": 1000}
    report = run_bench(track, [track.contestant(n, c) for n, c in costs.items()], fixed(budget_s=10.0, samples=100))
    entries = report["contestants"]
    assert not report["budget_exceeded"] and report["elapsed_s"] <= 10
    # 9 s would give 8 full rounds; thinning only the slow one gives the others many times that
    assert entries["int8"]["samples"] >= 50
    assert min(entries["openvino-fp32"]["samples"], entries["onnxruntime-fp32"]["samples"]) >= 25
    assert MIN_SAMPLES <= entries["torch-fp32"]["samples"] < 8
    assert entries["int8"]["speedup"]["torch-fp32"] == pytest.approx(100)


def test_a_spare_contestant_is_timed_only_where_the_budget_has_room() -> None:
    """Room: a warm-up and three samples of one as slow as the slowest, beside everyone else's three."""
    for budget_s, there in ((5.0, False), (9.0, True), (None, True)):
        track = Track()
        costs = {"int8": 100, "ort-fp32": 1000, "torch-fp32": 1000}
        entries = [track.contestant(name, cost) for name, cost in costs.items()]
        entries[2] = replace(entries[2], spare=True)
        report = run_bench(track, entries, BenchSettings(batch=2, sequence=4, budget_s=budget_s, samples=5, warmup=1))
        timed = report["contestants"]
        assert list(timed) == list(costs) if there else ["int8", "ort-fp32"]
        assert timed["int8"]["speedup"].keys() == {name for name in timed if name.endswith("-fp32")}
        assert not report["budget_exceeded"]
        assert any(name == "torch-fp32" for name, _ in track.calls) is there


def test_a_sampled_contestant_still_sees_every_batch_and_every_rival_beside_it() -> None:
    track = Track()
    entries = [track.contestant("fast", 10), track.contestant("slow-fp32", 400)]
    options = BenchSettings(batch=2, sequence=4, budget_s=8.0, samples=64, warmup=1)
    timings = Race(entries, [feeds(i) for i in range(4)], options, track.clock).run()
    assert timings.every["slow-fp32"] > 1 and timings.every["fast"] == 1
    assert timings.samples["slow-fp32"].keys() <= timings.samples["fast"].keys()
    assert {tag for name, tag in track.calls if name == "slow-fp32"} == {0, 100, 200, 300}
    after = {track.calls[i][0] for i in range(1, len(track.calls)) if track.calls[i - 1][0] == "slow-fp32"}
    before = {track.calls[i - 1][0] for i in range(1, len(track.calls)) if track.calls[i][0] == "slow-fp32"}
    assert "fast" in after and "fast" in before


def test_a_hopeless_budget_still_gives_three_samples_each_and_says_so() -> None:
    track = Track()
    report = run_bench(track, [track.contestant("a", 500), track.contestant("b", 3000)], fixed(budget_s=1.0, warmup=3))
    assert report["budget_exceeded"] is True
    assert [(e["samples"], e["warmup"]) for e in report["contestants"].values()] == [(3, 1), (3, 1)]
    assert "over the 1.0 s it had of the time budget" in render_table(report)


def test_a_contestant_that_turns_slow_is_still_timed_three_times_with_a_partner() -> None:
    track = Track()
    entries = [track.contestant("a", 10), track.contestant("b-fp32", lambda call: 200 if call < 1 else 2000)]
    report = run_bench(track, entries, fixed(budget_s=3.0, samples=100))
    assert report["contestants"]["b-fp32"]["samples"] == MIN_SAMPLES
    assert report["budget_exceeded"] is True
    assert report["contestants"]["a"]["speedup"]["b-fp32"] == 200


@settings(max_examples=60, deadline=None)
@given(
    costs=st.lists(st.integers(1, 2000), min_size=1, max_size=5),
    budget=st.integers(1, 40),
    samples=st.integers(MIN_SAMPLES, 60),
)
def test_budget_and_minimum_hold_for_any_costs(costs: list[int], budget: int, samples: int) -> None:
    track = Track()
    entries = [track.contestant(f"c{i}-fp32", cost) for i, cost in enumerate(costs)]
    report = run_bench(track, entries, fixed(budget_s=float(budget), samples=samples, warmup=2))
    counts = [entry["samples"] for entry in report["contestants"].values()]
    assert all(MIN_SAMPLES <= count <= samples for count in counts)
    if report["budget_exceeded"]:  # nobody gets a luxury sample on borrowed time
        assert min(counts) == MIN_SAMPLES
    for name, entry in report["contestants"].items():  # constant costs: ratios are exact however rounds were thinned
        own = costs[int(name[1])]
        assert entry["speedup"] == {f"c{i}-fp32": cost / own for i, cost in enumerate(costs)}


def test_plan_thins_the_slow_ones_by_powers_of_two_and_fits() -> None:
    costs = [100.0, 350.0, 500.0, 800.0]
    strides = plan_strides(costs, 16_000.0, 100)
    assert strides[0] == 1 and strides == sorted(strides) and set(strides) <= {1, 2, 4, 8}
    assert plan_strides(costs, float("inf"), 100) == [1, 1, 1, 1]
    assert plan_strides(costs, -1.0, 100) == [1, 1, 1, 1]


def test_collector_is_paused_while_timing_and_restored_even_after_an_error() -> None:
    seen: list[bool] = []

    def fail(feeds: Feeds) -> Outputs:
        seen.append(gc.isenabled())
        return {}

    with pytest.raises(BuildError):
        bench([Contestant("a", "fake", fail)], [feeds()], fixed(), {})
    assert seen == [False] and gc.isenabled()


# The numbers


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.001, 1e5), min_size=3, max_size=150))
def test_percentiles_equal_brute_force(values: list[float]) -> None:
    ordered = sorted(values)

    def brute(q: float) -> float:
        rank = (len(ordered) - 1) * q / 100
        below = int(rank)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (ordered[above] - ordered[below]) * (rank - below)

    summary = summarize(values)
    assert summary["mean"] == pytest.approx(sum(values) / len(values))
    assert summary["p50"] == pytest.approx(brute(50))
    assert summary["p90"] == pytest.approx(brute(90))
    assert summary["p95"] == (pytest.approx(brute(95)) if len(values) >= 20 else None)
    assert summary["p99"] == (pytest.approx(brute(99)) if len(values) >= 100 else None)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=30), st.integers(2, 50))
def test_equal_times_have_speedup_one_and_drift_cancels(times: list[int], factor: int) -> None:
    base = dict(enumerate(times))
    assert paired_speedup(base, base) == 1
    assert paired_speedup({turn: factor * ns for turn, ns in base.items()}, base) == factor


def test_speedup_pairs_rounds_so_a_drifting_machine_does_not_distort_it() -> None:
    track = Track()
    drift = [1.0, 1.5, 2.0, 8.0, 9.0, 9.5]
    entries = [
        track.contestant("int8", lambda call: 2 * ([1.0, *drift][call]), "openvino"),
        track.contestant("onnxruntime-fp32", lambda call: 6 * ([1.0, *drift][call]), "onnxruntime"),
    ]
    report = run_bench(track, entries, fixed(samples=6))
    found = {name: entry["speedup"]["onnxruntime-fp32"] for name, entry in report["contestants"].items()}
    assert found == {"int8": 3, "onnxruntime-fp32": 1}


def test_report_has_the_promised_keys_and_is_json() -> None:
    track = Track()
    entries = [track.contestant("int8", 20, "openvino"), track.contestant("openvino-fp32", 50, "openvino")]
    report = run_bench(track, entries, fixed(samples=100))
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert (report["batch"], report["sequence"], report["versions"]) == (2, 4, {"numpy": "2"})
    entry = report["contestants"]["int8"]
    assert {"engine", "samples", "latency_ms", "sequences_per_s"} <= entry.keys()
    assert entry["latency_ms"] == {"mean": 20, "p50": 20, "p90": 20, "p95": 20, "p99": 20}
    assert entry["sequences_per_s"] == pytest.approx(100)
    assert "cpu" in report["machine"]
    assert report["workload"] == {
        "batches": 3,
        "mean_tokens": 3.0,
        "min_tokens": 2,
        "max_tokens": 4,
        "mean_longest": 4.0,
        "padding_share": 0.25,
    }


@pytest.mark.parametrize("budget_s", [None, 2.0, 0.001])
def test_progress_counts_rounds_or_milliseconds_and_ends_full(budget_s: float | None) -> None:
    track = Track()
    seen: list[tuple[int, int]] = []
    options = fixed(budget_s=budget_s, samples=4)
    bench([track.contestant("a", 100)], [feeds()], options, {}, lambda *done: seen.append(done), track.clock)
    assert seen == sorted(seen) and seen[-1][0] == seen[-1][1] and len({total for _, total in seen}) == 1


# Bad input


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "contestant 'int8' returned no outputs"),
        ({"logits": np.empty((0, 2), np.float32)}, "contestant 'int8': output 'logits' is empty"),
        ({"logits": np.array([[1.0, np.nan]], np.float32)}, "contestant 'int8': output 'logits' holds NaN or Inf"),
    ],
)
def test_broken_outputs_name_the_contestant(outputs: Outputs, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        bench([Contestant("int8", "openvino", lambda feeds: outputs)], [feeds()], fixed(), {})


@pytest.mark.parametrize(
    ("workload", "message"),
    [
        ([], "no batches"),
        ([{"attention_mask": np.ones((2, 4))}], "no 'input_ids'"),
        ([feeds(), feeds(sequence=5)], r"batch 1: input 'input_ids' has shape \[2, 5\], expected \[2, 4\]"),
        ([feeds(batch=3)], r"shape \[3, 4\]"),
        ([{"input_ids": np.tile(np.arange(4), (2, 1))}], "batch 0 repeats one row"),
        ([{"input_ids": np.ones((2, 4), np.int64)}], "batch 0 repeats one token"),
    ],
)
def test_a_workload_of_wrong_shape_or_without_variety_is_refused(workload: list[Feeds], message: str) -> None:
    track = Track()
    with pytest.raises(ConfigError, match=message):
        bench([track.contestant("a", 1)], workload, fixed(), {}, clock=track.clock)
    assert not track.calls


def test_multiple_choice_batches_have_a_choices_axis() -> None:
    track = Track()
    batch = {"input_ids": np.arange(24).reshape(2, 3, 4), "attention_mask": np.ones((2, 3, 4), np.int64)}
    run = Contestant("a", "fake", lambda feeds: {"logits": np.ones((2, 3), np.float32)})
    report = bench([run], [batch], fixed(), {}, clock=track.clock)
    assert report["workload"]["padding_share"] == 0


def test_line_up_and_settings_are_checked() -> None:
    track = Track()
    with pytest.raises(ConfigError, match="no contestants"):
        bench([], [feeds()], fixed(), {})
    with pytest.raises(ConfigError, match="two contestants are called 'a'"):
        bench([track.contestant("a", 1), track.contestant("a", 1)], [feeds()], fixed(), {})
    with pytest.raises(ConfigError, match="benchmark samples is 2; it must be at least 3"):
        BenchSettings(samples=2)
    with pytest.raises(ConfigError, match=r"benchmark budget is 0\.0 s"):
        BenchSettings(budget_s=0.0)


# The screen


def test_table_fits_eighty_columns_and_shows_both_speedups() -> None:
    track = Track()
    costs = {
        "int8": ("openvino", 123.4),
        "openvino-fp32": ("openvino", 370.2),
        "onnxruntime-fp32": ("onnxruntime", 493.6),
        "a-contestant-with-a-very-long-name": ("torch", 123456.7),
    }
    report = run_bench(track, [track.contestant(n, c, e) for n, (e, c) in costs.items()], fixed(samples=3))
    lines = render_table(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == [
        "contestant",
        "samples",
        *("p50", "ms", "p90", "ms", "p99", "ms"),
        "seq/s",
        *("x", "ORT", "x", "own"),
    ]
    assert lines[1].split() == ["int8", "3", "123.4", "123.4", "-", "16.2", "4.00", "3.00"]
    assert lines[4].split()[0] == "a-contestant-wi..." and lines[4].split()[-1] == "-"  # no torch-fp32 in this run
    assert "25% padding" in " ".join(lines) and "p99 needs 100 samples" in " ".join(lines)


def test_importing_bench_and_compare_needs_no_runtime() -> None:
    code = (
        "import sys, engines.bench, engines.compare\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'openvino', 'tensorrt', 'transformers'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
