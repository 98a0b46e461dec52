"""`python -m qdq.studies.accuracy_decisions`: which points hurt one real model, and what `--search` makes of that.

Runs `qdq sensitivity --metric` over all twenty points per layer and `qdq calibrate --search` for the CPU and for
TensorRT, on training rows that did not calibrate; the reports and their pictures go to docs/results/accuracy/decisions,
from where `qdq.studies.accuracy_page` puts them into docs/accuracy.md.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdq.base.artifacts import atomic_path, read_json, write_json
from qdq.errors import ConfigError
from qdq.studies.accuracy import CALIBRATION_TEXTS, CASES, Case
from qdq.studies.accuracy_page import DECISIONS, ROOT, write_page

MODEL = "minilm-mrpc"
SAMPLES = 128  # rows of the study
TARGETS = ("openvino", "tensorrt")


def measure(case: Case, shared: Path, work: Path, again: bool = False) -> None:
    """Write every report of `case` that is not there yet, or all of them `again`. Raises QdqError."""
    from qdq.base.screen import Screen
    from qdq.cli.sensitivity import SensitivityOptions, sensitivity
    from qdq.pipeline.compile import run_stage

    data = shared / "data"
    typed: dict[str, Any] = {
        "model": str(shared / "models" / case.model),
        "calibration": str(data / case.train),
        "eval_data": str(data / case.dev),
        "samples": CALIBRATION_TEXTS,
        "sequence": case.sequence,
    }
    name = f"{case.model}-sensitivity"
    if again or not (DECISIONS / f"{name}.json").is_file():
        out = work / f"{case.model}-qdqbert-tensorrt"
        run_stage("calibrate", {**typed, "placement": "qdqbert", "target": "tensorrt", "out": str(out)}, Screen())
        rows = {"data": typed["calibration"], "skip": CALIBRATION_TEXTS, "samples": SAMPLES, "sequence": case.sequence}
        _, folder = sensitivity(SensitivityOptions(str(out), **rows, metric=True, out=str(work / name)), Screen())
        _keep(
            folder / "sensitivity.json", name, f"training rows {CALIBRATION_TEXTS + 1} to {CALIBRATION_TEXTS + SAMPLES}"
        )
    for target in TARGETS:
        name = f"{case.model}-search-{target}"
        if again or not (DECISIONS / f"{name}.json").is_file():
            out = work / name
            run_stage("calibrate", {**typed, "search": True, "target": target, "out": str(out)}, Screen())
            _keep(out / "search.json", name, None)


def _keep(report: Path, name: str, source: str | None) -> None:
    """Copy a report, which names its text by `source`, and its picture."""
    content = read_json(report)
    write_json(DECISIONS / f"{name}.json", {**content, "source": source} if source else content)
    with atomic_path(DECISIONS / f"{name}.png") as partial:
        shutil.copyfile(report.with_suffix(".png"), partial)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is missing, then write the page."""
    parser = argparse.ArgumentParser(
        prog="python -m qdq.studies.accuracy_decisions", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder with models/ and data/")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "accuracy", help="work directories")
    parser.add_argument("--again", action="store_true", help="measure anew what is there")
    typed = parser.parse_args(arguments)
    if not typed.shared.is_dir():
        raise ConfigError(f"{typed.shared}: is not there; name the folder with models/ and data/ with --shared")
    measure(CASES[MODEL], typed.shared, typed.work, typed.again)
    write_page()
    return 0


if __name__ == "__main__":
    sys.exit(main())
