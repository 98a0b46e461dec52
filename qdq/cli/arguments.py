"""Grammar and help of the command line, 80 columns wide; `qdq.pipeline.options` declares the options of a compile."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, NoReturn

from qdq.auto.search.settings import SearchSettings
from qdq.base.alike import alike
from qdq.base.edge import WIDTH, Parser
from qdq.base.option import flag, help_of
from qdq.base.versions import __version__
from qdq.cli.auto import AutoOptions
from qdq.cli.evaluate import EvaluateOptions
from qdq.cli.explain import ExplainOptions
from qdq.cli.extract import ExtractOptions
from qdq.cli.file_commands import FILE_COMMANDS
from qdq.cli.load import LoadOptions
from qdq.cli.plans import PlanOptions
from qdq.cli.query import QueryOptions
from qdq.cli.report import ReportOptions
from qdq.cli.sensitivity import SensitivityOptions
from qdq.cli.serve import ServeOptions
from qdq.errors import ConfigError
from qdq.pipeline.options import GROUPS, CompileOptions

COMMANDS = {
    "compile": "all stages: checkpoint to measured engine and Triton repository",
    "inject": "stage 2: decide what is quantized (placement.json)",
    "calibrate": "stages 1 to 3: load, inject, calibrate (calibration.json, checkpoint/)",
    "export": "stage 4: model.qdq.onnx and model.fp32.onnx from checkpoint/",
    "lower": "stage 5: TARGET/model.onnx from model.qdq.onnx",
    "variants": "FP16 and FP32 builds for TensorRT, to compare INT8 with",
    "build": "stage 6: the engine from TARGET/model.onnx (build.json)",
    "verify": "stage 7: the engine against FP32 (accuracy.json)",
    "bench": "stage 8: latency of the engine and FP32 baselines (benchmark.json), or of plans",
    "shapes": "latency over batches and sequence lengths, padding waste (shapes.json)",
    "deploy": "stage 9: the Triton model repository",
    "report": "stage 10: report.html of a work directory, or two of them side by side",
    "serve": "start a real Triton server on what was deployed",
    "query": "ask a served model: text in, answers out, over HTTP or gRPC",
    "load": "a served model under load: throughput, response times, wrong answers",
    "explain": "everything known about a layer or point: state, reason, scale, kernels",
    "doctor": "what this machine can build, run and benchmark",
    "check": "find what TensorRT refuses or runs slowly in any ONNX file with Q/DQ",
    "estimate": "what a lowered graph would take on an NVIDIA device (an estimate)",
    "profile": "where a CPU engine's time goes, layer by layer",
    "inspect": "a built plan's layers against what the graph should become",
    "auto": "compress by one YAML file, or search for the fastest engine within a drop",
    "evaluate": "task metrics of models, checkpoints and engines on labelled data",
    "extract": "what a schema names, out of texts, by a UIE model or engine",
    "sensitivity": "which points cost accuracy: each alone, and all without each",
}

# Options of the commands that need no work directory; the others take CompileOptions, and doctor takes none.
OWN_OPTIONS: dict[str, type[Any]] = {
    **{name: options for name, (options, _) in FILE_COMMANDS.items()},
    "explain": ExplainOptions,
    "query": QueryOptions,
    "report": ReportOptions,
    "load": LoadOptions,
    "auto": AutoOptions,
    "evaluate": EvaluateOptions,
    "extract": ExtractOptions,
    "sensitivity": SensitivityOptions,
    "serve": ServeOptions,
}

ABOUT_PLANS = (
    "With --engine these plans are timed, not the engine of a work directory. Of the options above only --batch, "
    "--sequence, --out, --streams (CUDA streams launching at once, default: 1) and those of model and text count then "
    "(default: random token ids)."
)

HELP_ALL = "--help-all"

# Commands and options -> what other tools call them.
COMMANDS_ELSEWHERE = {
    "compile": ("quantize", "quantise", "convert", "optimize", "optimise", "run"),
    "check": ("lint", "validate"),
    "verify": ("test", "validate"),
    "evaluate": ("test", "score"),
    "bench": ("time",),
    "query": ("infer", "predict", "ask"),
    "auto": ("compress",),
    "explain": ("why", "show"),
    "doctor": ("env", "info"),
}
OPTIONS_ELSEWHERE = {
    "model": ("model-name-or-path", "model-dir", "model-path", "checkpoint", "pretrained"),
    "sequence": ("max-length", "max-len", "max-seq-length", "max-seq-len"),
    "batch": ("batch-size", "max-batch-size", "bs"),
    "calibration": ("data", "dataset", "train", "train-file", "train-data"),
    "data": ("dataset",),
    "eval-data": ("dev", "dev-file", "test", "test-file", "validation-file"),
    "samples": ("num-calib-samples", "calib-size"),
    "target": ("backend", "runtime", "engine", "provider", "device"),
    "device": ("gpu",),
    "sm": ("gpu",),
    "out": ("dir", "work-dir", "workdir", "folder", "output", "output-dir"),
    "output": ("dir", "folder", "out", "output-dir"),
}

FIRST_STEPS = """\
Checkpoint in, measured INT8 engine and Triton model repository out.

  qdq compile --model DIR --calibration FILE --eval-data FILE
                    make the INT8 engine for this machine, check it, time it
  qdq serve DIR     serve it on a Triton server; qdq query asks it
  qdq evaluate WHAT --data FILE
                    score models, checkpoints and engines on labelled data
  qdq explain NAME  why a layer or point is INT8, or why it is not
  qdq check FILE    find what TensorRT refuses or runs slowly in an ONNX file

