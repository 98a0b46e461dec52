"""The method `dynamic`: linears with INT8 weights whose inputs are quantized at run time, from each tensor's own range.

It makes two models: torch.ao's dynamic Linear, the baseline, and our graph for the CPU engines.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from qdq.calibrate.calibrate import freeze_weights, summarise
from qdq.compress.method import CompressedModel, Method, Session
from qdq.compress.torch_dynamic import quantize_dynamic, save_dynamic
from qdq.inject import inject
from qdq.inject.quantizer import QuantLinear
from qdq.inject.spec import named_spec


class Dynamic(Method):
    """INT8 weights now, input ranges at run time: no data, no training."""

    name = "dynamic"

    def run(self, session: Session, before: CompressedModel) -> list[CompressedModel]:
        """The model for our engines, and torch.ao's baseline, both scored."""
        with session.screen.stage("dynamic") as stage:
            spec = named_spec("dynamic")
            model = copy.deepcopy(before.model).train(False)
            inject(model, spec)
            freeze_weights(model)
            table = summarise(model, "dynamic", None, 0, 0)
            ours = before.evolve("dynamic", {"inputs": "at run time"}, model=model, spec=spec, table=table)
            ours = ours.scored(session.evaluate(as_executed(model)))
            baseline = quantize_dynamic(before.model)
            save = partial(save_dynamic, baseline)
            torch_ao = before.evolve("dynamic-torch", {"inputs": "torch.ao"}, model=baseline, save=save)
            torch_ao = torch_ao.scored(session.evaluate(baseline))
            stage.say(f"{ours.metric:.4f}, torch.ao {torch_ao.metric:.4f}")
        return [ours, torch_ao]


class DynamicInput(nn.Module):
    """DynamicQuantizeLinear as ONNX defines it, and back to float: u8 codes over the range of the whole tensor."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape, float32."""
        low, high = torch.aminmax(x)
        low, high = low.clamp(max=0), high.clamp(min=0)
        scale = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).tiny)
        zero = torch.round(-low / scale).clamp(0, 255)
        return ((torch.round(x / scale) + zero).clamp(0, 255) - zero) * scale


def as_executed(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model injected with placement `dynamic` that rounds linear inputs as ONNX Runtime will.

    OpenVINO quantizes them in groups along the features, which is finer.
    """
    executed = copy.deepcopy(model)
    for module in executed.modules():
        if isinstance(module, QuantLinear) and module._weight_quantizer is not None:
            module._input_quantizer = DynamicInput()  # type: ignore[assignment]  # any module that maps x to x
    return executed
