"""Grammar and help texts of the command line, 80 columns wide; `qdq.pipeline.options` says what an option means."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from qdq.base.config import nearest
from qdq.base.versions import __version__
from qdq.calibrate.algorithms import ALGORITHMS, ALIASES
from qdq.calibrate.treatments.settings import ACTIVATION_TYPES, ROUND_TYPES, WEIGHT_TYPES
from qdq.cli.arguments_study import STUDY_COMMANDS, add_study_options
from qdq.errors import ConfigError
from qdq.load.kinds import TASKS
from qdq.pipeline.options import (
    BODIES,
    DEFAULT_PLACEMENT,
    HARDWARE,
    INPUT_TYPES,
    MODES,
    PLACEMENT_NAMES,
    PRECISION_HINTS,
    SEARCH,
    TARGETS,
    CompileOptions,
)

WIDTH = 80

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
    "doctor": "what this machine can build, run and benchmark",
}

# Commands on one file; the others take CompileOptions and a work directory.
FILE_COMMANDS = {
    "check": "find what TensorRT refuses or runs slowly in any ONNX file with Q/DQ",
    "estimate": "what a lowered graph would take on an NVIDIA device (an estimate)",
    "profile": "where a CPU engine's time goes, layer by layer",
    "inspect": "a built plan's layers against what the graph should become",
}

EPILOG = """\
exit codes: 0 done, 1 failed, 2 usage, 3 done as far as this machine can,
130 interrupted

Each stage is also a command of its own. It starts from the previous stage's
files and takes every option it is not given from the earlier run:
  qdq compile --model my-bert --target openvino
  qdq bench --model my-bert        more samples than inside compile, for p99
  qdq build --out build/my-bert --target openvino --threads 1