Nothing to hand? 'qdq compile' alone takes a small encoder and text that are
installed with it. 'qdq --help' lists every command, 'qdq compile --help' the
options most people use.
"""

EPILOG = """\
exit codes: 0 done, 1 failed, 2 usage, 3 done as far as this machine can,
130 interrupted

Each stage is also a command of its own. It starts from the previous stage's
files and takes every option it is not given from the earlier run:
  qdq compile --model my-bert --target openvino
  qdq bench --model my-bert        more samples than inside compile, for p99
  qdq build --out build/my-bert --target openvino --threads 1
"""


class Commands(Parser):
    """The parser of `qdq` itself, which knows its commands."""

    def error(self, message: str) -> NoReturn:
        """As `Parser.error`; a command that does not exist is answered with the nearest one."""
        if message.startswith("argument COMMAND: invalid choice"):
            word = message.split("'")[1]
            found = [f"'{name}'" for name in alike(word, COMMANDS, COMMANDS_ELSEWHERE)]
            hint = f"did you mean {' or '.join(found)}? " if found else ""
            raise ConfigError(f"unknown command '{word}'; {hint}'qdq --help' lists all")
        super().error(message)


def parse(arguments: Sequence[str]) -> tuple[str | None, dict[str, Any], str]:
    """Return command, typed options by field name, and the text that answers no command. Raises ConfigError."""
    parser, commands = build_parser(everything=HELP_ALL in arguments)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:2], "--help"]
    elif arguments[:1] == ["auto"]:  # PaddleSlim's documents write --config_path
        arguments = [_dashed(word) for word in arguments]
    parsed, extra = parser.parse_known_args(arguments)
    typed: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in vars(parsed).items()
    }
    command: str | None = typed.pop("command")
    if (field := _takes_any(command)) and not any(word.startswith("-") for word in extra):
        typed |= (
            {field: (*typed.get(field, ()), *extra)} if extra else {}
        )  # words behind options, which argparse leaves
    elif extra:
        commands.get(str(command), parser).unknown(extra)
    return command, typed, FIRST_STEPS


def _dashed(word: str) -> str:
    """An option with the dashes of this command line where it was typed with underscores."""
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value if word.startswith("--") else word


def _takes_any(command: str | None) -> str | None:
    """Name of the field that takes any number of words without an option's name."""
    for declared in fields(OWN_OPTIONS[command]) if command in OWN_OPTIONS else ():
        if declared.metadata.get("positional") and str(declared.type).startswith("tuple"):
            return declared.name
    return None


