"""INT8 beside the best FP32 engine of a benchmark, and the words for when it does not win."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engines.bench import best_speedup
from engines.bench.report import BASE_SUFFIX, contestants_of
from engines.instructions import int8_sums
from engines.interface import graph_files
from engines.targets import TARGETS
from qdq.base.screen import wrap
from qdq.pipeline.run import FLOAT

INT8 = "int8"  # contestant: the run's own engine


@dataclass(frozen=True)
class Verdict:
    """INT8 against the fastest FP32 contestant, everyone fed the form that suits it better.

    Speedups of INT8 over it: above 1 INT8 is faster. `texts` decides; without that workload it equals `full`.
    """

    best: str  # the FP32 contestant, on texts of their own lengths
    texts: float
    full: float  # the same on full rows

    @property
    def pays(self) -> bool:
        """True when INT8 is the faster one on the texts."""
        return self.texts > 1

    def as_json(self) -> dict[str, Any]:
        """The ``verdict`` object of --json."""
        return asdict(self) | {"pays": self.pays}


def verdict(report: Mapping[str, Any]) -> Verdict:
    """Compare INT8 with FP32 in a benchmark.json object."""
    texts = report.get("texts", report)["contestants"]
    speedups = _over_floats(texts, INT8)
    best = min(speedups, key=lambda name: speedups[name])
    return Verdict(best, speedups[best], min(_over_floats(report["contestants"], INT8).values()))


def float_wins(report: Mapping[str, Any], runtime: str) -> bool:
    """True when `runtime` is faster in FP32 than in INT8 on the texts of a benchmark.json object.

    False when one of the two was not timed: INT8 is what was asked for.
    """
    texts = report.get("texts", report)["contestants"]
    own = f"{runtime}{BASE_SUFFIX}"
    timed = (name for name, entry in texts.items() if entry["engine"] == runtime and name.startswith(INT8))
    int8 = next(iter(contestants_of(dict.fromkeys(timed))), None)
    speedup = best_speedup(texts, int8, own) if int8 else None
    return speedup is not None and speedup <= 1


def _over_floats(entries: Mapping[str, Any], name: str) -> dict[str, float]:
    """Speedups of one contestant over every FP32 contestant."""
    floats = [base for base in contestants_of(entries) if base.endswith(BASE_SUFFIX)]
    found = {base: best_speedup(entries, name, base) for base in floats}
    return {base: speedup for base, speedup in found.items() if speedup is not None}


def verdict_text(outcome: Mapping[str, Any]) -> str:
    """The last lines of a run whose INT8 engine is not faster, at most 80 columns; "" for one that is.

    `outcome`: the document of --json.
    """
    found = outcome["verdict"]
    if found is None or found["pays"]:
        return ""
    target = outcome["target"]
    gpu = TARGETS[target].gpu
    lines = (
        f"INT8 is not faster here: {found['best']} takes {found['texts']:.2f} of its time on these texts, "
        f"{'' if found['full'] > 1 else 'and '}{found['full']:.2f} on full rows.",
        "" if gpu else int8_sums().gain,
        f"What INT8 is still worth: {_worth(outcome, gpu)}.",
        _SERVING.get(outcome["serves"], "").format(target=target),
    )
    return "\n".join(wrap(line, 2) for line in lines if line) + "\n"


_SERVING = {
    "fp32": "So the Triton repository serves the FP32 engine; --target {target} makes it serve INT8.",
    INT8: "The Triton repository serves INT8, as --target {target} asks; --target auto serves the faster engine.",
}


def _worth(outcome: Mapping[str, Any], gpu: bool) -> str:
    out, accuracy = Path(outcome["out"]), outcome["accuracy"]
    files = [out / outcome["target"] / name for name in TARGETS[outcome["target"]].files]
    int8, floating = (_megabytes(paths) for paths in (files, graph_files(out / FLOAT)))
    parts = [f"{int8:.1f} MB instead of {floating:.1f}"]
    if accuracy is not None:
        parts.append(f"outputs within a cosine of {accuracy['cosine_mean']:.4f} to FP32's")
    if not gpu:
        parts.append("and the same calibrated graph on an NVIDIA GPU (--target tensorrt)")
    return ", ".join(parts)


def _megabytes(files: Iterable[Path]) -> float:
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6
