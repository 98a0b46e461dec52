"""Stage 10, report: the whole compile as one page, report.html, and as the model card README.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engines.interface import graph_files
from engines.targets import TARGETS
from qdq.base.artifacts import read_json, sha256_file, write_json, write_text
from qdq.base.option import flag, value_text
from qdq.base.screen import Stage
from qdq.pipeline.options import CompileOptions
from qdq.pipeline.run import FLOAT, Run
from qdq.pipeline.verdict import verdict
from qdq.pipeline.workdir import MANIFEST

if TYPE_CHECKING:
    from qdq.report.facts import Facts

PAGE, CARD, ESTIMATE = "report.html", "README.md", "estimate.json"
DEVICE = "t4"  # the device with the most published rows to check an estimate with


def report(run: Run, stage: Stage, missing: str = "") -> Sequence[Path]:
    """Stage 10: report.html and README.md of the run's target, and estimate.json for a graph for NVIDIA GPUs.

    `missing`: what this machine lacks to build the engine.
    """
    from qdq.report.card import render_card
    from qdq.report.page import render

    run.note()
    run.work.write_manifest()  # the page says what it is about
    estimated = [_estimated(run)] if TARGETS[run.options.target].gpu and run.lowered.is_file() else []
    facts = facts_of(run.work.path, run.options.target, missing)
    page = write_text(run.work.path / PAGE, render(facts))
    card = write_text(run.work.path / CARD, render_card(facts))
    stage.say(f"{PAGE}, {page.stat().st_size / 1e3:.0f} kB, and the model card {CARD}")
    return page, card, *estimated


def sources(run: Run, missing: str = "") -> Mapping[str, Any]:
    """Files that the page is made of, by their hashes."""
    from qdq.report.facts import OF_TARGET, SHARED

    options = {name: value for name, value in run.options.as_json().items() if name != "out"}
    paths = [run.work.path / f"{name}.json" for name in SHARED]
    paths += [run.target / f"{name}.json" for name in OF_TARGET if f"{name}.json" != ESTIMATE]
    found = {str(path.relative_to(run.work.path)): sha256_file(path) for path in paths if path.is_file()}
    return {"files": found, "options": options, "target": run.options.target, "missing": missing}


def facts_of(folder: Path, target: str, missing: str = "") -> Facts:
    """Facts of a work directory, older ones included. Raises DeployError for a damaged file."""
    from qdq.report.facts import read_facts

    path = folder / target / "benchmark.json"
    benchmark = read_json(path) if path.is_file() else None
    engine = [folder / target / name for name in TARGETS[target].files]
    sizes = _bytes(engine), _bytes(graph_files(folder / FLOAT))
    return read_facts(
        folder,
        target,
        verdict=verdict(benchmark).as_json() if benchmark else None,
        command=command_of(read_json(folder / MANIFEST).get("options", {}), folder),
        sizes=sizes,
        missing=missing,
    )


def _bytes(files: Sequence[Path]) -> int:
    return sum(file.stat().st_size for file in files if file.is_file())


def command_of(options: Mapping[str, Any], folder: Path) -> tuple[str, ...]:
    """Words of the ``qdq compile`` that makes a work directory again, from the options in its manifest."""
    words = ["qdq", "compile"]
    for declared in fields(CompileOptions):
        value = options.get(declared.name)
        value = tuple(value) if isinstance(value, list) else value
        if value is None or declared.name == "out" or value == declared.default:
            continue
        if isinstance(value, bool):
            words.append(flag(declared.name) if value else f"--no-{declared.name.replace('_', '-')}")
        else:
            words += [flag(declared.name), value_text(value)]
    return (*words, "--out", str(folder))


def _estimated(run: Run) -> Path:
    """estimate.json of the lowered graph, with predicted kernels, which costs no compile."""
    from engines.estimate import estimate, find_device
    from export.lint import fusion_map
    from export.lint.command import read_model

    options, device = run.options, find_device(DEVICE)
    layers = fusion_map(read_model(run.lowered), device.compute_capability, options.sequence)
    return write_json(run.target / ESTIMATE, estimate(layers, device.name, options.batch, options.sequence))
