"""An engine behind the calls of the model it was made from, so that the evaluator of a compression can score it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from qdq.loading.own_class import forward_inputs, is_own

if TYPE_CHECKING:
    from engines.types import Runner
    from qdq.compress.method import Evaluate


@dataclass(frozen=True)
class Scoring:
    """An evaluator of engines: of those that take the place of `model`, by the function that scored `model`."""

    model: nn.Module
    evaluate: Evaluate

    def of(self, runner: Runner) -> float:
        """The metric of an engine."""
        return float(self.evaluate(EngineModule(runner, self.model)))


class EngineModule(nn.Module):
    """A runner that is called as `model` is and returns what it returns: a tensor, a tuple, or an output by names.

    A batch without a mask counts all of its tokens, one without token types has type 0.
    """

    def __init__(self, runner: Runner, model: nn.Module) -> None:
        super().__init__()
        self._runner, self._signature = runner, inspect.signature(model.forward)
        self._returned = _form(model)
        self.config = getattr(model, "config", None)

    def forward(self, *positional: Any, **named: Any) -> Any:
        """The arguments of the model; those that are no input of the engine are left out."""
        given: dict[str, Any] = {}
        for name, value in self._signature.bind_partial(*positional, **named).arguments.items():
            variable = self._signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            given |= value if variable else {name: value}
        ids: Tensor = given["input_ids"]
        usual = {"attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        tensors = usual | {name: value for name, value in given.items() if isinstance(value, Tensor)}
        outputs = self._runner({name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()})
        return self._returned({name: torch.from_numpy(array).to(ids.device) for name, array in outputs.items()})


def _form(model: nn.Module) -> Callable[[dict[str, Tensor]], Any]:
    """A function from an engine's outputs to what `model` returns, found by one forward of an own class."""
    if not is_own(type(model)):
        return _by_name
    feed = {name: torch.ones((2, 5), dtype=torch.int64) for name in forward_inputs(type(model))}
    feed |= {"token_type_ids": torch.zeros((2, 5), dtype=torch.int64)} if "token_type_ids" in feed else {}
    device = next(model.parameters()).device
    training = model.training
    with torch.no_grad():
        result = model.train(False)(**{name: tensor.to(device) for name, tensor in feed.items()})
    model.train(training)
    if isinstance(result, Mapping):
        return _by_name
    if isinstance(result, Tensor):
        return lambda outputs: next(iter(outputs.values()))
    return lambda outputs: tuple(outputs.values())


def _by_name(outputs: dict[str, Tensor]) -> ModelOutput:
    return ModelOutput(outputs)  # type: ignore[no-untyped-call]
