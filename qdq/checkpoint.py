"""Our checkpoint folder: a transformers checkpoint whose safetensors also hold every amax, and its quant spec.

The parameters are the original ones (1/sqrt(d) is applied on load, not stored), so ``AutoModel.from_pretrained`` reads
the same folder as the floating-point model, and QDQBERT state dicts, which use the same names, can be imported.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qdq.artifacts import atomic_folder, read_json, write_json
from qdq.calibrate.table import CalibrationTable
from qdq.errors import CalibrationError, ModelError
from qdq.inject import Placement, inject, quantizers
from qdq.inject.quantizer import QuantLinear
from qdq.inject.spec import QuantSpec, spec_from_mapping
from qdq.model import LoadedModel, load_model, quiet_transformers

QUANT_SPEC = "quant_spec.json"
AMAX_SUFFIX = "_amax"
POOLING_FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")


def write_checkpoint(loaded: LoadedModel, spec: QuantSpec, table: CalibrationTable, folder: Path) -> None:
    """Write the calibrated, injected model of `loaded` to `folder`, as a whole or not at all."""
    with atomic_folder(folder) as partial:
        with quiet_transformers():
            loaded.model.save_pretrained(partial)
            loaded.tokenizer.save_pretrained(partial)
        _copy_pooling(loaded.folder, partial)
        calibration = {
            "algorithm": table.algorithm,
            "percentile": table.percentile,
            "samples": table.samples,
            "tokens": table.tokens,
        }
        write_json(partial / QUANT_SPEC, {"spec": spec.as_json(), "task": loaded.task.name, "calibration": calibration})


def _copy_pooling(source: Path, target: Path) -> None:
    if (source / "modules.json").is_file():
        for name in POOLING_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
        for config in source.glob("*_*/config.json"):  # 1_Pooling and its kind
            (target / config.parent.name).mkdir()
            shutil.copyfile(config, target / config.parent.name / "config.json")


def is_checkpoint(folder: Path) -> bool:
    """Whether `folder` was written by `write_checkpoint`."""
    return (folder / QUANT_SPEC).is_file()


def read_spec(folder: Path) -> tuple[QuantSpec, dict[str, Any]]:
    """The spec a checkpoint was injected with, and the whole content of its quant_spec.json."""
    content = read_json(folder / QUANT_SPEC)
    if not isinstance(content, dict) or not isinstance(content.get("spec"), dict):
        raise ModelError(f"{folder / QUANT_SPEC}: has no 'spec'; write the checkpoint again")
    return spec_from_mapping(content["spec"], str(folder / QUANT_SPEC)), content


def load_checkpoint(folder: Path) -> tuple[LoadedModel, QuantSpec, Placement]:
    """A calibrated, injected model from a folder `write_checkpoint` wrote.

    Raises ModelError when it is none or damaged, CalibrationError naming a placed point without an amax.
    """
    if not is_checkpoint(folder):
        raise ModelError(f"{folder}: is not a calibrated checkpoint, it has no {QUANT_SPEC}; run 'qdq calibrate' first")
    spec, content = read_spec(folder)
    loaded = load_model(str(folder), task=content.get("task"))
    placement = inject(loaded.model, spec)
    load_amax(loaded.model, read_amax(folder))
    return loaded, spec, placement


def read_amax(folder: Path) -> dict[str, Tensor]:
    """Every ``…_amax`` tensor of a folder's safetensors files."""
    found: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as handle:
                found.update({key: handle.get_tensor(key) for key in handle.keys() if key.endswith(AMAX_SUFFIX)})
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path}: cannot be read ({error}); copy the checkpoint again") from error
    return found


def load_amax(model: nn.Module, amax: Mapping[str, Tensor]) -> None:
    """Set every placed quantizer from our own checkpoint's tensors. Raises CalibrationError naming a missing one."""
    paths = {id(module): path for path, module in model.named_modules()}
    for name, point in quantizers(model).items():
        key = f"{paths[id(point)]}.{AMAX_SUFFIX}"
        if key not in amax:
            raise CalibrationError(f"{name}: the checkpoint has no amax for it; calibrate again")
        point.set_amax(amax[key])


def import_qdqbert(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Take the `_amax` of a QDQBERT state dict; returns (points set, keys that match no placed point).

    QDQBERT divides scores by sqrt(d) after the first matmul, we scale the query projection before it, so the amax of
    ``matmul_q`` and of the query weight are scaled the same way. A leading ``bert.`` may differ on either side.
    """
    factors = _query_factors(model)
    points = {_bare(path): (path, module) for path, module in model.named_modules() if hasattr(module, "set_amax")}
    imported, unmatched = [], []
    for key, value in state.items():
        if not key.endswith(AMAX_SUFFIX):
            continue
        path, point = points.get(_bare(key.removesuffix(f".{AMAX_SUFFIX}")), ("", None))
        if point is None:
            unmatched.append(key)
            continue
        axis = point.axis
        shaped = value.reshape(-1, 1) if axis is not None else value.reshape(())
        point.set_amax(shaped.to(torch.float32) * factors.get(path, 1.0))
        imported.append(point.point)
    return imported, unmatched


def _query_factors(model: nn.Module) -> dict[str, float]:
    """Module paths of the quantizers that see scaled queries -> the factor."""
    factors: dict[str, float] = {}
    for path, module in model.named_modules():
        if isinstance(module, QuantLinear) and module.output_scale != 1.0:
            factors[f"{path}._weight_quantizer"] = module.output_scale
            factors[f"{path.rpartition('.')[0]}.matmul_q_input_quantizer"] = module.output_scale
    return factors


def _bare(path: str) -> str:
    return path.removeprefix("bert.")
