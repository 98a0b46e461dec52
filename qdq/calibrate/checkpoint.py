"""Our checkpoint folder: a transformers checkpoint whose safetensors also hold every amax, and its quant spec.

The parameters are the original ones: 1/sqrt(d) is applied on load, and changes by treatments are tensors of their own
beside a weight (`TREATMENTS` of `QuantLinear` and `Residual`). ``AutoModel.from_pretrained`` reads the folder as the
floating-point model, and QDQBERT state dicts, which use the same names, can be imported.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from qdq.base.artifacts import atomic_folder, write_failure, write_json
from qdq.calibrate.table import CalibrationTable
from qdq.calibrate.treatments.scale_residuals import producer
from qdq.errors import CalibrationError, ConfigError, ModelError
from qdq.inject import Placement, inject, quantizers
from qdq.inject.embedding import QuantEmbedding
from qdq.inject.quantizer import QuantLinear, TensorQuantizer, treated, weight_amax
from qdq.inject.spec import QuantSpec, spec_from_mapping
from qdq.loading.model import OURS, LoadedModel, load_model, quiet_transformers
from qdq.loading.own_class import record_class
from qdq.loading.pooling import SETTINGS, TRANSFORMER
from qdq.loading.source import QUANT_SPEC, is_checkpoint, read_object, weight_files

AMAX_SUFFIX = "_amax"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
POOLING_FILES = ("modules.json", SETTINGS, *TRANSFORMER)


def write_checkpoint(loaded: LoadedModel, spec: QuantSpec, table: CalibrationTable, folder: Path) -> None:
    """Write the calibrated, injected model of `loaded` to `folder`, as a whole or not at all.

    Raises DeployError when the place cannot be written or the disk is full.
    """
    with atomic_folder(folder) as partial:
        try:
            with quiet_transformers():
                loaded.model.save_pretrained(partial)
        except SafetensorError as error:  # safetensors raises it for a full disk
            raise write_failure(folder, OSError(str(error))) from error
        # The source's own tokenizer: saving the object would store the truncation and padding of its last call
        _copy(loaded.folder, partial, {*loaded.tokenizer.vocab_files_names.values(), *TOKENIZER_FILES})
        record_class(partial, type(loaded.model))
        if loaded.pooling is not None:
            _copy(loaded.folder, partial, [*POOLING_FILES, *_pooling_modules(loaded.folder)])
        write_quant_spec(partial, spec, loaded.task.name, table)


def write_quant_spec(folder: Path, spec: QuantSpec, task: str, table: CalibrationTable) -> None:
    """The file that makes a transformers checkpoint with amax one of ours."""
    write_json(folder / QUANT_SPEC, {"spec": spec.as_json(), "task": task, "calibration": table.source})


def _copy(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy the files that are there."""
    for name in names:
        if (source / name).is_file():
            (target / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, target / name)


def _pooling_modules(source: Path) -> list[str]:
    """The configurations of a sentence-transformers head's modules, where `read_chain` looks for them."""
    modules = json.loads((source / "modules.json").read_text(encoding="utf-8"))
    folders = [str(module.get("path", "")) for module in modules]
    return [f"{folder}/config.json" for folder in folders if folder and Path(folder).name == folder]


def read_spec(folder: Path) -> tuple[QuantSpec, dict[str, Any]]:
    """The spec a checkpoint was injected with, and the whole content of its quant_spec.json. Raises ModelError."""
    path = folder / QUANT_SPEC
    content = read_object(path)
    if not isinstance(content.get("spec"), dict) or not isinstance(content.get("task"), str):
        raise ModelError(f"{path}: has no 'spec' or no 'task'; write the checkpoint again with 'qdq calibrate'")
    try:
        return spec_from_mapping(content["spec"], str(path)), content
    except ConfigError as error:
        raise ModelError(f"{error}; write the checkpoint again with 'qdq calibrate'") from error


def load_checkpoint(folder: Path, model_class: str | None = None) -> tuple[LoadedModel, QuantSpec, Placement]:
    """A calibrated, injected model from a folder `write_checkpoint` wrote; `model_class` as in `load_model`.

    Raises ModelError when it is none or damaged, CalibrationError naming a placed point without an amax.
    """
    if not is_checkpoint(folder):
        raise ModelError(f"{folder}: is not a calibrated checkpoint, it has no {QUANT_SPEC}; run 'qdq calibrate' first")
    spec, content = read_spec(folder)
    loaded = load_model(str(folder), task=content["task"], model_class=model_class)
    placement = inject(loaded.model, spec)
    load_amax(loaded.model, read_amax(folder))
    return loaded, spec, placement


def read_amax(folder: Path, allow_pickle: bool = False) -> dict[str, Tensor]:
    """Every ``…_amax`` tensor of a folder's weight files, and the treatments of linears.

    Raises ModelError for a damaged or refused file.
    """
    found: dict[str, Tensor] = {}
    for path in weight_files(folder, allow_pickle):
        try:
            found |= _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
        except (SafetensorError, UnpicklingError, OSError, RuntimeError, EOFError, AttributeError) as error:
            raise ModelError(f"{path}: cannot be read ({error}); copy the checkpoint again") from error
    return found


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as handle:
        return {key: handle.get_tensor(key) for key in handle.keys() if key.endswith(OURS)}  # noqa: SIM118


