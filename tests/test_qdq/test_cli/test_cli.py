"""The command line: quick and complete help, exit codes, one message per mistake that names the nearest valid word."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from qdq.auto.search.settings import SearchSettings
from qdq.base.option import flag
from qdq.cli.arguments import (
    COMMANDS,
    COMMANDS_ELSEWHERE,
    OPTIONS_ELSEWHERE,
    OWN_OPTIONS,
    WIDTH,
    build_parser,
    names,
    parse,
)
from qdq.cli.plans import PLAN_OPTIONS
from qdq.errors import ConfigError
from qdq.pipeline.options import CompileOptions
from qdq.text.columns import DETECTION_RULES

Qdq = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("torch", "transformers", "onnx", "openvino", "onnxruntime", "tensorrt", "numpy", "rich")

HELP = f"""
import sys, time
from qdq.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print("heavy:", sorted(set({HEAVY}) & set(sys.modules)))
print("seconds:", time.process_time())
"""


@pytest.mark.parametrize("arguments", [["--help"], [], ["compile", "--help"]])
def test_help_is_quick_and_needs_nothing_heavy(arguments: list[str]) -> None:
    """Half a second, counted in the process's own time: how busy the machine is does not matter."""
    ran = subprocess.run([sys.executable, "-c", HELP, *arguments], capture_output=True, text=True, check=True, cwd=ROOT)
    assert ("usage: qdq" if arguments else "qdq compile --model") in ran.stdout
    assert "heavy: []" in ran.stdout
    assert float(ran.stdout.rpartition("seconds: ")[2]) < 0.5
    assert ran.stderr == ""


@pytest.mark.parametrize("command", ["", *COMMANDS, "compile --help-all", "bench --help-all"])
def test_help_fits_a_terminal(qdq: Qdq, command: str) -> None:
    ran = qdq(*command.split(), *(() if "--" in command else ("--help",)))
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= WIDTH
    assert "--help" in ran.out
    words = ran.out.split()
    assert [word for word in words if word.endswith("-") and word != "-"] == []  # no name is broken at its hyphen


def test_help_names_commands_and_exit_codes(qdq: Qdq) -> None:
    out = qdq("--help").out
    assert all(f"    {command} " in out or f"    {command}\n" in out for command in COMMANDS)
    assert "0 done, 1 failed, 2 usage, 3 done as far as this machine can" in out
    assert qdq("--version").out.startswith("qdq ")


def test_help_is_a_command_too(qdq: Qdq) -> None:
    assert qdq("help").out == qdq("--help").out
    assert qdq("help", "verify").out == qdq("verify", "--help").out


def test_every_name_of_another_tool_leads_to_a_name_here() -> None:
    _, commands = build_parser()
    options = {option.lstrip("-") for command in commands.values() for option in command._option_string_actions}
    assert set(COMMANDS_ELSEWHERE) <= set(COMMANDS)
    assert not {other for others in COMMANDS_ELSEWHERE.values() for other in others} & set(COMMANDS)
    assert set(OPTIONS_ELSEWHERE) <= options


def test_no_command_prints_the_five_things_people_do(qdq: Qdq) -> None:
    ran = qdq()
    named = [line.split()[1] for line in ran.out.splitlines() if line.startswith("  qdq ")]
    assert (ran.code, named) == (0, ["compile", "serve", "evaluate", "explain", "check"])
    assert set(named) <= set(COMMANDS)
    assert max(map(len, ran.out.splitlines())) <= WIDTH


def test_compile_help_has_the_ten_options_people_use(qdq: Qdq) -> None:
    common = [field.name for field in fields(CompileOptions) if field.metadata.get("common")]
    assert len(common) == 10
    out = qdq("compile", "--help").out
    shown = {word for word in out.split() if word.startswith("--")}
    assert shown == {flag(name) for name in common} | {"--help", "--help-all", "--json"}
    assert len(out.splitlines()) <= 50


def test_compile_help_all_states_every_default_and_the_column_rules(qdq: Qdq) -> None:
    out = " ".join(qdq("compile", "--help-all").out.split())
    _, commands = build_parser()
    actions = {action.dest: action for action in commands["compile"]._actions}
    for field in fields(CompileOptions):
        text = str(actions[field.name].help)
        assert "(default: " in text, field.name
        assert " ".join(text.split()) in out
        if field.default not in (None, (), False, 0):
            shown = f"{field.default:g}" if isinstance(field.default, float) else str(field.default)
            shown = "on" if field.default is True else shown
            assert f"(default: {shown}" in text, field.name
    assert " ".join(DETECTION_RULES.split()) in out