"""


class Format(argparse.RawDescriptionHelpFormatter):
    """Help at the same width everywhere, with room for the longest option."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, width=WIDTH, max_help_position=24)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """argparse with the project's error form: one message, the nearest valid word, exit code 2."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=Format, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing usage; `main` prints the one message."""
        if message.startswith("argument COMMAND: invalid choice"):
            word = message.split("'")[1]
            raise ConfigError(f"unknown command '{word}'; {nearest(word, COMMANDS | FILE_COMMANDS | STUDY_COMMANDS)}")
        raise ConfigError(f"{message.removeprefix('argument ')}; see '{self.prog} --help'")

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Raise for words no option or command takes."""
        word = words[0].partition("=")[0]
        options = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        if word.startswith("-"):
            raise ConfigError(f"unknown option {word}; {nearest(word, options)}")
        raise ConfigError(f"unexpected argument '{word}'; options are written --name value, see '{self.prog} --help'")


def parse(arguments: Sequence[str]) -> tuple[str | None, dict[str, Any], str]:
    """(command, typed options by field name, help text for when there is no command). Raises ConfigError."""
    parser, commands = build_parser()
    parsed, extra = parser.parse_known_args(arguments)
    typed = vars(parsed)
    command = typed.pop("command")
    if extra:
        commands.get(command, parser).unknown(extra)
    return command, typed, parser.format_help()


def build_parser() -> tuple[Parser, dict[str, Parser]]:
    """The whole command line, and the parser of each command."""
    parser = Parser(
        prog="qdq",
        description="Checkpoint in, measured INT8 engine and Triton model repository out.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"qdq {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands", parser_class=Parser)
    for name, text in COMMANDS.items():
        if name == "doctor":
            command = commands.add_parser(name, help=text)
        else:
            # Only what is typed is set, so that a stage can tell it from a default.
            command = commands.add_parser(
                name,
                help=text,
                description=_description(name, text),
                epilog=_epilog(),
                argument_default=argparse.SUPPRESS,
            )
            add_options(command)
            if name == "bench":
                _plan_options(command)
        command.add_argument("--json", action="store_true", default=False, help="print one JSON document")
    for name, text in FILE_COMMANDS.items():
        _add_file_options(name, commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}."))
    for name, text in STUDY_COMMANDS.items():
        sentence = f"{text[0].upper()}{text[1:]}."
        add_study_options(
            name, commands.add_parser(name, help=text, description=sentence, argument_default=argparse.SUPPRESS)
        )
    return parser, commands.choices


def _add_file_options(name: str, parser: argparse.ArgumentParser) -> None:
    """Options of a command on one file."""
    add = parser.add_argument
    if name == "profile":
        _add_profile_options(parser)
        return
    add("file", metavar="FILE", help="layer_info.json of the plan" if name == "inspect" else "ONNX file")
    add("--sequence", metavar="N", type=int, default=128, help="sequence length (default: 128)")
    if name == "check":
        add("--target", metavar="NAME", default="trt11", help="trt10 or trt11 (default: trt11)")
        add("--format", metavar="NAME", default="text", help="text, json or sarif (default: text)")
        add("--strict", action="store_true", help="performance findings fail too (default: errors only)")
    if name == "estimate":
        add("--device", metavar="NAME", default="t4", help="t4, a100, a30, l4 or h200 (default: t4)")
        add("--batch", metavar="N", type=int, default=40, help="batch (default: 40)")
    else:
        add("--sm", metavar="N", type=int, default=75, help="compute capability, 75 to 100 (default: 75, a T4)")
    if name == "inspect":
        add("--model", metavar="ONNX", help="graph the plan was built from (default: model.onnx beside FILE)")
    if name != "check":
        add("--json", action="store_true", default=False, help="print one JSON document")


def _add_profile_options(parser: argparse.ArgumentParser) -> None:
    """`profile` takes several engines, so that they can be compared."""
    add = parser.add_argument
    add("file", metavar="[LABEL=]FILE", nargs="+", help="OpenVINO .xml or .onnx; several are shown side by side")
    add("--engine", metavar="NAME", help="runs .onnx files: onnxruntime or openvino (default: onnxruntime)")
    add("--batch", metavar="N", type=int, default=40, help="batch (default: 40)")
    add("--sequence", metavar="N", type=int, default=128, help="sequence length (default: 128)")
    add("--threads", metavar="N", type=int, default=0, help="inference threads (default: 0, which is all cores)")
    add(
        "--precision-hint",
        metavar="P",
        default="f32",
        help=f"what OpenVINO computes outside INT8: {', '.join(PRECISION_HINTS)} (default: f32)",
    )
    add("--rounds", metavar="N", type=int, default=10, help="runs that count (default: 10)")
    add("--static", action="store_true", help="compile OpenVINO's engines for exactly this shape")
    add("--steps", action="store_true", help="the first FILE is model.qdq.onnx: profile it after every lowering pass")
    add("--output", metavar="DIR", help="folder for profile.json, layers.json and profile.png (default: not written)")
    add("--json", action="store_true", default=False, help="print one JSON document")


def _description(name: str, text: str) -> str:
    sentence = text[0].upper() + text[1:] + "."
    if name == "compile":
        return sentence
    recall = "Options that are not given are those of the earlier run in the same work directory."
    return f"{sentence}\n{textwrap.fill(recall, WIDTH)}"


def _epilog() -> str:
    from qdq.text.columns import DETECTION_RULES

    return f"where texts and columns come from:\n{textwrap.fill(' '.join(DETECTION_RULES.split()), WIDTH)}\n"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Every option of CompileOptions; the defaults themselves live there."""
    _model_options(parser)
    _text_options(parser)
    _quantization_options(parser)
    _ptq_options(parser)
    _engine_options(parser)
    _builder_options(parser)


def _model_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model").add_argument
    add(
        "--model",
        metavar="ID",
        help="hub id, folder, or checkpoint/ of an earlier run (default: the bundled all-MiniLM-L6-v2)",
    )
    add("--task", metavar="NAME", help=f"{', '.join(TASKS)} (default: from the checkpoint's architecture)")
    add(
        "--allow-pickle",
        action="store_true",
        help="read pytorch_model.bin; loading a pickle can run code (default: safetensors only)",
    )
    add("--out", metavar="DIR", help="work directory (default: build/<model name>)")