def build_parser(everything: bool = True) -> tuple[Commands, dict[str, Parser]]:
    """Return the parser of the whole command line, and that of each command.

    Where most people use few of a command's options, their help has these alone, unless `everything` is asked for.
    """
    parser = Commands(
        prog="qdq",
        description="Checkpoint in, measured INT8 engine and Triton model repository out.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"qdq {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=Parser)
    for name, text in COMMANDS.items():
        staged = name not in OWN_OPTIONS and name != "doctor"
        # Only what is typed is set, so that a stage can tell it from a default.
        command = commands.add_parser(
            name,
            help=text,
            description=_description(text, recalls=staged and name != "compile"),
            epilog=_epilog(everything) if staged else None,
            argument_default=argparse.SUPPRESS,
        )
        command.elsewhere = OPTIONS_ELSEWHERE
        if staged:
            command.first = "--name value, such as --model my-bert"
            command.add_argument(HELP_ALL, action="help", help="show every option and exit")
            command.list_all = HELP_ALL
        if name in OWN_OPTIONS:
            add_declared(command, OWN_OPTIONS[name])
        for group in GROUPS if staged else ():
            add_declared(command.add_argument_group(group), CompileOptions, group, everything)
        if name == "auto":
            add_declared(command.add_argument_group("search"), SearchSettings, needed=False)
        if name == "bench":
            about = textwrap.fill(ABOUT_PLANS, WIDTH - 2)
            add_declared(command.add_argument_group("TensorRT plans on a GPU", about), PlanOptions)
        if name not in ("check", "serve"):  # it has --format; it prints lines as they come
            command.add_argument("--json", action="store_true", default=False, help="print one JSON document")
    return parser, commands.choices


def _description(text: str, recalls: bool) -> str:
    sentence = text[0].upper() + text[1:] + "."
    recall = "Options that are not given are those of the earlier run in the same work directory."
    return f"{sentence}\n{textwrap.fill(recall, WIDTH)}" if recalls else sentence


def _epilog(everything: bool) -> str:
    """Text below the options: the way to the others, or what only their reader asks about."""
    if not everything:
        return f"{HELP_ALL} shows the other options: calibration, placement, engine, server.\n"
    from qdq.text.columns import DETECTION_RULES

    return f"where texts and columns come from:\n{textwrap.fill(' '.join(DETECTION_RULES.split()), WIDTH)}\n"


def names(text: str) -> tuple[str, ...]:
    """Read a comma-separated list."""
    return tuple(name for name in text.split(",") if name)


def expecting(expected: str, read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Wrap `read` so that a ValueError becomes a message that says what is expected."""

    def value(text: str) -> Any:
        try:
            return read(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {expected}, found '{text}'") from None

    return value


# Type of an option, as its declaration writes it -> how to read it.
VALUES: Mapping[str, Callable[[str], Any]] = {
    "str": str,
    "int": expecting("a whole number, such as 4", int),
    "float": expecting("a number, such as 0.5", float),
    "tuple[str, ...]": names,
    "tuple[int, ...]": expecting("whole numbers, such as 32,64,128", lambda text: tuple(map(int, names(text)))),
    "tuple[int | None, ...]": expecting(
        "whole numbers or all, such as 1,16,all",
        lambda text: tuple(None if part == "all" else int(part) for part in names(text)),
    ),
}


def add_declared(
    parser: argparse._ActionsContainer,
    options: type[Any],
    group: str = "",
    everything: bool = True,
    needed: bool = True,
) -> None:
    """Add the options of one group, as their declarations in the dataclass `options` say.

    Without `everything` the help shows common ones only; all are understood. `needed`: those without a default have to
    be typed.
    """
    for declared in fields(options):
        if declared.metadata["group"] == group:
            name = declared.name if declared.metadata.get("positional") else flag(declared.name)
            shown = help_of(declared) if everything or declared.metadata.get("common") else argparse.SUPPRESS
            form = _form(declared)
            parser.add_argument(name, help=shown, **(form if needed else form | {"required": False}))


def _form(declared: Field[Any]) -> dict[str, Any]:
    """Translate type and placeholder of a declaration to argparse."""
    kind = str(declared.type).removesuffix(" | None")
    if kind == "bool":
        return {"action": argparse.BooleanOptionalAction}
    metavar = declared.metadata["metavar"] or ("N" if kind == "int" else "NAME")
    if declared.metadata.get("positional"):
        given = declared.default is MISSING
        words = ("+" if given else "*") if kind.startswith("tuple") else (None if given else "?")
        return {"nargs": words, "metavar": metavar}
    if declared.metadata.get("repeated"):
        return {"action": "append", "metavar": metavar}
    read = declared.metadata.get("read") or VALUES[kind]
    return {"type": read, "metavar": metavar, "required": declared.default is MISSING}
