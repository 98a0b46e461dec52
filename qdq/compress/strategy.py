"""Strategies: a text such as "dynabert+ptq" to the steps it names, in the order they run. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations

from qdq.base.config import nearest
from qdq.errors import ConfigError

# Step -> what it does, in the order steps run whatever the order they are typed in: a narrower model is quantized, not
# a quantized one narrowed, and embedding tables come last because nothing trains them.
STEPS: Mapping[str, str] = {
    "dynabert": "width pruning with distillation",
    "ptq": "post-training quantization",
    "qat": "quantization-aware training",
    "dynamic": "dynamic quantization",
    "embeddings": "INT8 embedding tables",
}
TRAINED = ("dynabert", "qat")
LINEARS = ("ptq", "qat", "dynamic")  # each quantizes the linears, so at most one of them


@dataclass(frozen=True)
class Strategy:
    """The steps of a strategy in running order."""

    steps: tuple[str, ...]

    @property
    def name(self) -> str:
        """Canonical spelling, "dynabert+qat+embeddings"."""
        return "+".join(self.steps)

    @property
    def trains(self) -> bool:
        """Whether any step needs training data."""
        return any(step in TRAINED for step in self.steps)

    def __contains__(self, step: str) -> bool:
        return step in self.steps


def parse_strategy(text: str) -> Strategy:
    """The strategy `text` names, in any order and case.

    Raises ConfigError for an unknown step (naming the nearest), one named twice, and steps that exclude each other.
    """
    typed = [step.strip().lower() for step in text.split("+")]
    for step in typed:
        if step not in STEPS:
            raise ConfigError(f"strategy: '{text}' has an unknown step '{step}'; {nearest(step, STEPS)}")
        if typed.count(step) > 1:
            raise ConfigError(f"strategy: '{text}' names {step} twice; name it once")
    for one, other in combinations(LINEARS, 2):
        if one in typed and other in typed:
            both = (
                "qat starts from a PTQ-calibrated model already"
                if {one, other} == {"ptq", "qat"}
                else (f"{one} and {other} both quantize the linears")
            )
            raise ConfigError(f"strategy: '{text}' cannot work, {both}; leave one of them out")
    return Strategy(tuple(step for step in STEPS if step in typed))
