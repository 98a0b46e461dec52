"""Terms that the methods of a strategy share: the session, the models they turn into one another, and the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn
from transformers import PreTrainedModel

from qdq.calibrate.rebatch import Batch
from qdq.calibrate.table import CalibrationTable
from qdq.inject.families import family_of
from qdq.inject.spec import QuantSpec

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR
    from transformers import Trainer, TrainerCallback

    from qdq.base.screen import Screen
    from qdq.compress.arguments import CompressionArguments
    from qdq.compress.datasets import Batches

Evaluate = Callable[[nn.Module], float]  # a model to its metric
Loss = Callable[[nn.Module, Batch, Tensor | None], Tensor]  # (model, batch, head mask) to a scalar


@dataclass(frozen=True)
class CompressedModel:
    """One model on its way through a strategy: a PreTrainedModel, or the module of an ONNX file.

    With `spec` and `table` it has quantizers in these places with these ranges; both are None in floating point.
    """

    name: str  # of its folder below the output folder; "" is the model that was given
    model: Any
    spec: QuantSpec | None = None
    table: CalibrationTable | None = None
    notes: Mapping[str, Any] = field(default_factory=dict)  # for compression.json: {"width": "3/4", "algorithm": "mse"}
    metric: float | None = None  # of the evaluator; None while it was not evaluated
    save: Callable[[Path], None] | None = None  # writes to a folder in a form of its own; None is a checkpoint of ours

    def evolve(self, suffix: str, notes: Mapping[str, Any] | None = None, **changes: Any) -> CompressedModel:
        """A new one whose name and notes continue this one's; its metric is unknown again unless given."""
        name = f"{self.name}-{suffix}" if self.name else suffix
        return replace(self, **{"name": name, "notes": {**self.notes, **(notes or {})}, "metric": None, **changes})

    def scored(self, metric: float) -> CompressedModel:
        """The same model with its metric."""
        return replace(self, metric=metric)


class Recipe(Protocol):
    """A training of the caller's own, in place of what CompressionArguments and the methods do by themselves."""

    @property
    def deciding(self) -> Mapping[str, Any]:
        """Values that decide the numbers of a training."""
        ...

    def optimizer(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Optimizer of parameter groups, whose learning rates are factors of the schedule's."""
        ...

    def scheduler(self, optimizer: Optimizer) -> LambdaLR:
        """Schedule of the learning rate, stepped once per optimizer step."""
        ...

    def callbacks(self) -> Sequence[TrainerCallback]:
        """Callbacks of the trainer."""
        ...

    def distance(self, student: nn.Module, batch: Batch) -> Tensor:
        """The loss of a student: its distance from whatever it learns from."""
        ...

    def enough(self, metric: float, best: float) -> bool:
        """True when a training may end that now has `metric`, and had `best` at most."""
        ...


@dataclass
class Session:
    """One call of `compress()`: the trainer it was called on, the model it was given, and what methods need."""

    trainer: Trainer
    model: PreTrainedModel
    args: CompressionArguments
    evaluate: Evaluate  # finite, larger is better; deterministic, and every rank computes all of it
    loss: Loss
    train: Batches | None  # in data order
    eval: Batches  # in data order
    output: Path
    screen: Screen
    baseline: float = float("nan")  # metric of the model as it was given
    spec: QuantSpec | None = None  # points to quantize; None is those of `args`
    recipe: Recipe | None = None  # None trains as `args` say
    teacher: PreTrainedModel | None = None  # of distillations; None is the model that was given


class Method(Protocol):
    """One method of a strategy; see `qdq.compress`."""

    name: str

    def check(self, session: Session) -> None:
        """Raise ConfigError, DataError or ModelError for what cannot work. Runs before any method does.

        Methods that quantize need a supported family and inherit this check of it.
        """
        family_of(session.model.config.model_type)

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
    """The models that `compress()` made."""

    baseline: float  # metric of the model as it was given
    candidates: tuple[CompressedModel, ...]  # every final model with its metric, best first
    folders: Mapping[str, Path]  # name of a model -> its folder, for those that were written

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