def _text_options(parser: argparse.ArgumentParser) -> None:
    d = CompileOptions()
    add = parser.add_argument_group("text").add_argument
    add("--calibration", metavar="DATA", help="file, folder or datasets:NAME (default: bundled English text)")
    add("--samples", metavar="N", type=int, help=f"calibration texts (default: {d.samples})")
    add(
        "--eval-data",
        metavar="DATA",
        help="text to compare with FP32 on and to time with (default: the rows behind "
        "the calibration rows, else bundled text)",
    )
    add("--eval-samples", metavar="N", type=int, help=f"most of these texts to use (default: {d.eval_samples})")
    add("--text-columns", metavar="A[,B]", type=_names, help="column of the text, and of its pair (default: detected)")
    add("--label-column", metavar="NAME", help="column of the label, for the task metric (default: detected)")


def _quantization_options(parser: argparse.ArgumentParser) -> None:
    d = CompileOptions()
    add = parser.add_argument_group("quantization").add_argument
    add(
        "--placement",
        metavar="NAME",
        help=f"{', '.join(PLACEMENT_NAMES)} (default: {DEFAULT_PLACEMENT})",
    )
    add("--search", action="store_true", help="with auto: try every unit on training rows (default: 20 s of checks)")
    add("--max-drop", metavar="P", type=float, help=f"points that --search may lose (default: {d.max_drop})")
    add("--spec", metavar="FILE", help="QuantSpec as JSON or YAML, instead of --placement (default: none)")
    add(
        "--embedding-tables",
        action="store_true",
        help="INT8 embedding tables too, one scale per row: a smaller file (default: what the placement says, float)",
    )
    add(
        "--calibrator",
        metavar="NAME",
        help=f"{SEARCH} (max, residual adds by the error of their sum), {', '.join(ALGORITHMS)}; as in PaddleNLP "
        f"{', '.join(ALIASES)} (default: {d.calibrator})",
    )
    add(
        "--percentile",
        metavar="P",
        type=float,
        help="of the percentile calibrator (default: 99.999, or 99.99 when residual adds are quantized)",
    )


def _ptq_options(parser: argparse.ArgumentParser) -> None:
    d = CompileOptions()
    add = parser.add_argument_group("post-training parameters (PaddleNLP's names) and treatments").add_argument
    add("--weight-quantize-type", metavar="T", help=f"{' or '.join(WEIGHT_TYPES)} (default: what the placement says)")
    add(
        "--activation-quantize-type",
        metavar="T",
        help=f"{', '.join(ACTIVATION_TYPES)} (default: {d.activation_quantize_type}, the algorithm's range)",
    )
    add("--moving-rate", metavar="R", type=float, help=f"of moving averages (default: {d.moving_rate:g})")
    add("--round-type", metavar="T", help=f"{', '.join(ROUND_TYPES)} (default: {d.round_type})")
    for name, text in (
        ("bias-correction", "absorb a linear's mean error in its bias"),
        ("value-centering", "move a constant per value channel out of attention, into the bias behind it"),
        ("equalization", "scale query against key and value against output channels"),
        ("smoothing", "divide outlier channels in front of linears where it pays"),
        ("residual-scaling", "divide outlier channels of residual operands by powers of two where it pays"),
        ("softmax-scale", "amax 1 for softmax outputs whatever the data"),
    ):
        add(f"--{name}", action=argparse.BooleanOptionalAction, help=f"{text} (default: on)")
    add(
        "--algo-list",
        metavar="A,B",
        type=_names,
        help="sweep: calibrators to try, such as percentile:99.9 (default: no sweep)",
    )
    batches = "sweep: numbers of batches; all is every sample (default: no sweep)"
    add("--batch-num-list", metavar="N,M", type=_counts, help=batches)
    add("--batch-size-list", metavar="N,M", type=_counts, help="sweep: samples in a batch (default: no sweep)")


