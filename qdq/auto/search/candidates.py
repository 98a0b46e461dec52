"""Candidates of a search: what could be made of the model, and what each promises beforehand. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

WHOLE = Fraction(1)
NARROWEST = Fraction(1, 3)  # below it a student has lost more than a few minutes of distillation bring back
PTQ, MSE, LINEAR, QAT = "ptq", "ptq-mse", "ptq-linear", "qat"
# Options of `qdq compile` beside its defaults, for each way of quantizing without training
PTQ_OPTIONS: Mapping[str, Mapping[str, Any]] = {
    PTQ: {},
    MSE: {"calibrator": "mse"},
    LINEAR: {"placement": "linear"},
}
QUANTIZATIONS = (*PTQ_OPTIONS, QAT)
# Time of an INT8 engine that no width changes: LayerNorm, softmax's and embeddings' memory traffic. Engines of 3/4 and
# 2/3 of MiniLM's width took 0.78 and 0.70 of the whole one's time (docs/compression.md), a line through 0.11.
FIXED_TIME = 0.11
LINEAR_TIME = 1.05  # attention products in floating point, over INT8 (docs/performance.md)
FLOAT_TIME = 3.0  # FP32 over INT8 on a CPU with VNNI (README.md)
# Points lost by distilled students are modelled as LOSS x (share cut away)^2. 2/3 of CoNLL's model lost 0.6 after 500
# steps shared with another width (docs/compression.md), of MRPC's none; a first training here has several times more.
LOSS = 3.0
LOSS_ERROR = 6.0  # standard error of LOSS from model to model: MRPC and CoNLL lost 0 to 26 times the square
LEAST_LOSS = 2.0  # a student that lost nothing says little about a much narrower one
TRAINING_ERROR = 0.2  # points by which another training of the same student would lose more or less
SPREAD = 0.3  # points; the width of the step from "surely within" to "surely beyond" the allowed drop
REGAINED = 0.5  # share of the loss by quantization that another way of quantizing is expected to take back


@dataclass(frozen=True)
class Candidate:
    """One way to compress the model: the share of heads and neurons, the quantization, and INT8 embedding tables."""

    width: Fraction = WHOLE
    quantization: str = PTQ
    embeddings: bool = False

    @property
    def name(self) -> str:
        """Name in tables: "ptq", "width 2/3, qat", "width 2/3, ptq, embeddings"."""
        parts = [f"width {self.width}"] if self.width != WHOLE else []
        return ", ".join([*parts, self.quantization, *(["embeddings"] if self.embeddings else [])])

    @property
    def key(self) -> str:
        """Name of its folder."""
        return self.name.replace(", ", "+").replace(" ", "-").replace("/", "of")

    @property
    def strategy(self) -> str:
        """Its methods as `compress()` names them: "dynabert+qat+embeddings"."""
        pruned = ["dynabert"] if self.width != WHOLE else []
        method = QAT if self.quantization == QAT else PTQ
        return "+".join([*pruned, method, *(["embeddings"] if self.embeddings else [])])

    @property
    def trains(self) -> bool:
        """True when it needs training of its own, a pruned model's distillation included."""
        return self.width != WHOLE or self.quantization == QAT

    def as_json(self) -> dict[str, Any]:
        """Plain JSON value."""
        return {"width": str(self.width), "quantization": self.quantization, "embeddings": self.embeddings}


def from_json(values: Mapping[str, Any]) -> Candidate:
    """A candidate from `Candidate.as_json`."""
    return Candidate(Fraction(values["width"]), values["quantization"], values["embeddings"])


BASE = Candidate()  # the whole model's INT8 engine, which all others are measured by


def everything(heads: int) -> list[Candidate]:
    """Every candidate for an encoder with that many heads per layer; the whole model's first, then the wider ones."""
    widths = [Fraction(kept, heads) for kept in range(heads, 0, -1) if Fraction(kept, heads) >= NARROWEST]
    plain = [Candidate(width, how) for width in widths for how in QUANTIZATIONS]
    return plain + [Candidate(width, PTQ, embeddings=True) for width in widths]


def expected_time(candidate: Candidate) -> float:
    """Latency over that of the whole model's INT8 engine: work is proportional to the width, beside a fixed part."""
    share = FIXED_TIME + (1 - FIXED_TIME) * float(candidate.width)
    return share * (LINEAR_TIME if candidate.quantization == LINEAR else 1.0)


@dataclass(frozen=True)
class Tried:
    """Outcome of a candidate on the rows that choose, in points lost against the FP32 model.

    `float_drop` is that of its floating-point model, None where that is the FP32 model itself; `error` the standard
    error of `drop`, by which few rows may be wrong.
    """

    candidate: Candidate
    drop: float
    float_drop: float | None = None
    error: float = 0.0

    @property
    def by_quantization(self) -> float:
        """Points that quantization alone lost."""
        return self.drop - (self.float_drop or 0.0)


def expected_drop(candidate: Candidate, tried: Sequence[Tried]) -> float:
    """Points the candidate is expected to lose, from those that were tried.

    Pruning costs a factor times the square of what is cut: `LOSS`, and the factors of the candidates that were pruned,
    each weighted by how well it is known. Losses that few rows measured therefore change little.
    Quantization costs what it cost at this width, else on the whole model; another way of quantizing is expected to
    regain a part of it.
    """
    cut = float(1 - candidate.width)
    pruned = {one.candidate.width: one for one in tried if one.candidate.width != WHOLE and one.float_drop is not None}
    same = [one for one in tried if one.candidate.width == candidate.width]
    if candidate.width in pruned:
        by_pruning = pruned[candidate.width].float_drop or 0.0
    else:
        by_pruning = cut**2 * max(LEAST_LOSS, _factor(list(pruned.values())))
    alike = same or [one for one in tried if one.candidate.width == WHOLE]
    quantized = min((max(0.0, one.by_quantization) for one in alike), default=0.0)
    regained = REGAINED if same and candidate.quantization != PTQ else 0.0
    return by_pruning + (1 - regained) * quantized


def _factor(pruned: Sequence[Tried]) -> float:
    """Points lost over the square of what is cut: `LOSS` and what was seen, weighted by their inverse variances."""
    factors, weights = [LOSS], [1 / LOSS_ERROR**2]
    for one in pruned:
        square = float(1 - one.candidate.width) ** 2
        factors.append((one.float_drop or 0.0) / square)
        weights.append(square**2 / (one.error**2 + TRAINING_ERROR**2))
    return sum(factor * weight for factor, weight in zip(factors, weights, strict=True)) / sum(weights)


def chance(expected: float, max_drop: float) -> float:
    """Probability that a candidate expected to lose so many points stays within the allowed drop."""
    return 1 / (1 + math.exp(min(50.0, (expected - max_drop) / SPREAD)))
