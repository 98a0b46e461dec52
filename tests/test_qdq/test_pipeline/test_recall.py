"""What a stage takes over from the earlier run."""

from __future__ import annotations

from dataclasses import dataclass, fields

import pytest

from qdq.base.option import FREE, option
from qdq.errors import ConfigError
from qdq.pipeline.options import CompileOptions
from qdq.pipeline.recall import DECIDED_BY, ORDER, recalled

EARLIER = CompileOptions(
    model="m", task="fill-mask", placement="qdqbert", batch=2, text_columns=("a", "b"), target="onnxruntime"
)


def test_earlier_options_unless_typed() -> None:
    assert recalled("bench", {}, EARLIER.as_json()) == EARLIER
    changed = recalled("bench", {"batch": 40, "out": "x"}, EARLIER.as_json())
    assert (changed.batch, changed.out, changed.text_columns) == (40, "x", ("a", "b"))
    assert recalled("inject", {"batch": 3}, {}) == CompileOptions(batch=3)
    assert recalled("bench", {}, {**EARLIER.as_json(), "of another day": 1}) == EARLIER


def test_the_cores_are_shared_anew_when_a_share_changes() -> None:
    earlier = {**EARLIER.as_json(), "threads": 2, "streams": 4, "mode": "throughput"}
    for typed, expected in (
        ({}, (2, 4)),
        ({"mode": "throughput"}, (2, 4)),
        ({"mode": "latency"}, (0, 0)),
        ({"threads": 1}, (1, 0)),
        ({"streams": 8}, (0, 8)),
        ({"mode": "latency", "threads": 3}, (3, 0)),
    ):
        options = recalled("bench", typed, earlier)
        assert (options.threads, options.streams) == expected, typed


def test_spec_and_placement_replace_each_other() -> None:
    options = recalled("calibrate", {"spec": "s.yaml"}, EARLIER.as_json())
    assert (options.spec, options.placement) == ("s.yaml", None)
    options.validate()


def test_another_model_brings_its_own_task_and_placement() -> None:
    options = recalled("calibrate", {"model": "other"}, EARLIER.as_json())
    assert (options.model, options.task, options.placement, options.batch) == ("other", None, None, 2)
    assert recalled("calibrate", {"model": "m"}, EARLIER.as_json()) == EARLIER


def test_what_is_decided_can_be_repeated_but_not_changed() -> None:
    assert recalled("bench", {"placement": "qdqbert"}, EARLIER.as_json()) == EARLIER
    with pytest.raises(ConfigError, match="--placement: this work directory was made with 'qdqbert', and 'linear'"):
        recalled("export", {"placement": "linear"}, EARLIER.as_json())
    with pytest.raises(ConfigError, match="--calibration: this work directory was made with its default"):
        recalled("verify", {"calibration": "x.txt"}, EARLIER.as_json())
    assert recalled("calibrate", {"samples": 3}, EARLIER.as_json()).samples == 3
    assert recalled("build", {"precision_hint": "bf16"}, EARLIER.as_json()).precision_hint == "bf16"


def undecided(options: type[CompileOptions]) -> list[str]:
    """Names of options whose declaration does not say which stage decides them, or FREE."""
    return [known.name for known in fields(options) if known.metadata.get("decided_by", "") not in (FREE, *ORDER)]


def test_every_option_is_decided_by_a_stage_or_free() -> None:
    assert undecided(CompileOptions) == []
    assert DECIDED_BY.keys() == CompileOptions().as_json().keys()


def test_an_option_that_is_neither_is_noticed() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Extended(CompileOptions):
        forgotten: int = 0
        misspelled: int = option(0, "", "calibration", group="text")

    assert undecided(Extended) == ["forgotten", "misspelled"]


def test_a_work_directory_of_the_former_calibrator_name_is_understood(caplog: pytest.LogCaptureFixture) -> None:
    earlier = {**EARLIER.as_json(), "calibrator": "search"}
    assert recalled("bench", {}, earlier).calibrator == "clip"
    assert recalled("bench", {"calibrator": "clip"}, earlier) == EARLIER
    with pytest.raises(ConfigError, match="--calibrator: this work directory was made with 'clip', and 'mse'"):
        recalled("bench", {"calibrator": "mse"}, earlier)
    assert caplog.text == ""  # nobody typed it now
