"""The `qdq` command: runs what was asked for and prints the result; every error is one message and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.edge import DONE, run_program

if TYPE_CHECKING:
    from qdq.base.screen import Screen
    from qdq.pipeline.outcome import Outcome


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, by default this process's own; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_program(lambda: _run(words), last=arguments is None)


def _run(arguments: list[str]) -> int:
    from qdq.cli.arguments import parse  # here, where Ctrl-C is handled already
    from qdq.cli.file_commands import FILE_COMMANDS, run_file_command

    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    command, typed, help_text = parse(arguments)
    as_json = typed.pop("json", False)
    if command == "serve":
        from qdq.cli.serve import ServeOptions, serve

        for line in serve(ServeOptions(**typed)):
            print(line, flush=True)
        return DONE
    if command is None:
        text, code = help_text, DONE
    elif command == "doctor":
        text, code = _doctor(as_json), DONE
    elif command == "explain":
        from qdq.cli.explain import ExplainOptions, explain

        text, code = explain(ExplainOptions(**typed), as_json)
    elif command == "report":
        from qdq.base.screen import Screen
        from qdq.cli.report import ReportOptions, report

        with Screen().stage(command, brief=True):
            text, code = report(ReportOptions(**typed)), DONE
    elif command in FILE_COMMANDS:
        text, code = run_file_command(command, typed, as_json)
    else:
        # These take long: a screen shows their progress and warnings.
        from qdq.base.screen import Screen, logged_to

        screen = Screen()
        with logged_to(screen):
            text, code = _work(command, typed, as_json, screen)
    print(text, end="" if text.endswith("\n") else "\n")
    return code


def _doctor(as_json: bool) -> str:
    from engines.doctor import doctor, render
    from qdq.base.artifacts import to_json
    from qdq.base.screen import Screen

    with Screen().stage("doctor", brief=True):
        report = doctor(Path())
    return to_json(report) if as_json else render(report)


def _work(command: str, typed: dict[str, Any], as_json: bool, screen: Screen) -> tuple[str, int]:
    """Run a command on a model; return the text for standard output and the exit code."""
    from qdq.base.artifacts import to_json
    from qdq.cli.plans import PLAN_OPTIONS, bench_engines
    from qdq.pipeline.options import CompileOptions

    # The commands beside the pipeline.
    if command == "evaluate":
        from qdq.cli.evaluate import EvaluateOptions, evaluate, render

        report = evaluate(EvaluateOptions(**typed), screen)
        return to_json(report) if as_json else render(report), DONE
    if command == "auto":
        from qdq.cli.auto import auto

        return auto(typed, as_json, screen), DONE
    if command == "extract":
        from qdq.cli.extract import ExtractOptions, extract

        return extract(ExtractOptions(**typed), screen), DONE
    if command == "sensitivity":
        from qdq.cli.sensitivity import SensitivityOptions, run

        return run(SensitivityOptions(**typed), as_json, screen), DONE
    if command == "query":
        from qdq.cli.query import QueryOptions, query

        return query(QueryOptions(**typed), as_json, screen)
    if command == "load":
        from qdq.cli.load import LoadOptions, load

        return load(LoadOptions(**typed), as_json, screen)
    if typed.keys() & PLAN_OPTIONS:
        return bench_engines(typed, as_json, screen)
    # The whole pipeline, or one stage of it.
    from qdq.calibrate.algorithms import spelled_today
    from qdq.pipeline.compile import compile_model, run_stage

    if "calibrator" in typed:
        typed["calibrator"] = spelled_today(typed["calibrator"])

    def proven(outcome: Outcome) -> None:
        """Print what the user waits for, before the rest is made of it."""
        if not as_json:
            print(_measured(command, outcome), end="", flush=True)

    if command == "compile":
        outcome = compile_model(CompileOptions(**typed), screen, proven)
    else:
        outcome = run_stage(command, typed, screen, proven)
    return to_json(outcome.as_json()) if as_json else _places(command, outcome), outcome.exit_code


def _measured(command: str, outcome: Outcome) -> str:
    """Return the results as text: coverage, accuracy, speed."""
    from engines.bench import render_table
    from engines.compare import relate
    from qdq.pipeline.outcome import build_text

    reports = outcome.as_json()
    parts = []
    if command in ("compile", "build") and reports["build"]:
        parts.append(build_text(reports["build"]))
    if command in ("compile", "verify") and reports["accuracy"]:
        parts.append(relate(reports["accuracy"]))
    if command in ("compile", "bench") and reports["benchmark"]:
        parts.append(render_table(reports["benchmark"]))
    if command == "shapes":
        from qdq.base.artifacts import read_json
        from qdq.pipeline.stages.shapes import render_shapes

        parts.append(render_shapes(read_json(Path(outcome.out) / outcome.target / "shapes.json")))
    return "".join(f"\n{part}" for part in parts)


def _places(command: str, outcome: Outcome) -> str:
    """Return where everything lies, and when INT8 does not win, what follows: last, so that it is not overlooked."""
    from qdq.pipeline.verdict import verdict_text

    verdict = verdict_text(outcome.as_json()) if command in ("compile", "bench") else ""
    return "".join(f"\n{part}" for part in ("\n".join(outcome.artifacts) + "\n", verdict) if part)


if __name__ == "__main__":
    sys.exit(main())
