"""Files of a finished run: the final model under its input's names, text files beside it, and graphs for engines."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.base.artifacts import PARTIAL_PREFIX
from qdq.base.config import choice
from qdq.calibrate.checkpoint import load_checkpoint
from qdq.compress.output import save
from qdq.errors import DeployError
from qdq.inject import inject
from qdq.inject.quantizer import folded
from qdq.inject.spec import named_spec
from qdq.loading.model import load_model
from qdq.loading.source import is_checkpoint
from qdq.pipeline.options import TARGETS
from qdq.pipeline.stages.export import export_example

if TYPE_CHECKING:
    from qdq.auto.inputs.models import Source
    from qdq.compress.method import CompressedModel, Session

TEXT = ("*.json", "*.txt", "*.model")  # of a model folder: configurations, vocabularies
INDEX = ".safetensors.index.json"  # of weights in several files, which the result has in one
ONNX = "ONNX"


def write_model(session: Session, made: CompressedModel, source: Source | None, folder: Path) -> None:
    """Write `made` into `folder` as a checkpoint, which `qdq compile --model` takes, and the text files of its input.

    Files are moved there one by one when all are whole. Raises DeployError when the place cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=folder) as scratch:
        whole = Path(scratch) / "model"
        save(session, made, whole)
        if source is not None and source.files is not None:
            copy_texts(source.files, whole)
        for file in sorted(whole.iterdir()):
            file.replace(folder / file.name)


def copy_texts(source: Path, target: Path) -> None:
    """Copy the JSON and text files of a model folder that are not written already."""
    for pattern in TEXT:
        for file in sorted(source.glob(pattern)):
            if not (target / file.name).exists() and not file.name.endswith(INDEX):
                shutil.copyfile(file, target / file.name)


def export_graph(folder: Path, name: str, backend: str | None, shape: tuple[int, int] | None = None) -> Path:
    """Write the model in `folder` as ``folder/ONNX/name``, for a backend lowered as `qdq lower` does.

    A quantized one has Q/DQ pairs; None is the graph that every target is made of. TensorRT's floating-point parts stay
    FP32: a compile measures which of them fit FP16. `shape`: batch and sequence, which are open without.

    Raises ConfigError for an unknown backend, DeployError where there is no model, and what exporting raises.
    """
    import onnx

    from export.passes import LowerOptions, lower
    from export.to_onnx import export_onnx, save_proto

    if backend is not None:
        choice(backend, [target for target in TARGETS if target != "auto"], "deploy_backend")
    graphs, target = sorted(folder.glob("*.onnx")), folder / ONNX / name
    if not (folder / "config.json").is_file() and not graphs:
        raise DeployError(f"{folder}: has no model; call compress() first")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX, dir=target.parent) as scratch:
        canonical = graphs[0] if graphs else Path(scratch) / "model.qdq.onnx"  # of an ONNX file the file itself
        if not graphs:
            loaded = _open(folder)
            with folded(loaded.model):
                export_onnx(loaded.module(), export_example(loaded), loaded.outputs, canonical)
        if backend is not None:
            (Path(scratch) / backend).mkdir()
            lower(canonical, backend, Path(scratch) / backend, options=LowerOptions(body="fp32"))
            canonical = Path(scratch) / backend / "model.onnx"
        save_proto(with_shape(onnx.load(canonical), shape), target)
    return target


def with_shape(graph: Any, shape: tuple[int, int] | None) -> Any:
    """`graph` whose inputs have this batch and sequence instead of open ones; unchanged for None."""
    for value in graph.graph.input if shape else ():
        for size, dimension in zip(shape or (), value.type.tensor_type.shape.dim, strict=False):
            dimension.dim_value = size
    return graph


def _open(folder: Path) -> Any:
    """The calibrated model of a checkpoint, or one in floating point without quantizers."""
    if is_checkpoint(folder):
        return load_checkpoint(folder)[0]
    loaded = load_model(str(folder))
    inject(loaded.model, named_spec("linear", linear=False))
    return loaded
