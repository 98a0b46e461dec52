"""Beginning and end of a run on the screen: the resolved configuration before any work, and the result after it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from engines.targets import TARGETS
from qdq.base.artifacts import read_json
from qdq.base.choices import RAW_REPOSITORY, REPOSITORY
from qdq.base.option import value_text
from qdq.loading.source import DEFAULT_MODEL
from qdq.pipeline.options import CompileOptions
from qdq.pipeline.run import CANONICAL, FLOAT, Run
from qdq.pipeline.verdict import verdict
from qdq.pipeline.workdir import MANIFEST


@dataclass
class Outcome:
    """Result of a run: exit code, artifacts, and the reports the screen shows."""

    exit_code: int
    out: str
    target: str
    artifacts: list[str] = field(default_factory=list)
    missing: str = ""  # why the exit code is 3
    warnings: list[str] = field(default_factory=list)
    serves: str = ""  # precision of the engine in the Triton repository: int8, fp32, or "" without one

    def as_json(self) -> dict[str, Any]:
        """Return the document of --json; the reports are read from their files."""
        reports = {}
        for name in ("build", "accuracy", "benchmark"):
            path = Path(self.out) / self.target / f"{name}.json"
            reports[name] = read_json(path) if str(path) in self.artifacts else None
        benchmark = reports["benchmark"]
        return asdict(self) | reports | {"verdict": verdict(benchmark).as_json() if benchmark else None}


def artifacts(run: Run) -> list[str]:
    """Return every file and folder of this run that exists, in flow order."""
    decided = run.work.manifest["stages"].get("calibrate", {}).get("outputs", {})
    why = [name for name in ("sweep.json", "search.json", "search.png") if name in decided]
    raced = ("race.json",) if len(run.rivals) > 1 else ()
    shared = ("placement.json", "calibration.json", "histograms.json", *why, "checkpoint", CANONICAL, FLOAT)
    root = (*shared, *raced, MANIFEST, "report.html", "README.md")
    mine = (
        *("model.onnx", "passes.json", *TARGETS[run.options.target].files, "build_engine.py", "trtexec.sh"),
        *("build.json", "accuracy.json", "disagreements.json", "benchmark.json", REPOSITORY, RAW_REPOSITORY),
        *("fp16", "bf16", "fp32"),
    )
    paths = [run.work.path / name for name in root] + [run.target / name for name in mine]
    return [str(path) for path in paths if path.exists()]


# Options that `show` says in words; the others have a row of their own when they are not at their default.
SAID = (
    *("model", "task", "target", "threads", "streams", "precision_hint", "placement", "spec", "calibrator"),
    *("percentile", "samples", "calibration", "eval_samples", "eval_data", "batch", "sequence", "out"),
)


def show(run: Run) -> None:
    """Show the resolved configuration, before any work."""
    options = run.options
    # What has words of its own.
    amax = run.keeps_spec and options.calibration is None
    placement = options.placement or (f"from {options.spec}" if options.spec else "the checkpoint's own")
    calibrator = f"{options.calibrator} {options.percentile or ''}".strip()
    text = f"{calibrator}, at most {options.samples} texts of {options.calibration or 'the bundled English text'}"
    threads = f"{options.threads} thread{'' if options.threads == 1 else 's'}"
    if options.mode == "throughput":
        threads += f" for each of {options.streams} requests at once"
    # Every other option that is not at its default.
    changed = {known.name: getattr(options, known.name) for known in fields(options) if known.name not in SAID}
    changed = {name: value for name, value in changed.items() if value != getattr(CompileOptions, name)}
    rows = {
        "model": f"{options.model or f'{DEFAULT_MODEL}, bundled'} ({options.task})",
        "target": f"{_targets(run)}, {threads}, precision hint {options.precision_hint}",
        "placement": placement,
        "calibration": "the checkpoint's own amax" if amax else text,
        "evaluation": f"at most {options.eval_samples} texts of {options.eval_data or 'what calibration leaves over'}",
        "benchmark": f"batch {options.batch} x sequence {options.sequence}",
        "also": ", ".join(f"{name.replace('_', ' ')} {value_text(value)}" for name, value in changed.items()),
        "out": str(run.work.path),
    }
    for name, value in rows.items():
        if value:
            run.screen.row(name, value)
    run.screen.line()


def _targets(run: Run) -> str:
    """The run's target, or those that are to race for it."""
    return f"the faster of {' and '.join(run.rivals)}" if len(run.rivals) > 1 else run.options.target


def build_text(build: Mapping[str, Any]) -> str:
    """Say what the engine became, from build.json: what a compiler says of it, else what the engine itself reports."""
    if "compiled" not in build:
        return int8_text(build)
    from engines.tensorrt_rtx import proof_text

    return proof_text(build["compiled"]) + "\n".join([*_reasons(build["compiled"]["not_int8"]), ""])


def int8_text(build: Mapping[str, Any]) -> str:
    """Say what runs in INT8 and what does not, from build.json, at most 80 columns where names allow."""
    int8 = build["int8"]
    (linear, linears), (matmul, matmuls) = int8["encoder_linear"], int8["attention_matmul"]
    lines = [f"{linear} of {linears} encoder linears and {matmul} of {matmuls} attention matmuls run in INT8"]
    if int8["inferred"]:
        lines.append(f"  {len(int8['inferred'])} of them concluded from a fused block that reports one precision")
    return "\n".join([*lines, *_reasons(int8["not_int8"])]) + "\n"


def _reasons(not_int8: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Two lines for every reason, with the first name it holds for, and where there is more about them."""
    reasons: dict[str, list[str]] = {}
    for item in not_int8:
        reasons.setdefault(item["reason"], []).append(item["name"])
    for reason, names in reasons.items():
        yield f"  {len(names)} not: {reason}"
        yield f"    {names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    if reasons:
        yield "  'qdq explain' and one of these names, or layer.0, say more"
