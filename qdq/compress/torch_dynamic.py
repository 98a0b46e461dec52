"""torch.ao's dynamic quantization of linears, and two forms of folder that it is saved in and loads from again.

torch's own state dict keeps the weights as packed objects, which only a pickle can hold. `compress()` writes them as
INT8 codes, scale and zero-point in safetensors, and packs them again on loading. `save_pretrained` writes config.json
and pytorch_model.bin, as walkthroughs of dynamic quantization show it; it is read back without executing code in it.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedModel

from qdq.base.artifacts import atomic_path, write_json
from qdq.errors import ConfigError, ModelError
from qdq.inject.relative import model_class, relative_kind
from qdq.loading.kinds import TASKS, detect_task
from qdq.loading.model import quiet_transformers
from qdq.loading.source import read_object

WEIGHTS, DESCRIPTION = "dynamic.safetensors", "dynamic_quantization.json"
STATE = "pytorch_model.bin"
DAMAGED = (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, EOFError, SafetensorError)


class DynamicModel:
    """Saving and loading of a model whose linears are dynamic; transformers' own cannot write their packed weights."""

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write config.json and pytorch_model.bin, torch's state dict, to a folder."""
        model, folder = cast(PreTrainedModel, self), Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        _save_config(model, folder)
        with atomic_path(folder / STATE) as partial:
            torch.save(model.state_dict(), partial)

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> PreTrainedModel:
        """The model that `save_pretrained` or `compress()` wrote, ready to run. Raises ModelError for another folder.

        Nothing in pytorch_model.bin is executed: torch reads tensors from it, and refuses everything else.
        """
        place = Path(folder)
        if not (place / STATE).is_file():
            return load_dynamic(place)
        try:
            model = quantize_dynamic(_plain(place))
            with warnings.catch_warnings(action="ignore"):  # torch warns of a storage class that it uses itself
                state = torch.load(place / STATE, map_location="cpu", weights_only=True)
            model.load_state_dict(state)
        except (*DAMAGED, UnpicklingError) as error:
            raise ModelError(
                f"{place}: cannot be loaded as a dynamically quantized model ({_reason(error)}); give a folder that "
                "quantize_dynamic(model).save_pretrained wrote, whole"
            ) from error
        model.train(False)
        return model


def quantize_dynamic(
    model: PreTrainedModel, qconfig_spec: Collection[type] = (nn.Linear,), dtype: torch.dtype = torch.qint8
) -> PreTrainedModel:
    """A copy of `model` whose every Linear is torch.ao's dynamic one: per-tensor INT8 weights, inputs at run time.

    The call is that of torch.quantization.quantize_dynamic; the model that comes out also has `save_pretrained` and
    `from_pretrained` (`DynamicModel`). Raises ConfigError for other layers than Linear, or another type than qint8.
    """
    if set(qconfig_spec) != {nn.Linear} or dtype != torch.qint8:
        raise ConfigError("quantize_dynamic: makes INT8 of linears; give {torch.nn.Linear} and dtype=torch.qint8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its move to torchao on every call
        from torch.ao import quantization

        made = quantization.quantize_dynamic(model.train(False), {nn.Linear}, dtype=dtype)  # type: ignore[no-untyped-call]
    made.__class__ = _saveable(type(made))  # type: ignore[arg-type]  # mypy takes no class for hashable
    return cast(PreTrainedModel, made)


@cache
def _saveable(kind: type) -> type:
    """A class of the same name that `DynamicModel` saves and loads."""
    return kind if issubclass(kind, DynamicModel) else type(kind.__name__, (DynamicModel, kind), {})


def save_dynamic(model: PreTrainedModel, folder: Path) -> None:
    """Write what `quantize_dynamic` returned to `folder`: config.json, dynamic.safetensors and a description."""
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
    _save_config(model, folder)
    write_json(folder / DESCRIPTION, {"format": 1, "quantizer": "torch.ao dynamic qint8", "linears": sorted(linears)})


def _save_config(model: PreTrainedModel, folder: Path) -> None:
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)


def _plain(folder: Path) -> PreTrainedModel:
    """The model that the folder's configuration describes, with weights of no meaning."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    task = TASKS[detect_task(config.architectures, str(folder)).name]
    with quiet_transformers():
        build = model_class(task.auto(), config)
        return cast(PreTrainedModel, build.from_config(config) if relative_kind(config) is None else build(config))


def load_dynamic(folder: Path) -> PreTrainedModel:
    """The model `save_dynamic` wrote, ready to run. Raises ModelError when the folder is none or damaged."""
    if not (folder / DESCRIPTION).is_file():
        raise ModelError(f"{folder}: has no {DESCRIPTION}; give a folder that strategy=dynamic wrote for torch")
    expected = read_object(folder / DESCRIPTION)["linears"]
    # The model that the configuration describes gets the weights.
    try:
        tensors = load_file(folder / WEIGHTS)
        model = quantize_dynamic(_plain(folder))
        linears = dict(_linears(model))
        if sorted(linears) != expected:
            raise ModelError(f"{folder}: its configuration has other linears than its weights; copy both again")
        for path, linear in linears.items():
            codes, scale, zero = (tensors.pop(f"{path}.{part}") for part in ("weight", "scale", "zero_point"))
            weight = torch._make_per_tensor_quantized_tensor(codes, float(scale), int(zero))
            linear.set_weight_bias(weight, tensors.pop(f"{path}.bias", None))
        _load_rest(model, tensors, folder)
    except DAMAGED as error:
        raise ModelError(f"{folder}: cannot be loaded ({_reason(error)}); copy it again") from error
    model.train(False)
    return model


def _reason(error: Exception) -> str:
    """The first line of an error, or its kind where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


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