def _read_pickle(path: Path) -> dict[str, Tensor]:
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {key: value for key, value in state.items() if key.endswith(AMAX_SUFFIX)}


def load_amax(model: nn.Module, amax: Mapping[str, Tensor]) -> None:
    """Set every placed quantizer from our own checkpoint's tensors.

    Raises CalibrationError naming a point whose amax is missing, of another shape, or not finite.
    """
    paths = {id(module): path for path, module in model.named_modules()}
    shapes = _amax_shapes(model)
    for name, point in quantizers(model).items():
        key = f"{paths[id(point)]}.{AMAX_SUFFIX}"
        if key not in amax:
            raise CalibrationError(f"{name}: the checkpoint has no amax for it; calibrate again")
        if amax[key].shape != shapes[name]:
            raise CalibrationError(
                f"{name}: the checkpoint's amax is {list(amax[key].shape)}, not {list(shapes[name])}; calibrate again"
            )
        point.set_amax(amax[key])
    _load_treatments(model, amax)


def _load_treatments(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Give every part the treatments of `tensors` (by state dict key). Raises CalibrationError for a wrong shape."""
    parts = dict(model.named_modules())
    for path, part in treated(model):
        owner = part if isinstance(part, QuantLinear) else producer(path, parts)
        for name in part.TREATMENTS:
            value = tensors.get(f"{path}.{name}")
            expected = None if value is None or owner is None else _treatment_shape(owner, name)
            if value is not None and expected is not None and value.shape != expected:
                raise CalibrationError(
                    f"{path}: the checkpoint's {name} is {list(value.shape)}, not {list(expected)}; calibrate again"
                )
            part.treat(name, value)


def _treatment_shape(linear: QuantLinear, name: str) -> torch.Size:
    """Of a treatment of `linear`, or of the residual add behind it."""
    rows, columns = linear.weight.shape[:1], linear.weight.shape[1:]
    return {"_codes": linear.weight.shape, "_smoothing": columns, "_column_scale": columns}.get(name, rows)


def table_amax(model: nn.Module) -> dict[str, Tensor]:
    """The amax of every placed embedding table, by checkpoint key: the largest magnitude of each row, [rows, 1]."""
    return {
        f"{path}._weight_quantizer.{AMAX_SUFFIX}": weight_amax(table.weight, 0)
        for path, table in model.named_modules()
        if isinstance(table, QuantEmbedding)
    }


def import_qdqbert(model: nn.Module, state: Mapping[str, Tensor]) -> tuple[list[str], list[str]]:
    """Take the `_amax` of a QDQBERT state dict; returns (points set, keys that match no placed point).

    QDQBERT divides scores by sqrt(d) after the first matmul, we scale the query projection before it, so the amax of
    ``matmul_q`` and of the query weight are scaled the same way. A leading ``bert.`` may differ on either side.
    Raises ModelError where the number of values is not that of the placed point (per channel or per tensor).
    """
    factors, shapes = query_factors(model), _amax_shapes(model)
    points = {_bare(path): (path, part) for path, part in model.named_modules() if isinstance(part, TensorQuantizer)}
    imported, unmatched = [], []
    for key, value in state.items():
        if not key.endswith(AMAX_SUFFIX):
            continue
        path, point = points.get(_bare(key.removesuffix(f".{AMAX_SUFFIX}")), ("", None))
        if point is None:
            unmatched.append(key)
            continue
        shape = shapes[point.point]
        if value.numel() != shape.numel():
            raise ModelError(
                f"{key}: holds {value.numel()} values and the point has {shape.numel()}; set per_channel_weights in "
                "the quant spec to what the checkpoint was calibrated with"
            )
        point.set_amax(value.reshape(shape).to(torch.float32) * factors.get(path, 1.0))
        imported.append(point.point)
    return imported, unmatched


def _amax_shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Point name -> shape of its amax: [out, 1] for a per-channel weight, [] for everything else."""
    shapes = {name: torch.Size() for name in quantizers(model)}
    for module in model.modules():
        if (
            isinstance(module, QuantLinear | QuantEmbedding)
            and (point := module._weight_quantizer) is not None
            and point.axis is not None
        ):
            shapes[point.point] = torch.Size((module.effective_weight.shape[0], 1))
    return shapes


def query_factors(model: nn.Module) -> dict[str, float]:
    """Module paths of the quantizers that see scaled queries -> the factor."""
    factors: dict[str, float] = {}
    for path, module in model.named_modules():
        if isinstance(module, QuantLinear) and module.output_scale != 1.0:
            factors[f"{path}._weight_quantizer"] = module.output_scale
            factors[f"{path.rpartition('.')[0]}.matmul_q_input_quantizer"] = module.output_scale
    return factors


def _bare(path: str) -> str:
    return path.removeprefix("bert.")