def _engine_options(parser: argparse.ArgumentParser) -> None:
    d = CompileOptions()
    add = parser.add_argument_group("engine and benchmark").add_argument
    add(
        "--target",
        metavar="NAME",
        help=f"{', '.join(TARGETS)} (default: auto, which is tensorrt when a GPU and the "
        "tensorrt module are there, else openvino)",
    )
    add("--batch", metavar="N", type=int, help=f"benchmark batch, Triton's largest batch (default: {d.batch})")
    add("--sequence", metavar="N", type=int, help=f"benchmark sequence; longer texts are cut (default: {d.sequence})")
    add("--mode", metavar="NAME", help=f"{' or '.join(MODES)}: one request at a time, or several (default: {d.mode})")
    add("--threads", metavar="N", type=int, help="of a request (default: 0, all cores of a NUMA node; throughput: 1)")
    add(
        "--streams",
        metavar="N",
        type=int,
        help="requests at once in throughput mode (default: 0, as many as the cores have room for)",
    )
    add(
        "--precision-hint",
        metavar="P",
        help=f"what OpenVINO computes outside INT8: {', '.join(PRECISION_HINTS)} (default: {d.precision_hint})",
    )
    add("--body", metavar="T", help=f"TensorRT's float type outside INT8: {', '.join(BODIES)} (default: {d.body})")
    add("--input-dtype", metavar="T", help=f"CPU engines' inputs: {', '.join(INPUT_TYPES)} (default: {d.input_dtype})")
    add(
        "--bench-seconds",
        metavar="S",
        type=float,
        help=f"time budget of the benchmark inside compile (default: {d.bench_seconds:g})",
    )
    add(
        "--triton-backend",
        metavar="NAME",
        help="onnxruntime or openvino for CPU targets (default: onnxruntime), tensorrt for tensorrt",
    )
    add(
        "--buckets",
        metavar="N,M",
        type=_widths,
        help="lengths Triton serves as models of their own, such as 32,64,128 (default: one model for all)",
    )


def _builder_options(parser: argparse.ArgumentParser) -> None:
    """What docs/tensorrt.md, "Build options", explains."""
    d, switch = CompileOptions(), argparse.BooleanOptionalAction
    add = parser.add_argument_group("TensorRT builder").add_argument
    add("--workspace-gib", metavar="G", type=float, help=f"limit of a kernel's memory (default: {d.workspace_gib:g})")
    add("--optimization-level", metavar="N", type=int, help=f"0 to 5, fast to best (default: {d.optimization_level})")
    add("--timing-cache", metavar="FILE", help="kernel timings to start from (default: timing.cache of this target)")
    add("--version-compatible", action=switch, help="the plan loads in later TensorRT versions, too (default: off)")
    add("--hardware-compatibility", metavar="NAME", help=f"{', '.join(HARDWARE)} (default: {d.hardware_compatibility})")
    add("--refit", action=switch, help="replaceable weights; floating-point variants only (default: off)")
    add("--strip-weights", action=switch, help="plans without weights; floating-point variants only (default: off)")


def _plan_options(parser: argparse.ArgumentParser) -> None:
    """Options of `qdq bench --engine` (options.PLAN_OPTIONS); engines/bench_gpu/settings.py says what they mean."""
    text = (
        "With --engine these plans are timed, not the engine of a work directory. Of the options above only --batch, "
        "--sequence, --out, --streams (CUDA streams launching at once, default: 1) and those of model and text count "
        "then (default: random token ids)."
    )
    group = parser.add_argument_group("TensorRT plans on a GPU", textwrap.fill(text, WIDTH - 2))
    add, switch = group.add_argument, argparse.BooleanOptionalAction
    add(
        "--engine",
        metavar="[NAME=]PLAN",
        action="append",
        help="a plan, such as fp16=model.plan, or a work directory with all its plans; repeat it to compare several",
    )
    add("--warmup", metavar="N", type=int, help="launches of each plan before the measurement (default: 100)")
    add("--iterations", metavar="N", type=int, help="timed launches of each plan (default: 1000)")
    add("--in-flight", metavar="N", type=int, help="launches a stream holds: 1, or 2 as trtexec (default: 2)")
    add("--device", metavar="N", type=int, help="index of the GPU (default: 0)")
    add("--cuda-graph", action=switch, help="launch as one CUDA graph (default: on)")
    add("--spin-wait", action=switch, help="poll for the end of a launch (default: on)")
    add("--transfers", action=switch, help="time copies to and from the GPU, too (default: off)")


def _widths(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def _counts(text: str) -> tuple[int | None, ...]:
    return tuple(None if part == "all" else int(part) for part in text.split(",") if part)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name for name in text.split(",") if name)
