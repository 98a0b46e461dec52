"""Terms that the methods of a strategy share: the session, the models they turn into one another, and the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from qdq.calibrate.rebatch import Batch
from qdq.calibrate.table import CalibrationTable
from qdq.inject.spec import QuantSpec

if TYPE_CHECKING:
    from transformers import Trainer

    from qdq.base.screen import Screen
    from qdq.compress.arguments import CompressionArguments
    from qdq.compress.datasets import Batches

Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class CompressedModel:
    """One model on its way through a strategy.

    Attributes:
        name: folder name below the output folder; "" is the model that was given.
        model: a PreTrainedModel, injected with calibrated quantizers when `spec` is set; for an ONNX file its module.
        spec, table: what was quantized and with which amax; None while everything is floating point.
        notes: its making, for the table and compression.json: {"width": "3/4", "algorithm": "mse"}.
        metric: of the evaluator, None while it was not evaluated.
        save: writes the model to a folder in a form of its own; None is a checkpoint of ours.
    """

    name: str
    model: Any
    spec: QuantSpec | None = None
    table: CalibrationTable | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)
    metric: float | None = None
    save: Callable[[Path], None] | None = None

    def evolve(self, suffix: str, notes: Mapping[str, Any] | None = None, **changes: Any) -> CompressedModel:
        """A new one whose name and notes continue this one's; its metric is unknown again unless given."""
        name = f"{self.name}-{suffix}" if self.name else suffix
        return replace(self, **{"name": name, "notes": {**self.notes, **(notes or {})}, "metric": None, **changes})

    def scored(self, metric: float) -> CompressedModel:
        """The same model with its metric."""
        return replace(self, metric=metric)


@dataclass
class Session:
    """One call of `compress()`.

    Attributes:
        trainer: the trainer whose `compress` runs.
        model: the model that was given.
        args: its arguments.
        evaluate: a model to its metric, a finite float, larger is better. Deterministic; every rank computes all of it.
        loss: (model, batch) to a scalar, from the criterion, the caller's function or the model itself.
        train: batches of the training data in data order, None without any.
        eval: batches of the evaluation data in data order.
        output: the output folder.
        screen: where progress and tables are shown.
        baseline: metric of the model as it was given.
    """

    trainer: Trainer
    model: PreTrainedModel
    args: CompressionArguments
    evaluate: Evaluate
    loss: Callable[[nn.Module, Batch, Tensor | None], Tensor]
    train: Batches | None
    eval: Batches
    output: Path
    screen: Screen
    baseline: float = float("nan")


class Method(Protocol):
    """One method of a strategy; see `qdq.compress`."""

    name: str

    def check(self, session: Session) -> None:
        """Raise ConfigError or DataError for what cannot work. Runs before any method does."""
        ...

    def run(self, session: Session, before: CompressedModel) -> list[CompressedModel]:
        """Turn one model into one or more."""
        ...


def weights_mb(model: nn.Module) -> float | None:
    """MB of the parameters as a graph stores them; None for a module that has none, as that of an ONNX file.

    Four bytes per value, and one behind a weight quantizer, which adds four for each of its rows' scales.
    """
    coded = [module.weight for module in model.modules() if getattr(module, "_weight_quantizer", None) is not None]
    rows = {id(weight): len(weight) for weight in coded if isinstance(weight, Tensor)}
    sizes = [one.numel() + 4 * rows[id(one)] if id(one) in rows else 4 * one.numel() for one in model.parameters()]
    return round(sum(sizes) / 1e6, 4) if sizes else None


@dataclass(frozen=True)
class CompressionResult:
    """The models that `compress()` made.

    Attributes:
        baseline: metric of the model as it was given.
        candidates: every final model with its metric, best first.
        folders: name of a model -> its folder, for those that were written.
    """

    baseline: float
    candidates: tuple[CompressedModel, ...]
    folders: Mapping[str, Path]

    @property
    def best(self) -> CompressedModel:
        """The model with the highest metric."""
        return self.candidates[0]

    def as_json(self) -> dict[str, Any]:
        """The content of compression.json."""
        rows = [
            {
                "name": made.name,
                "metric": made.metric,
                "metrics": getattr(made.metric, "metrics", {}),  # of a built-in evaluator
                "drop": None if made.metric is None else self.baseline - made.metric,
                "notes": dict(made.notes),
                "folder": str(self.folders[made.name].name) if made.name in self.folders else None,
                "parameters": sum(parameter.numel() for parameter in made.model.parameters()),
                "weights_mb": None if made.save is not None else weights_mb(made.model),
            }
            for made in self.candidates
        ]
        return {"baseline": self.baseline, "best": self.best.name, "candidates": rows}
