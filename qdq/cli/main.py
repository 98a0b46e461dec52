"""The `qdq` command: runs what was asked for and prints the result; every error is one message and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qdq.base.interrupt import Interrupts
from qdq.errors import ConfigError, QdqError, Unavailable

DONE, FAILED, USAGE, AS_FAR_AS_POSSIBLE, INTERRUPTED = 0, 1, 2, 3, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default this process's own; returns the exit code."""
    interrupts = Interrupts()
    code = INTERRUPTED
    try:
        interrupts.start()
        code = _guarded(list(sys.argv[1:] if arguments is None else arguments), interrupts)
    except KeyboardInterrupt:  # another one while the first was being reported
        pass
    finally:
        interrupts.over = True
        interrupts.ignore() if arguments is None else interrupts.restore()
    return code


def _guarded(arguments: list[str], interrupts: Interrupts) -> int:
    """Run a command; every error becomes one message and an exit code."""
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        return _interrupted(interrupts)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the exit flush does not raise again
        return FAILED
    except Exception as error:  # the edge: a bug still ends in one message; the traceback is there on request
        if interrupts.received:
            return _interrupted(interrupts)
        if os.environ.get("QDQ_TRACEBACK"):
            raise
        message, code = _explain(error)
        _complain(message)
        return code


def _interrupted(interrupts: Interrupts) -> int:
    interrupts.over = True
    _complain("interrupted; whole files were kept, run again to continue")
    return INTERRUPTED


def _explain(error: Exception) -> tuple[str, int]:
    if isinstance(error, QdqError):
        return str(error), _code(error)
    if isinstance(error, MemoryError):
        return "out of memory; give a smaller --batch (BATCH=), --sequence (SEQ=) or --samples", FAILED
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; free space, or check the rights of the folders in use", FAILED
    name = type(error).__name__
    return (
        f"internal error, {name}: {error}; please report it with the output of the same command under QDQ_TRACEBACK=1",
        FAILED,
    )


def _code(error: QdqError) -> int:
    if isinstance(error, ConfigError):
        return USAGE
    return AS_FAR_AS_POSSIBLE if isinstance(error, Unavailable) else FAILED


def _complain(message: str) -> None:
    text = f"qdq: {message}"
    if sys.stderr.isatty():
        from qdq.base.screen import wrap

        text = wrap(text, 2)
    print(text, file=sys.stderr)


def _run(arguments: list[str]) -> int:
    from qdq.cli.arguments import FILE_COMMANDS, parse  # here, where Ctrl-C is handled already
    from qdq.cli.arguments_study import STUDY_COMMANDS
    from qdq.pipeline.options import PLAN_OPTIONS

    command, typed, help_text = parse(arguments)
    if command is None:
        print(help_text, end="")
        return DONE
    if command in FILE_COMMANDS:
        return _file_command(command, typed)
    as_json = typed.pop("json")
    if command == "doctor":
        return _doctor(as_json)
    if command in STUDY_COMMANDS:
        return _study(command, typed, as_json)
    if typed.keys() & PLAN_OPTIONS:
        return _bench_plans(typed, as_json)
    return _compile(command, typed, as_json)


def _file_command(command: str, typed: Mapping[str, Any]) -> int:
    from qdq.cli.file_commands import run_file_command

    text, code = run_file_command(command, typed)
    print(text, end="" if text.endswith("\n") else "\n")
    return code


def _bench_plans(typed: Mapping[str, Any], as_json: bool) -> int:
    from qdq.base.screen import Screen, logged_to
    from qdq.cli.plans import bench_engines
    from qdq.pipeline.options import PLAN_OPTIONS

    if "engine" not in typed:
        option = f"--{next(name for name in typed if name in PLAN_OPTIONS).replace('_', '-')}"
        raise ConfigError(f"{option}: is about plans on a GPU; name one with --engine, or leave it out")
    screen = Screen()
    with logged_to(screen):
        text, code = bench_engines(typed, as_json, screen)
    print(text, end="")
    return code


def _doctor(as_json: bool) -> int:
    from engines.doctor import doctor, render
    from qdq.base.artifacts import to_json

    report = doctor(Path())
    print(to_json(report) if as_json else render(report), end="")
    return DONE


def _compile(command: str, typed: Mapping[str, Any], as_json: bool) -> int:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from qdq.base.artifacts import to_json
    from qdq.base.screen import Screen, logged_to
    from qdq.calibrate.algorithms import spelled_today
    from qdq.pipeline.compile import compile_model, run_stage
    from qdq.pipeline.options import CompileOptions

    screen = Screen()
    with logged_to(screen):
        if "calibrator" in typed:
            typed = {**typed, "calibrator": spelled_today(typed["calibrator"])}
        if command == "compile":
            outcome = compile_model(CompileOptions(**typed), screen)
        else:
            outcome = run_stage(command, typed, screen)
    if as_json:
        print(to_json(outcome.as_json()), end="")
    else:
        _print_outcome(command, outcome)
    return outcome.exit_code


def _study(command: str, typed: Mapping[str, Any], as_json: bool) -> int:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from qdq.base.screen import Screen, logged_to
    from qdq.cli.study import run_study

    screen = Screen()
    with logged_to(screen):
        text, code = run_study(command, typed, screen, as_json)
    print(text, end="")
    return code


def _print_outcome(command: str, outcome: Any) -> None:
    """Print results and artifact paths on standard output."""
    from engines.bench import render_table
    from engines.compare import relate
    from qdq.pipeline.outcome import int8_text

    reports = outcome.as_json()
    if command in ("compile", "build") and reports["build"]:
        print(f"\n{int8_text(reports['build'])}", end="")
    if command in ("compile", "verify") and reports["accuracy"]:
        print(f"\n{relate(reports['accuracy'])}", end="")
    if command in ("compile", "bench") and reports["benchmark"]:
        print(f"\n{render_table(reports['benchmark'])}", end="")
    if command == "shapes":
        from qdq.base.artifacts import read_json
        from qdq.pipeline.stages.shapes import render_shapes

        print(f"\n{render_shapes(read_json(Path(outcome.out) / outcome.target / 'shapes.json'))}", end="")
    print("\n" + "\n".join(outcome.artifacts))


if __name__ == "__main__":
    sys.exit(main())
