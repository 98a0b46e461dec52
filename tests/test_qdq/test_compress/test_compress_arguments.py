"""CompressionArguments and strategies: documented names and defaults, what transformers 5 dropped, bad input."""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import HfArgumentParser

from qdq.compress.arguments import CompressionArguments
from qdq.compress.strategy import METHODS, parse_strategy
from qdq.errors import ConfigError

# Every parameter the API documents, with its documented default.
DOCUMENTED: dict[str, Any] = {
    "strategy": "dynabert+ptq",
    "input_infer_model_path": None,
    "input_dtype": "int64",
    "width_mult_list": [Fraction(3, 4)],
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "num_train_epochs": 3.0,
    "max_steps": -1,
    "logging_steps": 500,
    "save_steps": 100,
    "learning_rate": 5e-5,
    "weight_decay": 0.0,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "adam_epsilon": 1e-8,
    "max_grad_norm": 1.0,
    "lr_scheduler_type": "linear",
    "warmup_ratio": 0.0,
    "warmup_steps": 0,
    "seed": 42,
    "remove_unused_columns": True,
    "algo_list": ["mse", "KL"],
    "batch_num_list": [1],
    "batch_size_list": [4],
    "weight_quantize_type": "channel_wise_abs_max",
    "round_type": "round",
    "bias_correction": False,
    "use_pact": True,
    "moving_rate": 0.9,
}


def parse(*typed: str) -> CompressionArguments:
    (arguments,) = HfArgumentParser(CompressionArguments).parse_args_into_dataclasses(["--output_dir", "o", *typed])
    assert isinstance(arguments, CompressionArguments)
    return arguments


@pytest.mark.document_row("000/33", "000/34", "000/35", "000/36", "000/38", "000/45")
def test_documented_defaults() -> None:
    arguments = parse()
    assert {name: getattr(arguments, name) for name in DOCUMENTED} == DOCUMENTED


@pytest.mark.document_row("000/14", "000/32", "000/40")
def test_documented_command_line() -> None:
    arguments = parse(
        *(
            "--per_device_train_batch_size",
            "32",
            "--width_mult_list",
            "3/4",
            "0.5",
            "--batch_size_list",
            "4",
            "8",
            "16",
        ),
        *("--batch_num_list", "1", "None", "--optim", "adamw", "--warmup_ratio", "0.1", "--device", "cpu"),
        *("--strategy", "qat+dynabert", "--remove_unused_columns", "False", "--bias_correction"),
    )
    assert arguments.widths == (Fraction(3, 4), Fraction(1, 2))
    assert arguments.batch_num_list == [1, None]
    assert arguments.batch_counts == (1, None)
    assert arguments.batch_size_list == [4, 8, 16]
    assert arguments.optim == CompressionArguments.default_optim
    assert arguments.get_warmup_steps(1000) == 100
    assert arguments.device == torch.device("cpu")
    assert arguments.chosen_strategy.name == "dynabert+qat"
    assert not arguments.remove_unused_columns
    assert arguments.bias_correction


def test_the_former_name_of_clip_is_translated_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="qdq"):
        arguments = parse("--algo_list", "search", "mse")
    assert arguments.algo_list == ["clip", "mse"]
    assert "calibrator 'search' is called 'clip' now" in caplog.text


@pytest.mark.document_row("000/36")
def test_warmup_steps_win_over_the_ratio() -> None:
    assert parse("--warmup_ratio", "0.5", "--warmup_steps", "7").get_warmup_steps(100) == 7
    assert parse("--warmup_ratio", "0.07").get_warmup_steps(100) == 7


@pytest.mark.document_row("000/37")
@pytest.mark.skipif(torch.accelerator.is_available(), reason="this machine has an accelerator")
def test_gpu_falls_back_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="qdq"):
        arguments = parse("--device", "gpu")
    assert arguments.device == torch.device("cpu")
    assert "device=gpu" in caplog.text


def test_arguments_survive_what_trainer_does_to_them(tmp_path: Path) -> None:
    arguments = parse("--width_mult_list", "2/3", "--batch_num_list", "None")
    torch.save(arguments, tmp_path / "training_args.bin")
    again = torch.load(tmp_path / "training_args.bin", weights_only=False)
    assert again.widths == (Fraction(2, 3),)
    assert '"2/3"' in arguments.to_json_string()
    assert arguments.to_dict()["device"] == "gpu"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["--strategy", "dynabertt"], r"strategy.*did you mean 'dynabert'"),
        (["--strategy", "ptq+qat"], "starts from a PTQ-calibrated model"),
        (["--strategy", "ptq+dynamic"], "both quantize the linears"),
        (["--strategy", "qat+qat"], "twice"),
        (["--width_mult_list", "5/4"], "outside"),
        (["--width_mult_list", "wide"], "width_mult_list: .*'wide'; write fractions such as 3/4 or 0.75"),
        (["--algo_list", "mze"], r"algo_list.*did you mean 'mse'"),
        (["--batch_size_list", "0"], "batch_size_list: 0"),
        (["--batch_num_list", "few"], "batch_num_list: expected a whole number or None, such as 16, found 'few'"),
        (["--batch_num_list", "0"], "batch_num_list: 0"),
        (["--weight_quantize_type", "absmax"], "weight_quantize_type"),
        (["--activation_quantize_type", "x"], "activation_quantize_type"),
        (["--round_type", "floor"], "round_type"),
        (
            ["--strategy", "ptq", "--activation_quantize_type", "abs_max", "--algo_list", "KL", "hist"],
            r"activation_quantize_type: abs_max is a range by itself, so algo_list \(KL, hist\) has nothing to choose",
        ),
        (["--strategy", "dynabert", "--round_type", "adaround"], "adaround: is a treatment of ptq and qat"),
        (["--strategy", "ptq,dynabert+ptp"], "'dynabert\\+ptp' has an unknown method 'ptp'"),
        (["--task", "text-clasification"], "task"),
        (["--device", "tpu"], "device"),
        (["--optim", "adamq"], "adamq"),
        (["--moving_rate", "1.5"], "moving_rate"),
        (["--input_dtype", "int16"], "input_dtype"),
    ],
)
def test_bad_values_are_named(typed: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(*typed)


@given(st.lists(st.sampled_from(sorted(METHODS)), min_size=1, max_size=5))
def test_strategies_run_in_one_order(typed: list[str]) -> None:
    exclusive = len({"ptq", "qat", "dynamic"} & set(typed)) > 1
    if exclusive or len(set(typed)) < len(typed):
        with pytest.raises(ConfigError, match="strategy"):
            parse_strategy("+".join(typed))
    else:
        assert parse_strategy("+".join(typed)).methods == tuple(method for method in METHODS if method in typed)


@pytest.mark.document_row("000/27")
@pytest.mark.parametrize(
    "name",
    ["dynabert", "ptq", "qat", "dynabert+ptq", "dynabert+qat", "dynabert+embeddings", "dynabert+qat+embeddings"],
)
def test_documented_strategies(name: str) -> None:
    assert parse_strategy(name).name == name
