"""The `qdq` command: parses, hands over, prints the result, and turns every QdqError into one message and exit code."""

from __future__ import annotations

import argparse
import dataclasses
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from qdq import __version__
from qdq.config import nearest
from qdq.errors import ConfigError, QdqError, Unavailable
from qdq.options import DEFAULT_PLACEMENT, PLACEMENT_NAMES, TARGETS, CompileOptions

DONE, FAILED, USAGE, AS_FAR_AS_POSSIBLE, INTERRUPTED = 0, 1, 2, 3, 130

STAGE_HELP = {
    "inject": "stage 2: decide the placement of a model (placement.json)",
    "calibrate": "stages 1-3: load, inject, calibrate (calibration.json, checkpoint/)",
    "export": "stage 4: write model.qdq.onnx and model.fp32.onnx from checkpoint/",
    "lower": "stage 5: write TARGET/model.onnx from model.qdq.onnx",
    "build": "stage 6: build the engine from TARGET/model.onnx (build.json)",
    "verify": "stage 7: compare the engine with FP32 (accuracy.json)",
    "bench": "stage 8: time the engine and the FP32 baselines (benchmark.json)",
    "deploy": "stage 9: write the Triton model repository",
}

EPILOG = """\
exit codes: 0 done, 1 failed, 2 usage, 3 done as far as this machine can

Every stage is also a command of its own that starts from the previous stage's
files: qdq lower --out build/all-MiniLM-L6-v2 --target onnxruntime
"""


