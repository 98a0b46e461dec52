"""Stage 4, export: an injected, calibrated module in, the canonical QDQ graph out."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
import onnx_ir as ir

from export.floating import Parameters, without_quantizers
from export.names import IR_VERSION, OPSET
from export.tidy import tidy
from qdq.base.artifacts import atomic_path
from qdq.errors import ExportError

if TYPE_CHECKING:
    import torch

EXTERNAL_DATA_BYTES = 2 * 1024**3 - 64 * 1024**2  # protobuf's 2 GiB limit, less room for the graph itself


@dataclass(frozen=True)
class FloatGraph:
    """The same model in floating point, written beside the quantized one."""

    path: Path  # file to write, as `export_onnx` writes its own
    parameters: Parameters  # the floating-point module's parameters and buffers by their names in the exported module


def export_onnx(
    module: torch.nn.Module,
    example: dict[str, torch.Tensor],
    outputs: Sequence[str],
    path: Path,
    floating: FloatGraph | None = None,
) -> str:
    """Export `module` (called with the tensors of `example` by name) to `path` with dynamic batch and sequence.

    The module is recorded (`export.record`), or traced by torch, which takes many times as long, where it does
    something that a recording cannot hold. Both give the same graph. Returns why it was traced, "" when it was not.

    Args:
        module: injected and calibrated, in eval mode; returns a tuple in the order of `outputs`.
        example: input name to int64 [B, S] (or [B, N, S]) with B >= 2, S >= 2: a size of one would be specialised.
        outputs: names of the graph outputs.
        path: file to write, atomically, together with its ``.data`` file when that is needed.
        floating: what to write the same graph without its quantizers to; costs no second trace.

    Raises ExportError when torch cannot trace the module or the graph does not hold what was injected.
    """
    from export.emit import emit
    from export.emitter import clean
    from export.record import Unrecorded, record

    _check_calibrated(module)
    _check_example(example)
    program, why = None, ""
    try:
        model = emit(record(module, example), outputs)
    except Unrecorded as reason:
        program, why = _trace(module, example, outputs), str(reason)
        model = program.model
    if floating is not None:  # from the graph as it is: a cleaned one has parameters folded away, names and all
        plain = without_quantizers(model, floating.parameters, clean if program is None else _optimize)
        tidy(plain)
        save(plain, floating.path)
        del plain
    if program is None:
        clean(model)
    else:
        program.optimize()
    tidy(model)
    save(model, path)
    return why


def _optimize(model: ir.Model) -> None:
    """As `ONNXProgram.optimize` does."""
    import onnxscript.optimizer

    onnxscript.optimizer.optimize_ir(model)


def _check_example(example: Mapping[str, torch.Tensor]) -> None:
    if any(size < 2 for tensor in example.values() for size in tensor.shape):
        raise ExportError("the export example needs at least two of every dimension, or torch fixes that size")


def _trace(module: torch.nn.Module, example: dict[str, torch.Tensor], outputs: Sequence[str]) -> torch.onnx.ONNXProgram:
    import torch

    # Every size is dynamic; an input of rank 3 has the choices of a question between batch and sequence.
    choices = ("choices",) if next(iter(example.values())).dim() == 3 else ()
    dimensions = [torch.export.Dim(name) for name in ("batch", *choices, "sequence")]
    shapes = {name: dict(enumerate(dimensions)) for name in example}
    with _quiet_exporter():
        try:
            program = torch.onnx.export(
                module,
                kwargs=dict(example),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(example),
                output_names=list(outputs),
                dynamic_shapes=shapes,
                verbose=False,
                optimize=False,
            )
        except (torch.onnx.OnnxExporterError, torch._dynamo.exc.TorchDynamoException, RuntimeError) as error:
            raise ExportError(f"torch.onnx.export could not trace the model: {_root_cause(error)}") from error
    assert program is not None  # dynamo=True always returns a program
    return program


def _check_calibrated(module: torch.nn.Module) -> None:
    """Raise ExportError naming a point without amax: the exporter forgets why the first of its attempts failed."""
    points = [part for part in module.modules() if hasattr(part, "point") and not getattr(part, "_disabled", False)]
    bare = [str(part.point) for part in points if not hasattr(part, "_amax")]
    if bare:
        raise ExportError(f"{len(bare)} point(s) have no amax, the first is {bare[0]}; calibrate before export")


def _root_cause(error: BaseException) -> str:
    """First line of the innermost cause: the exporter's own message is advice for its developers."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says about itself (missing torchvision, renamed dimensions); errors still raise."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def save(model: ir.Model, path: Path) -> None:
    """Write an onnx_ir model, see `save_proto`."""
    model.ir_version = IR_VERSION
    save_proto(ir.to_proto(model), path)


def save_proto(proto: onnx.ModelProto, path: Path, external_data_bytes: int = EXTERNAL_DATA_BYTES) -> None:
    """Write a model atomically, with ``<name>.data`` beside it when its initializers are too large for protobuf.

    Raises DeployError when the folder cannot be written.
    """
    data = path.with_name(path.name + ".data")
    external = sum(len(tensor.raw_data) for tensor in proto.graph.initializer) > external_data_bytes
    with atomic_path(path) as partial:
        if external:
            _save_external(proto, partial, data)
        else:
            onnx.save(proto, partial)
    if not external:
        data.unlink(missing_ok=True)  # an earlier, larger model's


def _save_external(proto: onnx.ModelProto, partial: Path, data: Path) -> None:
    with atomic_path(data) as partial_data:
        onnx.save(
            proto,
            partial,
            save_as_external_data=True,
            location=partial_data.name,
            size_threshold=1024,
            convert_attribute=False,
        )
    renamed = onnx.load(partial, load_external_data=False)
    for tensor in renamed.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data.name
    onnx.save(renamed, partial)
