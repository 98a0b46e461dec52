"""Triton's spelling of an engine's tensors and files: data types, dims, and the file each backend loads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from engines.targets import TARGETS
from engines.triton.settings import TritonSettings, bucket_model
from engines.types import BuiltEngine, TensorInfo
from qdq.errors import DeployError

VERSION = "1"  # the only version folder: a new build replaces the repository as a whole
CONFIG_FILE = "config.pbtxt"
LABELS_FILE = "labels.txt"
WARMUP_FOLDER = "warmup"  # fixed by Triton: input_data_file is looked up there

DATA_TYPES: Mapping[str, str] = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}


def data_type(name: str, dtype: str) -> str:
    """Triton's spelling of tensor `name`'s numpy `dtype`, e.g. ``TYPE_INT64``. Raises DeployError when it has none."""
    if dtype not in DATA_TYPES:
        raise DeployError(f"{name}: no Triton data type for '{dtype}'; known: {', '.join(DATA_TYPES)}")
    return DATA_TYPES[dtype]


def dims(info: TensorInfo, *, batched: bool) -> list[int]:
    """``dims`` of a tensor: -1 for dynamic, and no batch dimension when Triton adds it itself (`batched`)."""
    sizes = [size if isinstance(size, int) else -1 for size in info.shape]
    if any(size < 1 for size in info.shape if isinstance(size, int)):
        raise DeployError(f"{info.name}: shape {spell(info.shape)} has a dimension below 1, which Triton refuses")
    return sizes[1:] if batched else sizes


def served_models(engine: BuiltEngine, settings: TritonSettings) -> dict[str, BuiltEngine]:
    """Models of a repository by name: `engine` itself, or for every bucket as one that takes its length only.

    Raises DeployError when the engine was built for another length than a bucket's.
    """
    if not settings.buckets:
        return {settings.name: engine}
    return {bucket_model(settings.name, width): of_width(engine, width) for width in settings.buckets}


def of_width(engine: BuiltEngine, width: int) -> BuiltEngine:
    """`engine` as one that takes `width` tokens only: its sequence dimension, the inputs' last, is fixed.

    Raises DeployError when the engine was built for another length.
    """
    last = {info.name: info.shape[-1] for info in engine.inputs}
    for name, size in last.items():
        if isinstance(size, int) and size != width:
            raise DeployError(f"{name}: the engine takes {size} tokens, so it cannot serve a bucket of {width}")
    names = {size for size in last.values() if isinstance(size, str)}

    def fixed(info: TensorInfo, last_too: bool) -> TensorInfo:
        shape = [width if size in names else size for size in info.shape]
        if last_too:
            shape[-1] = width  # a dynamic dimension without a name
        return replace(info, shape=tuple(shape))

    return replace(
        engine,
        inputs=tuple(fixed(info, True) for info in engine.inputs),
        outputs=tuple(fixed(info, False) for info in engine.outputs),
    )


def require_batch(engine: BuiltEngine, max_batch_size: int) -> None:
    """Raise DeployError unless every input and output starts with a dynamic batch dimension and has one more."""
    batch = engine.inputs[0].shape[0] if engine.inputs and engine.inputs[0].shape else None
    inner = {size for info in engine.inputs for size in info.shape[1:] if isinstance(size, str)} - {batch}
    for info in (*engine.inputs, *engine.outputs):
        first = info.shape[0] if info.shape else None
        if len(info.shape) < 2 or first in inner:
            raise DeployError(
                f"{info.name}: shape {spell(info.shape)} has no batch dimension before its own ones, so Triton cannot "
                "split a batch into answers; export it as [batch, ...]"
            )
        if isinstance(first, int):
            raise DeployError(
                f"{info.name}: the engine has a fixed batch of {first}, but Triton sends 1 to {max_batch_size} "
                "(max_batch_size); build the engine with a dynamic batch"
            )


def label_output(engine: BuiltEngine, labels: tuple[str, ...]) -> str | None:
    """Name of the [B,C] output that `labels` belong to (None without labels). Raises DeployError when none fits."""
    if not labels:
        return None
    fitting = [info.name for info in engine.outputs if len(info.shape) == 2 and info.shape[1] == len(labels)]
    if not fitting:
        shapes = ", ".join(f"{info.name} {spell(info.shape)}" for info in engine.outputs)
        raise DeployError(
            f"{len(labels)} labels fit no [batch, {len(labels)}] output (outputs: {shapes}); labels are only for "
            "classification logits, leave them out for every other task"
        )
    return fitting[0]


def served_files(engine: BuiltEngine, backend: str) -> dict[str, Path]:
    """File name in the version folder -> engine file, the model first. Raises DeployError naming what is missing."""
    possible = TARGETS[engine.target].backends if engine.target in TARGETS else ()
    if backend not in possible:
        allowed = ", ".join(possible) or "none"
        raise DeployError(f"the Triton backend '{backend}' cannot serve a {engine.target} engine; possible: {allowed}")
    if backend == "tensorrt":
        files = {"model.plan": _one(engine, (".plan", ".engine"))}
    elif backend == "openvino" and any(path.suffix == ".xml" for path in engine.files):
        xml = _one(engine, (".xml",))
        files = {"model.xml": xml, "model.bin": xml.with_suffix(".bin")}
    else:
        model = _one(engine, (".onnx",))
        files = {"model.onnx": model, **{name: model.parent / name for name in external_data(model)}}
    for path in files.values():
        if not path.is_file():
            raise DeployError(f"engine file {path} is missing; build the {engine.target} engine again")
    return files


def external_data(model: Path) -> list[str]:
    """Names of the external-data files an ONNX file refers to; they keep their names, the model holds them."""
    import onnx  # lazy: only a repository with an ONNX model needs it
    from onnx.external_data_helper import ExternalDataInfo, uses_external_data

    if not model.is_file():
        raise DeployError(f"engine file {model} is missing; build the engine again")
    tensors = onnx.load(str(model), load_external_data=False).graph.initializer
    names = sorted({ExternalDataInfo(tensor).location for tensor in tensors if uses_external_data(tensor)})
    for name in names:
        if Path(name).name != name or name == model.name:
            raise DeployError(f"{model}: external data '{name}' does not lie beside the model; export it again")
    return names


def _one(engine: BuiltEngine, suffixes: tuple[str, ...]) -> Path:
    """The one engine file with one of `suffixes`; several are settled by the name ``model.<suffix>``."""
    found = [path for path in engine.files if path.suffix in suffixes]
    named = [path for path in found if path.stem == "model"]
    if len(found) != 1 and len(named) != 1:
        have = ", ".join(path.name for path in engine.files) or "none"
        raise DeployError(
            f"the {engine.target} engine must list exactly one {' or '.join(suffixes)} file to serve (files: {have})"
        )
    return found[0] if len(found) == 1 else named[0]


def spell(shape: Iterable[int | str | None]) -> str:
    """A shape for messages: ``[batch, sequence, 384]``, with ``?`` for an unnamed dynamic dimension."""
    return f"[{', '.join('?' if size is None else str(size) for size in shape)}]"