class Parser(argparse.ArgumentParser):
    """argparse with the project's error form: one line, the nearest valid word, exit code 2."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage; `main` prints the one message."""
        if message.startswith("argument COMMAND: invalid choice"):
            word = message.split("'")[1]
            raise ConfigError(f"unknown command '{word}'; {nearest(word, (*STAGE_HELP, 'compile', 'doctor'))}")
        raise ConfigError(f"{message}; see {self.prog} --help")

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Raise for words no option or command takes."""
        word = words[0].partition("=")[0]
        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        if word.startswith("-"):
            raise ConfigError(f"unknown option {word}; {nearest(word, options)}")
        raise ConfigError(f"unexpected argument '{word}'; options are written --name value, see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except ConfigError as error:
        return _fail(error, USAGE)
    except Unavailable as error:
        return _fail(error, AS_FAR_AS_POSSIBLE)
    except QdqError as error:
        return _fail(error, FAILED)
    except KeyboardInterrupt:
        print("qdq: interrupted; whole files were kept, run again to continue", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit flush does not raise again
        return FAILED
    except Exception as error:  # the edge: a bug still ends in one message; the traceback is there on request
        if os.environ.get("QDQ_TRACEBACK"):
            raise
        print(
            f"qdq: internal error, {type(error).__name__}: {error}\n"
            "please report it with the output of the same command under QDQ_TRACEBACK=1",
            file=sys.stderr,
        )
        return FAILED


def _fail(error: QdqError, code: int) -> int:
    if os.environ.get("QDQ_TRACEBACK"):
        raise error
    print(f"qdq: {error}", file=sys.stderr)
    return code


def _run(arguments: list[str]) -> int:
    parser, commands = build_parser()
    parsed, extra = parser.parse_known_args(arguments)
    if extra:
        commands.get(parsed.command or "", parser).unknown(extra)
    if parsed.command is None:
        parser.print_help()
        return DONE
    signal.signal(signal.SIGTERM, _terminate)
    if parsed.command == "doctor":
        return _doctor(parsed.json)
    options = options_of(parsed)
    options.validate()
    return _compile(parsed.command, options, parsed.json)


def _terminate(number: int, frame: Any) -> NoReturn:
    """SIGTERM ends a run as Ctrl-C does, through every cleanup."""
    raise KeyboardInterrupt


def _doctor(as_json: bool) -> int:
    from engines.doctor import doctor, render
    from qdq.artifacts import to_json

    report = doctor(Path())
    print(to_json(report) if as_json else render(report), end="")
    return DONE


def _compile(command: str, options: CompileOptions, as_json: bool) -> int:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from qdq.artifacts import to_json
    from qdq.pipeline import compile_model, run_stage
    from qdq.screen import Screen

    screen = Screen()
    outcome = compile_model(options, screen) if command == "compile" else run_stage(command, options, screen)
    if as_json:
        print(to_json(outcome.as_json()), end="")
    else:
        _print_outcome(command, outcome)
    return outcome.exit_code


def _print_outcome(command: str, outcome: Any) -> None:
    """Results and artifact paths, on standard output."""
    from engines.bench import render_table
    from engines.compare import relate

    reports = outcome.as_json()
    if command in ("compile", "build") and reports["build"]:
        print(f"\n{int8_text(reports['build'])}", end="")
    if command in ("compile", "verify") and reports["accuracy"]:
        print(f"\n{relate(reports['accuracy'])}", end="")
    if command in ("compile", "bench") and reports["benchmark"]:
        print(f"\n{render_table(reports['benchmark'])}", end="")
    print("\n" + "\n".join(outcome.artifacts))


def int8_text(build: dict[str, Any]) -> str:
    """What runs in INT8 and what does not, from build.json, at most 80 columns where names allow."""
    int8 = build["int8"]
    (linear, linears), (matmul, matmuls) = int8["encoder_linear"], int8["attention_matmul"]
    lines = [f"{linear} of {linears} encoder linears and {matmul} of {matmuls} attention matmuls run in INT8"]
    if int8["inferred"]:
        lines.append(f"  {len(int8['inferred'])} of them concluded from a fused block that reports one precision")
    reasons: dict[str, list[str]] = {}
    for item in int8["not_int8"]:
        reasons.setdefault(item["reason"], []).append(item["name"])
    for reason, names in reasons.items():
        lines.append(f"  {len(names)} not: {reason}")
        lines.append(f"    {names[0]}" + (f" and {len(names) - 1} more, see build.json" if len(names) > 1 else ""))
    return "\n".join(lines) + "\n"


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """The whole command line, and the parser of each command."""
    parser = Parser(
        prog="qdq",
        description="Checkpoint in, measured INT8 engine and Triton model repository out.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"qdq {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    _add_command(commands, "compile", "all stages: checkpoint to measured engine and Triton repository")
    for name, text in STAGE_HELP.items():
        _add_command(commands, name, text)
    doctor = commands.add_parser("doctor", help="what this machine can build, run and benchmark", allow_abbrev=False)
    doctor.add_argument("--json", action="store_true", help="print JSON")
    return parser, commands.choices


def _add_command(commands: Any, name: str, text: str) -> None:
    parser = commands.add_parser(
        name,
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog=_column_rules(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_options(parser)
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON on standard output")


def _column_rules() -> str:
    from qdq.text_columns import DETECTION_RULES

    return f"how text columns are found when they are not named:\n{DETECTION_RULES}"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Every option of CompileOptions; defaults live there and nowhere else."""
    d = CompileOptions()
    add = parser.add_argument
    add("--model", metavar="ID", help="hub id, folder or checkpoint/ (default: the bundled all-MiniLM-L6-v2)")
    add("--task", metavar="NAME", help="Hugging Face task name (default: from the checkpoint's architecture)")
    add("--target", metavar="NAME", default=d.target, help=f"{', '.join(TARGETS)} (default: auto: tensorrt with a GPU)")
    add("--calibration", metavar="DATA", help="text file, folder or datasets:NAME (default: bundled English text)")
    add("--eval-data", metavar="DATA", help="text to compare with FP32 (default: what calibration left over)")
    add("--text-columns", metavar="A,B", type=_names, default=(), help="one text column, or two (default: detected)")
    add("--label-column", metavar="NAME", help="label column, gives the task metric (default: detected)")
    placements = ", ".join(PLACEMENT_NAMES)
    cpu, gpu = DEFAULT_PLACEMENT["openvino"], DEFAULT_PLACEMENT["tensorrt"]
    add("--placement", metavar="NAME", help=f"{placements} (default: {cpu} on CPU, {gpu} for TensorRT)")
    add("--spec", metavar="FILE", help="QuantSpec as JSON or YAML, instead of --placement")
    add("--calibrator", metavar="NAME", default=d.calibrator, help=f"max or percentile (default: {d.calibrator})")
    add("--percentile", metavar="P", type=float, help="(default: 99.999, or 99.99 with quantized residual adds)")
    add("--samples", metavar="N", type=int, default=d.samples, help=f"calibration texts (default: {d.samples})")
    add("--eval-samples", metavar="N", type=int, default=d.eval_samples, help=f"(default: at most {d.eval_samples})")
    add("--batch", metavar="N", type=int, default=d.batch, help=f"benchmark batch (default: {d.batch})")
    add("--sequence", metavar="N", type=int, default=d.sequence, help=f"benchmark sequence (default: {d.sequence})")
    add("--threads", metavar="N", type=int, default=d.threads, help="inference threads (default: all cores)")
    add("--precision-hint", metavar="P", default=d.precision_hint, help="OpenVINO: f32, bf16, f16 (default: f32)")
    add("--triton-backend", metavar="NAME", help="onnxruntime or openvino (default: onnxruntime on CPU)")
    add("--bench-seconds", metavar="S", type=float, default=d.bench_seconds, help="benchmark budget inside compile")
    add("--out", metavar="DIR", help="work directory (default: build/<model name>)")
    add("--allow-pickle", action="store_true", help="read pytorch_model.bin; loading a pickle can run code")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)


def options_of(parsed: argparse.Namespace) -> CompileOptions:
    """CompileOptions from parsed arguments."""
    names = {field.name for field in dataclasses.fields(CompileOptions)}
    return CompileOptions(**{name: value for name, value in vars(parsed).items() if name in names})


if __name__ == "__main__":
    sys.exit(main())
