"""torch.ao's dynamic quantization of linears, and a folder form of it that loads again without unpickling.

torch's own state dict keeps the weights as packed objects, which only a pickle can hold; here they are written as INT8
codes, scale and zero-point in safetensors, and packed again on loading.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from qdq.base.artifacts import write_json
from qdq.errors import ModelError
from qdq.inject.relative import model_class, relative_kind
from qdq.load.kinds import TASKS, detect_task
from qdq.load.model import quiet_transformers
from qdq.load.source import read_object

WEIGHTS, DESCRIPTION = "dynamic.safetensors", "dynamic_quantization.json"


def quantize_linears(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of `model` whose every Linear is torch.ao's dynamic one: per-tensor INT8 weights, inputs at run time."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its move to torchao on every call
        from torch.ao.quantization import quantize_dynamic

        made = quantize_dynamic(model.train(False), {nn.Linear}, dtype=torch.qint8)  # type: ignore[no-untyped-call]
    return cast(PreTrainedModel, made)


def save_dynamic(model: PreTrainedModel, folder: Path) -> None:
    """Write what `quantize_linears` returned to `folder`: config.json, dynamic.safetensors and a description."""
    folder.mkdir(parents=True, exist_ok=True)
    linears = dict(_linears(model))
    tensors = {name: tensor.contiguous().clone() for name, tensor in _floats(model)}
    for path, linear in linears.items():
        weight, bias = linear.weight(), linear.bias()
        tensors[f"{path}.weight"] = weight.int_repr()
        tensors[f"{path}.scale"] = torch.tensor(weight.q_scale(), dtype=torch.float64)
        tensors[f"{path}.zero_point"] = torch.tensor(weight.q_zero_point())
        if bias is not None:
            tensors[f"{path}.bias"] = bias.detach().contiguous()
    save_file(tensors, folder / WEIGHTS)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    write_json(folder / DESCRIPTION, {"format": 1, "quantizer": "torch.ao dynamic qint8", "linears": sorted(linears)})


def load_dynamic(folder: Path) -> PreTrainedModel:
    """The model `save_dynamic` wrote, ready to run. Raises ModelError when the folder is none or damaged."""
    if not (folder / DESCRIPTION).is_file():
        raise ModelError(f"{folder}: has no {DESCRIPTION}; give a folder that strategy=dynamic wrote for torch")
    expected = read_object(folder / DESCRIPTION)["linears"]
    # Make the model that the configuration describes, and give it the weights.
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        task = TASKS[detect_task(config.architectures, str(folder)).name]
        with quiet_transformers():
            build = model_class(task.auto_class, config)
            plain = build.from_config(config) if relative_kind(config) is None else build(config)
        tensors = load_file(folder / WEIGHTS)
        model = quantize_linears(plain)
        linears = dict(_linears(model))
        if sorted(linears) != expected:
            raise ModelError(f"{folder}: its configuration has other linears than its weights; copy both again")
        for path, linear in linears.items():
            codes, scale, zero = (tensors.pop(f"{path}.{part}") for part in ("weight", "scale", "zero_point"))
            weight = torch._make_per_tensor_quantized_tensor(codes, float(scale), int(zero))
            linear.set_weight_bias(weight, tensors.pop(f"{path}.bias", None))
        _load_rest(model, tensors, folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder}: cannot be loaded ({str(error).splitlines()[0]}); copy it again") from error
    model.train(False)
    return model


def _linears(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Path and module of every dynamic Linear."""
    for path, module in model.named_modules():
        if type(module).__name__ == "Linear" and hasattr(module, "_packed_params"):
            yield path, module


def _load_rest(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    """Everything that is not quantized. Not `load_state_dict`: a dynamic Linear's demands its packed form."""
    own = dict(_floats(model))
    if own.keys() != tensors.keys():
        differing = sorted(own.keys() ^ tensors.keys())
        raise ModelError(f"{folder}: its weights and its configuration differ in {differing[0]}; copy both again")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])


def _floats(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The tensors of the state dict that belong to no dynamic Linear."""
    packed = tuple(f"{path}." for path, _ in _linears(model))
    for name, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor) and not name.startswith(packed):
            yield name, tensor
