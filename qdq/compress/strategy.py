"""Strategies: the methods that a text such as "dynabert+ptq" names, in the order they run. No torch.

Several, with commas between them, are tried in one call: "dynabert+ptq,dynabert,ptq".
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

from qdq.base.config import nearest
from qdq.errors import ConfigError

# In the order they run, whatever the order they are typed in: a narrower model is quantized, not a quantized one
# narrowed, and embedding tables come last because nothing trains them. `qdq.compress` says what each does.
METHODS = ("dynabert", "ptq", "qat", "dynamic", "embeddings")
TRAINED = ("dynabert", "qat")
LINEARS = ("ptq", "qat", "dynamic")  # each quantizes the linears, so at most one of them


@dataclass(frozen=True)
class Strategy:
    """The methods of a strategy in running order."""

    methods: tuple[str, ...]

    @property
    def name(self) -> str:
        """Canonical spelling, "dynabert+qat+embeddings"."""
        return "+".join(self.methods)

    @property
    def trains(self) -> bool:
        """True when any method needs training data."""
        return any(method in TRAINED for method in self.methods)

    def __contains__(self, method: str) -> bool:
        return method in self.methods


@dataclass(frozen=True)
class Strategies:
    """The strategies of one call, each once, in the order they were typed."""

    each: tuple[Strategy, ...]

    @property
    def name(self) -> str:
        """Canonical spelling, "dynabert+ptq,ptq"."""
        return ",".join(strategy.name for strategy in self.each)

    @property
    def trains(self) -> bool:
        """True when any of them needs training data."""
        return any(strategy.trains for strategy in self.each)

    @property
    def methods(self) -> tuple[str, ...]:
        """Every method of any of them, in running order."""
        return tuple(method for method in METHODS if method in self)

    def __contains__(self, method: str) -> bool:
        return any(method in strategy for strategy in self.each)


def parse_strategies(text: str) -> Strategies:
    """The strategies that `text` names, separated by commas. Raises ConfigError as `parse_strategy`."""
    return Strategies(tuple(dict.fromkeys(parse_strategy(part) for part in text.split(","))))


def parse_strategy(text: str) -> Strategy:
    """The strategy `text` names, in any order and case.

    Raises ConfigError for an unknown method (naming the nearest), one named twice, and methods that exclude each other.
    """
    typed = [method.strip().lower() for method in text.split("+")]
    for method in typed:
        if method not in METHODS:
            raise ConfigError(f"strategy: '{text}' has an unknown method '{method}'; {nearest(method, METHODS)}")
        if typed.count(method) > 1:
            raise ConfigError(f"strategy: '{text}' names {method} twice; name it once")
    for one, other in combinations(LINEARS, 2):
        if one in typed and other in typed:
            both = f"{one} and {other} both quantize the linears"
            if {one, other} == {"ptq", "qat"}:
                both = "qat starts from a PTQ-calibrated model already"
            raise ConfigError(f"strategy: '{text}' cannot work, {both}; leave one of them out")
    return Strategy(tuple(method for method in METHODS if method in typed))
