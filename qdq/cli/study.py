"""The commands that study a model: evaluate, sensitivity. Typed options in, text and an exit code out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qdq.base.artifacts import to_json
from qdq.base.screen import Screen

Answer = tuple[str, int]  # text for standard output, exit code


def run_study(command: str, typed: Mapping[str, Any], screen: Screen, as_json: bool) -> Answer:
    """Run `command` with the options as parsed. Raises QdqError."""
    return {"evaluate": _evaluate, "sensitivity": _sensitivity}[command](typed, screen, as_json)


def _evaluate(typed: Mapping[str, Any], screen: Screen, as_json: bool) -> Answer:
    from qdq.cli.evaluate import EvaluateOptions, evaluate, render

    report = evaluate(EvaluateOptions(**{**typed, "what": tuple(typed["what"])}), screen)
    return (to_json(report) if as_json else render(report)), 0


def _sensitivity(typed: Mapping[str, Any], screen: Screen, as_json: bool) -> Answer:
    from qdq.cli.sensitivity import SensitivityOptions, render, sensitivity

    report, folder = sensitivity(SensitivityOptions(**typed), screen)
    files = f"\n{folder / 'sensitivity.json'}\n{folder / 'sensitivity.png'}\n"
    return (to_json(report) if as_json else render(report) + files), 0
