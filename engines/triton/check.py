"""Read a Triton model repository back and compare it with the engine, naming the first difference."""

from __future__ import annotations

import filecmp
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np

from engines.targets import TARGETS
from engines.triton.interface import (
    CONFIG_FILE,
    DATA_TYPES,
    LABELS_FILE,
    VERSION,
    WARMUP_FOLDER,
    data_type,
    dims,
    label_output,
    require_batch,
    served_files,
    served_models,
)
from engines.triton.model_config import read_config, schema
from engines.triton.settings import PLATFORMS, TritonSettings
from engines.types import BuiltEngine, TensorInfo
from qdq.base.config import nearest
from qdq.errors import DeployError


def check_repository(folder: Path, engine: BuiltEngine, settings: TritonSettings) -> None:
    """Compare the repository `folder` with `engine`: its one model, or one per bucket, each of its own fixed length.

    Raises DeployError naming the first difference: a model too many or too few, text the schema refuses, name, backend,
    batching, a tensor's name, type or dims, an engine file, a warm-up sample, a label file, or buckets on the CPU that
    do not share one rate-limiter resource. Raises Unavailable without tritonclient.
    """
    models = served_models(engine, settings)
    found = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    _same(folder, "models", found, sorted(models))
    for name, served in sorted(models.items()):
        config = _check_model(folder / name, served)
        if settings.buckets and not TARGETS[config.backend].gpu:
            limits = config.instance_group[0].rate_limiter.resources
            resources = [(item.name, getattr(item, "global")) for item in limits]
            expected = [(f"{settings.name}_cores", True)]
            _same(folder / name / CONFIG_FILE, "rate_limiter resources", resources, expected)


def _check_model(model: Path, engine: BuiltEngine) -> Any:
    """Compare one model with `engine`; its configuration."""
    path = model / CONFIG_FILE
    config = read_config(path)
    _same(path, "name (the folder decides)", config.name, model.name)
    if config.backend not in PLATFORMS:
        raise DeployError(f"{path}: unknown backend '{config.backend}'; {nearest(config.backend, PLATFORMS)}")
    _same(path, "platform", config.platform, PLATFORMS[config.backend])
    _check_batching(path, config)
    require_batch(engine, config.max_batch_size)
    _check_tensors(path, config, "input", engine.inputs)
    _check_tensors(path, config, "output", engine.outputs)
    _check_instances(path, config)
    _check_files(model, config, engine)
    for sample in config.model_warmup:
        _check_warmup(model, config, sample)
    _check_labels(model, config, engine)
    return config


def _check_batching(path: Path, config: Any) -> None:
    if not TARGETS[config.backend].batches:
        _same(path, f"max_batch_size (the {config.backend} backend takes the client's batch)", config.max_batch_size, 0)
        _same(path, "dynamic_batching present", config.HasField("dynamic_batching"), False)
        return
    if config.max_batch_size < 1:
        raise DeployError(f"{path}: max_batch_size is {config.max_batch_size}; it must be at least 1")


def _check_tensors(path: Path, config: Any, kind: Literal["input", "output"], expected: tuple[TensorInfo, ...]) -> None:
    found = getattr(config, kind)
    _same(path, f"{kind} names", sorted(tensor.name for tensor in found), sorted(info.name for info in expected))
    by_name = {tensor.name: tensor for tensor in found}
    for info in expected:
        tensor, where = by_name[info.name], f"of {kind} '{info.name}'"
        _same(path, f"data_type {where}", _type_name(tensor.data_type), data_type(info.name, info.dtype))
        _same(path, f"dims {where}", list(tensor.dims), dims(info, batched=TARGETS[config.backend].batches))


def _check_instances(path: Path, config: Any) -> None:
    group = schema()[0].ModelInstanceGroup
    expected = group.KIND_GPU if TARGETS[config.backend].gpu else group.KIND_CPU
    kind = "KIND_GPU" if expected == group.KIND_GPU else "KIND_CPU"
    if [item.kind for item in config.instance_group] != [expected] or config.instance_group[0].count < 1:
        raise DeployError(f"{path}: the {config.backend} backend needs one instance_group of {kind} with count >= 1")


def _check_files(model: Path, config: Any, engine: BuiltEngine) -> None:
    expected = served_files(engine, config.backend)
    _same(model / CONFIG_FILE, "default_model_filename", config.default_model_filename, next(iter(expected)))
    version = model / VERSION
    found = sorted(path.name for path in version.iterdir()) if version.is_dir() else []
    _same(version, "files", found, sorted(expected))
    for name, source in expected.items():
        if not filecmp.cmp(source, version / name, shallow=False):
            raise DeployError(f"{version / name} is not the engine's {source}; write the repository again")


def _check_warmup(model: Path, config: Any, sample: Any) -> None:
    """Compare one warm-up sample with the inputs: batch, names, types, dims, and the size of its data files."""
    path, where = model / CONFIG_FILE, f"warm-up '{sample.name}'"
    limit = config.max_batch_size or 1
    if not 1 <= sample.batch_size <= limit:
        raise DeployError(f"{path}: {where} has batch_size {sample.batch_size}; it must lie in 1..{limit}")
    # The sample has every input of the model, in its type and with dims that it takes.
    inputs = {tensor.name: tensor for tensor in config.input}
    _same(path, f"{where} inputs", sorted(sample.inputs), sorted(inputs))
    for name, entry in sorted(sample.inputs.items()):
        _same(path, f"{where} data_type of '{name}'", _type_name(entry.data_type), _type_name(inputs[name].data_type))
        sizes, declared = list(entry.dims), list(inputs[name].dims)
        fits = len(sizes) == len(declared) and all(
            s >= 1 and d in (-1, s) for s, d in zip(sizes, declared, strict=True)
        )
        if not fits:
            raise DeployError(f"{path}: {where} dims of '{name}' are {sizes}; the input takes {declared}")
        data = model / WARMUP_FOLDER / entry.input_data_file
        if not entry.input_data_file or not data.is_file():
            raise DeployError(
                f"{path}: {where} needs the data file {data}, which is missing; write the repository again"
            )
        _same(data, "bytes", data.stat().st_size, prod(sizes) * _item_size(entry.data_type))


def _check_labels(model: Path, config: Any, engine: BuiltEngine) -> None:
    for output in config.output:
        if not output.label_filename:
            continue
        path = model / output.label_filename
        _same(model / CONFIG_FILE, f"label_filename of '{output.name}'", output.label_filename, LABELS_FILE)
        if not path.is_file():
            raise DeployError(f"{path} is missing, but output '{output.name}' names it; write the repository again")
        labels = tuple(path.read_text(encoding="utf-8").splitlines())
        _same(path, "output with as many classes as labels", label_output(engine, labels), output.name)


def _type_name(number: int) -> str:
    value = schema()[0].DataType.DESCRIPTOR.values_by_number.get(number)
    return value.name if value is not None else f"unknown data type {number}"


def _item_size(data_type_number: int) -> int:
    name = _type_name(data_type_number)
    return next(np.dtype(dtype).itemsize for dtype, spelling in DATA_TYPES.items() if spelling == name)


def _same(path: Path, what: str, found: object, expected: object) -> None:
    if found != expected:
        raise DeployError(f"{path}: {what}: found {found!r}, the engine needs {expected!r}; write the repository again")
