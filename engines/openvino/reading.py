"""Reading a file into OpenVINO, safe for this CPU: an ONNX file is made so, an IR carries the mark of its build."""

from __future__ import annotations

import io
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines.instructions import Int8Sums
from engines.openvino.saturation import fit_products
from qdq.base.artifacts import PARTIAL_PREFIX
from qdq.errors import BuildError, DeployError

MARK = ("qdq", "int8_products")  # of an IR that multiplies INT8: the kind of CPU it was built for
EXACT, FITTED = "need exact sums", "fit saturating pairs"
LARGEST = 3 << 29  # bytes of a model that is handed over in memory; protobuf ends at 2 GiB

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Network:
    """A model in OpenVINO's memory, and what was done to it for a CPU whose products saturate (None: nothing)."""

    model: Any  # openvino.Model
    fitted: dict[str, Any] | None = None


def read_network(core: Any, file: Path, sums: Int8Sums) -> Network:
    """Read an IR or ONNX file for a CPU with `sums`.

    Raises RuntimeError as OpenVINO does when it cannot be read, BuildError for an IR whose products would saturate.
    """
    if file.suffix == ".onnx" and sums.saturate and _quantized(file):
        return _read_fitted(core, file)
    model = core.read_model(str(file))
    built = model.get_rt_info(list(MARK)).value if model.has_rt_info(list(MARK)) else None
    if built == EXACT and sums.saturate:
        raise BuildError(
            f"{file} was built for a CPU that sums INT8 products exactly; on this one ({sums}) its results would be "
            "wrong: build it again here, or choose --target onnxruntime, which is exact and faster on such a CPU"
        )
    if built == FITTED and not sums.saturate:
        logger.warning(
            "%s was built for a CPU whose INT8 products saturate: its weights are coarser than this one (%s) needs "
            "and its attention is float; build it again here",
            file,
            sums,
        )
    return Network(model)


def mark(model: Any, sums: Int8Sums) -> None:
    """Write into a model that multiplies INT8 the kind of CPU it is for."""
    model.set_rt_info(FITTED if sums.saturate else EXACT, list(MARK))


def _quantized(file: Path) -> bool:
    """True for a graph with Q/DQ. A file that cannot be read is left to OpenVINO, which says why."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        nodes = onnx.load(file, load_external_data=False).graph.node
    except (OSError, DecodeError):
        return False
    return any(node.op_type == "DequantizeLinear" for node in nodes)


def _read_fitted(core: Any, file: Path) -> Network:
    import onnx

    try:
        model, fitted = fit_products(file)
    except (OSError, onnx.checker.ValidationError) as error:  # its external data is not there
        raise RuntimeError(str(error)) from error
    if model.ByteSize() <= LARGEST:
        return Network(core.read_model(io.BytesIO(model.SerializeToString())), fitted)
    with tempfile.TemporaryDirectory(prefix=PARTIAL_PREFIX) as scratch:
        safe = Path(scratch) / file.name
        try:
            onnx.save(model, safe, save_as_external_data=True)
        except OSError as error:
            raise DeployError(f"cannot write {safe}: {error}; make room there, or set TMPDIR") from error
        return Network(core.read_model(str(safe)), fitted)
