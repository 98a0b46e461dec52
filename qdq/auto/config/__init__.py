"""Configuration of an automatic compression: one frozen dataclass per section, one error for everything wrong in it."""

from __future__ import annotations

from qdq.auto.config.distillation import Distillation, MultiTeacherDistillation
from qdq.auto.config.quantization import HyperParameterOptimization, QuantAware, QuantPost
from qdq.auto.config.reading import Configuration, read_config
from qdq.auto.config.sections import Global, TransformerPrune
from qdq.auto.config.training import TrainConfig

__all__ = [
    "Configuration",
    "Distillation",
    "Global",
    "HyperParameterOptimization",
    "MultiTeacherDistillation",
    "QuantAware",
    "QuantPost",
    "TrainConfig",
    "TransformerPrune",
    "read_config",
]
