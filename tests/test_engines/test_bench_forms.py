"""Batches padded to the sequence and cropped to their longest text: what is fed, timed, compared and shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from engines.bench import CROPPED, BenchSettings, Contestant, bench, both_forms, render_table
from engines.bench.report import best_form, best_speedup
from engines.bench.workload import cropped
from qdq.base.types import Feeds, Outputs

from .bench_parts import MS, Track, fixed, run_bench

pytestmark = pytest.mark.usefixtures("light_collections")


def padded(lengths: Sequence[int], sequence: int = 6, left: bool = False) -> Feeds:
    """A batch of rows with these many real tokens, all different."""
    places = np.arange(sequence)
    mask = np.array([(sequence - 1 - places if left else places) < length for length in lengths]).astype(np.int64)
    ids = np.arange(1, mask.size + 1).reshape(mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask}


def test_cropping_leaves_out_what_is_padding_in_every_row_on_either_side() -> None:
    for left in (False, True):
        feeds = padded([2, 4], left=left)
        short = cropped(feeds)
        assert {name: array.shape for name, array in short.items()} == {"input_ids": (2, 4), "attention_mask": (2, 4)}
        kept = slice(2, None) if left else slice(4)
        assert (short["input_ids"] == feeds["input_ids"][:, kept]).all()
    full, empty = padded([6, 1]), padded([0, 0])
    assert cropped(full)["input_ids"].shape == (2, 6) and cropped(empty) is empty
    assert cropped({"input_ids": full["input_ids"]})["input_ids"].shape == (2, 6)  # a model without a mask
    choices = {name: array[:, None] for name, array in padded([2, 3]).items()}
    assert cropped(choices)["input_ids"].shape == (2, 1, 3)


def test_both_forms_get_the_round_s_batch_padded_and_cropped() -> None:
    track, seen = Track(), []

    def run(feeds: Feeds) -> Outputs:
        seen.append(feeds["input_ids"].shape)
        track.now += feeds["input_ids"].shape[1] * MS
        return {"logits": np.ones((2, 2), np.float32)}

    entries = both_forms([Contestant("int8", "openvino", run), Contestant("openvino-fp32", "openvino", run)])
    assert [one.name for one in entries] == ["int8", "int8-cropped", "openvino-fp32", "openvino-fp32-cropped"]
    options = BenchSettings(batch=2, sequence=6, budget_s=None, samples=4, warmup=1)
    report = bench(entries, [padded([2, 3]), padded([1, 3])], options, {}, clock=track.clock)
    assert set(seen) == {(2, 6), (2, 3)}
    timed = report["contestants"]
    assert [timed[one.name]["latency_ms"]["p50"] for one in entries] == [6, 3, 6, 3]
    assert timed["int8"]["speedup"] == {"openvino-fp32": 1, "openvino-fp32-cropped": 0.5}
    assert report["workload"]["mean_longest"] == 3


def test_contestants_are_compared_by_their_better_forms() -> None:
    def entry(p50: float, **speedup: float) -> dict[str, Any]:
        return {"latency_ms": {"p50": p50}, "speedup": speedup}

    bases = ("a-fp32", f"a-fp32{CROPPED}")
    timed = {
        "int8": entry(10, **dict(zip(bases, (9, 3), strict=True))),
        f"int8{CROPPED}": entry(12, **dict(zip(bases, (8, 2.5), strict=True))),
        bases[0]: entry(90),
        bases[1]: entry(30),
    }
    assert (best_form(timed, "int8"), best_form(timed, "a-fp32")) == ("int8", bases[1])
    assert best_speedup(timed, "int8", "a-fp32") == 3  # of the padded form over the cropped one
    assert best_speedup(timed, "int8", "b-fp32") is None
    del timed[bases[0]]  # the budget had no room for it
    assert best_speedup(timed, "int8", "a-fp32") == 3


def test_a_form_that_was_not_timed_is_a_dash() -> None:
    track = Track()
    forms = [("int8", 20), (f"int8{CROPPED}", 12), (f"openvino-fp32{CROPPED}", 24)]
    report = run_bench(track, [track.contestant(name, cost, "openvino") for name, cost in forms], fixed(samples=3))
    lines = render_table(report | {"texts": report}).splitlines()
    block = [line.split() for line in lines[lines.index("") + 1 :]]
    assert block[1] == ["int8", "3/3", "20.0", "12.0", "166.7", "-", "2.00"]
    assert block[2] == ["openvino-fp32", "-/3", "-", "24.0", "83.3", "-", "1.00"]
    assert "-: the time budget had no room for it, and no ratio needs it" in lines


def test_a_second_block_shows_both_forms_of_texts_of_their_own_lengths() -> None:
    track = Track()
    names = ("int8", "int8-onnxruntime", "openvino-fp32", "onnxruntime-fp32", "torch-fp32")
    costs = [(20, 12), (30, 15), (60, 24), (80, 36), (70, 40)]
    engines = ("openvino", "onnxruntime", "openvino", "onnxruntime", "torch")
    entries = [track.contestant(*one) for one in zip(names, (cost for cost, _ in costs), engines, strict=True)]
    report = run_bench(track, entries, fixed(samples=3))
    forms = [
        track.contestant(name + suffix, cost, engine)
        for name, engine, pair in zip(names, engines, costs, strict=True)
        for suffix, cost in zip(("", CROPPED), pair, strict=True)
    ]
    report["texts"] = run_bench(track, forms, fixed(samples=3))
    lines = render_table(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith("full rows  ") and lines[6] == ""
    assert lines[7].split() == ["own", "lengths", "samples", "padded", "cropped", "seq/s", "x", "ORT", "x", "own"]
    assert lines[8].split() == ["int8", "3/3", "20.0", "12.0", "166.7", "3.00", "2.00"]
    assert lines[9].split() == ["int8-onnxruntime", "3/3", "30.0", "15.0", "133.3", "2.40", "2.40"]
    assert [line.split()[0] for line in lines[8:13]] == list(names)
