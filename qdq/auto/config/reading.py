"""A whole configuration: its sections by name, and which of them go together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qdq.auto.config.distillation import Distillation, MultiTeacherDistillation, read_distillation
from qdq.auto.config.keys import mapping, section
from qdq.auto.config.quantization import (
    QUANT_POST_REFUSED,
    HyperParameterOptimization,
    QuantAware,
    QuantPost,
    read_searched,
)
from qdq.auto.config.sections import CONVOLUTIONS, NO_GAIN, Global, TransformerPrune, read_prune
from qdq.auto.config.training import TRAIN_REFUSED, TrainConfig
from qdq.base.config import load_mapping, nearest
from qdq.errors import ConfigError


@dataclass(frozen=True)
class Configuration:
    """Every section that was written; None is one that was not.

    `model` is None where a program gives model and data itself.
    """

    model: Global | None = None
    train: TrainConfig | None = None
    distillation: Distillation | MultiTeacherDistillation | None = None
    prune: TransformerPrune | None = None
    quant_aware: QuantAware | None = None
    quant_post: QuantPost | None = None
    search: HyperParameterOptimization | None = None
    where: str = "configuration"

    @property
    def strategies(self) -> tuple[str, ...]:
        """The steps in the order they run: prune or distill, then qat or ptq; () where none is configured."""
        first = "prune" if self.prune else "distill" if self.distillation and not self.quant_aware else ""
        last = "qat" if self.quant_aware else "ptq" if self.quant_post or self.search else ""
        return tuple(filter(None, (first, last)))

    @property
    def trains(self) -> bool:
        """True when a step trains."""
        return any(step != "ptq" for step in self.strategies)

    @property
    def training(self) -> TrainConfig:
        """TrainConfig, its defaults where it was not written."""
        return self.train or TrainConfig()


SECTIONS: Mapping[str, tuple[str, Callable[[Any, str], Any]]] = {  # name -> field of Configuration, reader
    "Global": ("model", lambda values, where: section(Global, values, where)),
    "TrainConfig": ("train", lambda values, where: section(TrainConfig, values, where, TRAIN_REFUSED)),
    "Distillation": ("distillation", read_distillation),
    "MultiTeacherDistillation": ("distillation", read_distillation),
    "Quantization": ("quant_aware", lambda values, where: section(QuantAware, values, where)),
    "QuantAware": ("quant_aware", lambda values, where: section(QuantAware, values, where)),
    "QuantPost": ("quant_post", lambda values, where: section(QuantPost, values, where, QUANT_POST_REFUSED)),
    "HyperParameterOptimization": ("search", lambda values, where: section(HyperParameterOptimization, values, where)),
    "Prune": ("prune", read_prune),
    "TransformerPrune": ("prune", read_prune),
}
REFUSED: Mapping[str, str] = {
    "ChannelPrune": CONVOLUTIONS,
    "ASPPrune": NO_GAIN,
    "UnstructurePrune": NO_GAIN,
    "UnstructuredPrune": NO_GAIN,
}
SEARCH, BOTH = "HyperParameterOptimization", ("Distillation", "MultiTeacherDistillation")


def read_config(source: str | Path | Mapping[str, Any], needs_model: bool = False) -> Configuration:
    """Read a YAML file, or its content as a mapping.

    Raises ConfigError, before anything is loaded or trained, for a file that cannot be read, a section or key that is
    unknown (naming the nearest) or has no meaning here (with the reason), a wrong type or value, and sections that do
    not go together; with `needs_model` also where Global is missing.
    """
    where = "config" if isinstance(source, Mapping) else str(source)
    content = mapping(source, where) if isinstance(source, Mapping) else load_mapping(Path(source))
    # Sections by name
    for name in content:
        if reason := REFUSED.get(name):
            raise ConfigError(f"{where}: section {name} {reason}")
        if name not in SECTIONS:
            raise ConfigError(f"{where}: unknown section '{name}'; {nearest(str(name), SECTIONS)}")
    if needs_model and "Global" not in content:
        raise ConfigError(f"{where}: section Global is missing; it names the model (model_dir) and the data")
    _check_together(content, where)
    # Their values
    found: dict[str, Any] = {}
    for name, values in content.items():
        field, read = SECTIONS[name]
        if name in ("Quantization", "QuantAware") and SEARCH in content:
            field, read = "quant_post", read_searched
        try:
            found[field] = read(values, name)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
    if "search" in found and "quant_post" in found:
        _check_searched(found["quant_post"], where)
    return replace(Configuration(where=where), **found)


def _check_together(content: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError for sections that do not go together, with the way out."""

    def both(one: str, other: str) -> bool:
        return one in content and other in content

    for one, other in (("Quantization", "QuantAware"), ("Prune", "TransformerPrune")):
        if both(one, other):
            raise ConfigError(f"{where}: {one} and {other} are two names of one section; keep one")
    if both(*BOTH):
        raise ConfigError(f"{where}: MultiTeacherDistillation has all teachers; leave Distillation out")
    aware = next((name for name in ("Quantization", "QuantAware") if name in content), "")
    if aware and "QuantPost" in content:
        raise ConfigError(f"{where}: {aware} and QuantPost both quantize the linears; keep one")
    if SEARCH in content and not aware and "QuantPost" not in content:
        raise ConfigError(f"{where}: {SEARCH} searches settings of QuantPost; add a section QuantPost:")
    searched = SEARCH in content
    for name in (aware if not searched else "", "Prune", "TransformerPrune"):
        if name and name in content and "Distillation" not in content:
            raise ConfigError(f"{where}: {name} trains by distillation; add a section Distillation:")
    if searched and aware == "QuantAware":
        raise ConfigError(f"{where}: {SEARCH} searches settings of QuantPost, not of QuantAware; rename the section")


def _check_searched(post: QuantPost, where: str) -> None:
    """Raise ConfigError for keys of QuantPost that the search decides."""
    for name in ("algo", "hist_percent", "bias_correction", "batch_nums", "weight_quantize_type"):
        if getattr(post, name) != getattr(QuantPost, name):
            raise ConfigError(f"{where}: QuantPost: {name}: {SEARCH} searches it; leave it out, or set its list there")
