"""Suggestions for a word that nothing takes: the likeliest first, and none where nothing is like it."""

from __future__ import annotations

import pytest

from qdq.base.alike import alike

OPTIONS = (
    "--model",
    "--mode",
    "--calibration",
    "--calibrator",
    "--eval-data",
    "--eval-samples",
    "--batch",
    "--threads",
)
OPTIONS = (*OPTIONS, "--bench-seconds", "--sequence", "--http-port", "--out")
ELSEWHERE = {"sequence": ("max-length",), "dataset": ("data",), "calibration": ("data",), "batch": ("batch-size",)}


@pytest.mark.parametrize(
    ("word", "found"),
    [
        ("--calib", ["--calibration", "--calibrator"]),  # an abbreviation
        ("--bench-sec", ["--bench-seconds"]),
        ("--eval", ["--eval-data", "--eval-samples"]),
        ("--eval_data", ["--eval-data"]),  # written otherwise
        ("--Threads", ["--threads"]),
        ("-out", ["--out"]),
        ("--max_length", ["--sequence"]),  # another tool's name
        ("--data", ["--calibration"]),  # another tool's name for an option that is not here, and for one that is
        ("--num-threads", ["--threads"]),  # the same words, and more or fewer
        ("--seq-len", ["--sequence"]),
        ("--port", ["--http-port"]),
        ("--modl", ["--model", "--mode"]),  # misspelled
        ("--bacth", ["--batch"]),
        ("--learning-rate", []),
        ("--", []),
    ],
)
def test_what_a_word_may_stand_for(word: str, found: list[str]) -> None:
    assert alike(word, OPTIONS, ELSEWHERE) == found


def test_at_most_three() -> None:
    assert alike("a", ["ab", "ac", "ad", "ae"]) == ["ab", "ac", "ad"]
    assert alike("", ["ab"]) == []