def test_every_option_of_the_command_line_is_a_field() -> None:
    _, typed, _ = parse(["compile", "--text-columns", "a,b", "--batch", "3", "--allow-pickle"])
    assert typed == {"text_columns": ("a", "b"), "batch": 3, "allow_pickle": True, "json": False}
    _, commands = build_parser()
    known = {action.dest for action in commands["bench"]._actions} - {"help", "help_all", "json"}
    assert known == {field.name for field in fields(CompileOptions)} | set(PLAN_OPTIONS)
    for name, options in OWN_OPTIONS.items():
        known = {action.dest for action in commands[name]._actions} - {"help", "json"}
        more = fields(SearchSettings) if name == "auto" else ()  # without a configuration file
        assert known == {field.name for field in (*fields(options), *more)}, name


def test_doctor(qdq: Qdq) -> None:
    ran = qdq("doctor")
    assert ran.code == 0
    assert max(map(len, ran.out.splitlines())) <= WIDTH
    assert "onnxruntime" in ran.out
    report = json.loads(qdq("doctor", "--json").out)
    assert report["targets"].keys() >= {"openvino", "onnxruntime", "tensorrt"}


# Usage errors: exit code 2, one line, nothing done


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["comple"], "unknown command 'comple'; did you mean 'compile'? 'qdq --help' lists all"),
        (["comp"], "did you mean 'compile'?"),
        (["exp"], "did you mean 'export' or 'explain'?"),
        (["quantize"], "unknown command 'quantize'; did you mean 'compile'?"),
        (["frobnicate"], "unknown command 'frobnicate'; 'qdq --help' lists all"),
        (["compile", "--bench-sec", "5"], "did you mean '--bench-seconds'?"),
        (["compile", "--batch_size", "8"], "did you mean '--batch' or '--batch-size-list'?"),
        (["compile", "--max-length", "8"], "did you mean '--sequence'?"),
        (
            ["evaluate", "x", "--dataset", "y"],
            "unknown option --dataset; did you mean '--data'?",
        ),  # not: --data missing
        (["evaluate", "x"], "the following arguments are required: --data; see 'qdq evaluate --help'"),
        (
            ["compile", "--modell", "x"],
            "unknown option --modell; did you mean '--model' or '--mode'?",
        ),
        (
            ["compile", "--bach=3"],
            "unknown option --bach; did you mean '--batch'? 'qdq compile --help-all' lists all",
        ),
        (["--jsn"], "unknown option --jsn; "),
        (["compile", "my-bert"], "unexpected argument 'my-bert'; options are written --name value"),
        (["doctor", "--model", "x"], "unknown option --model; "),
        (["compile", "--batch"], "--batch: expected one argument; see 'qdq compile --help'"),
        (
            ["compile", "--batch", "many"],
            "--batch: expected a whole number, such as 4, found 'many'; see",
        ),
        (["compile", "--percentile", "high"], "--percentile: expected a number, such as 0.5, found 'high'"),
        (["compile", "--buckets", "a"], "--buckets: expected whole numbers, such as 32,64,128, found 'a'"),
        (
            ["compile", "--batch-size-list", "4,b"],
            "--batch-size-list: expected whole numbers, such as",
        ),
        (
            ["compile", "--batch-num-list", "x"],
            "--batch-num-list: expected whole numbers or all, such as 1,16,all",
        ),
        (["bench", "--warmup", "x"], "--warmup: expected a whole number, such as 4, found 'x'"),
        (["estimate", "x.onnx", "--batch", "1.5"], "--batch: expected a whole number, such as 4, found '1.5'"),
        (
            ["evaluate", "x", "--data", "y", "--samples", "a"],
            "--samples: expected a whole number, such as 4, found 'a'",
        ),
        (["compile", "--modl", "x"], "unknown option --modl; did you mean '--model' or '--mode'?"),
        (["compile", "--calib", "x"], "unknown option --calib; did you mean '--calibration' or '--calibrator'? 'qdq "),
        (["compile", "--target", "openvin"], "--target: unknown value 'openvin'; did you mean 'openvino'?"),
        (["compile", "--task", "text-clasification"], "did you mean 'text-classification'?"),
        (["compile", "--placement", "linear+kq"], "--placement: unknown value 'linear+kq'; did you mean 'linear+qk'?"),
        (["compile", "--calibrator", "percentil"], "did you mean 'percentile'?"),
        (["compile", "--precision-hint", "bf61"], "--precision-hint: unknown value 'bf61'; did you mean 'bf16'?"),
        (["compile", "--triton-backend", "onxruntime"], "did you mean 'onnxruntime'?"),
        (["compile", "--mode", "throughputs"], "--mode: unknown value 'throughputs'; did you mean 'throughput'?"),
        (["bench", "--target", "tensort"], "did you mean 'tensorrt'?"),
        (["compile", "--batch", "0"], "--batch: 0 is outside 1..4096"),
        (["compile", "--sequence", "-1"], "--sequence: -1 is outside 4.."),
        (["compile", "--placement", "linear", "--spec", "s.json"], "--placement and --spec both say"),
        (["compile", "--text-columns", "a,b,c"], "--text-columns: at most two"),
        (["compile", "--target", "openvino", "--triton-backend", "tensorrt"], "--triton-backend: tensorrt serves"),
    ],
)
def test_usage_errors(qdq: Qdq, tmp_path: Path, monkeypatch: Any, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    ran = qdq(*arguments)
    assert ran.code == 2
    assert ran.out == ""
    assert message in ran.err
    assert ran.err.startswith("qdq: ")
    assert ran.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_no_message_names_the_function_that_reads_a_value() -> None:
    """Whatever the command and the option: "invalid _counts value" told a user nothing."""
    _, commands = build_parser()
    checked = 0
    for command in commands.values():
        for action in command._actions:
            if action.type in (None, str, names):
                continue
            with pytest.raises(ConfigError, match=r"^--[a-z-]+: expected .*, such as .*, found '\?'"):
                command.parse_args([action.option_strings[0], "?"])
            checked += 1
    assert checked > 100


def test_every_enumerated_option_names_the_nearest_value() -> None:
    """An option added with a fixed set of values must join the table above."""
    enumerated = {"target", "task", "mode", "placement", "calibrator", "precision_hint", "body", "triton_backend"}
    enumerated |= {"weight_quantize_type", "activation_quantize_type", "round_type", "hardware_compatibility"}
    enumerated |= {"input_dtype", "packing", "batch_form", "product_codes"}
    strings = {field.name for field in fields(CompileOptions) if "str" in str(field.type)} - {"algo_list"}
    free = {
        "model",
        "model_class",
        "calibration",
        "eval_data",
        "text_columns",
        "label_column",
        "header",
        "labels",
        "spec",
        "out",
        "timing_cache",
    }
    assert strings - enumerated == free
    for name in enumerated:
        with pytest.raises(ConfigError, match=r"unknown value 'nonsense'; .*valid: "):
            CompileOptions(**{name: "nonsense"}).validate()
    with pytest.raises(ConfigError, match=r"unknown value 'nonsense'; .*valid: "):
        CompileOptions(algo_list=("mse", "nonsense")).validate()


# The edge


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(28, "No space left on device", "/x/y"), "/x/y: No space left on device; free space"),
        (MemoryError(), "out of memory; give a smaller --batch"),
        (ZeroDivisionError("division by zero"), "internal error, ZeroDivisionError: division by zero; please report"),
    ],
)
def test_every_other_error_is_one_line_too(qdq: Qdq, monkeypatch: Any, error: Exception, message: str) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr("qdq.pipeline.compile.compile_model", fail)
    monkeypatch.delenv("QDQ_TRACEBACK", raising=False)
    ran = qdq("compile")
    assert ran.code == 1
    assert ran.err.startswith(f"qdq: {message}")
    assert ran.err.count("\n") == 1
    monkeypatch.setenv("QDQ_TRACEBACK", "1")
    with pytest.raises(type(error)):
        qdq("compile")


def test_a_closed_pipe_is_no_error_message() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        ran = subprocess.run(
            [sys.executable, "-m", "qdq.cli.main", "compile", "--help"], stdout=pipe, stderr=subprocess.PIPE, cwd=ROOT
        )
    assert b"Traceback" not in ran.stderr
