"""Write run_engine.py, which runs and times the plan on the machine with the GPU, without this project."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from engines.interface import read_model
from engines.packing import Packing
from engines.tensorrt.settings import TensorRTSettings, axes_of
from engines.tensorrt_rtx.libraries import PACKAGES, installed_version
from engines.types import TensorInfo
from qdq.base.artifacts import write_text
from qdq.base.versions import versions

if TYPE_CHECKING:
    import onnx

TEMPLATE = Path(__file__).with_name("run_template.py")
BEGIN, END = "# begin values of this model\n", "# end values of this model\n"
SCRIPT, PLAN = "run_engine.py", "model.rtx"
CARRIED = ("Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Slice")  # what an id passes on its way to a table


def write_run_script(
    lowered: Path, folder: Path, inputs: Sequence[TensorInfo], settings: TensorRTSettings, capabilities: Sequence[int]
) -> Path:
    """Write run_engine.py into `folder` for the plan of `lowered`; the same arguments give the same bytes.

    A plan whose batch is not padded needs packing.py beside it. Raises BuildError for an input no encoder has,
    DeployError when the folder cannot be written.
    """
    return write_text(folder / SCRIPT, run_script(read_model(lowered), inputs, settings, capabilities))


def run_script(
    model: onnx.ModelProto, inputs: Sequence[TensorInfo], settings: TensorRTSettings, capabilities: Sequence[int]
) -> str:
    """Text of run_engine.py: the template with this model's values in place of its examples."""
    axes = padded_axes(settings.packing) or {tensor.name: list(axes_of(tensor)) for tensor in inputs}
    used = {axis for shape in axes.values() for axis in shape}
    ranges = {axis: list(sizes) for axis, sizes in settings.ranges().items() if axis in used}
    packages = " ".join(f"{name}=={versions()[name]}" for name, _ in PACKAGES)
    values = (
        f'PLAN, CACHE = "{PLAN}", "{PLAN}.cache"\n'
        f"VERSION = {installed_version()!r}\n"
        f"CAPABILITIES = {list(capabilities)!r}\n"
        f"INPUTS: dict[str, list[int | str]] = {axes!r}\n"
        f"RANGES: dict[str, list[int]] = {ranges!r}  # axis: min, opt, max\n"
        f"ROWS: dict[str, int] = {rows(model)!r}  # rows of the table that an input looks up; other inputs are masks\n"
        f"PACKING: dict[str, Any] | None = {_plain(settings.packing)!r}\n"
        f'INSTALL = "pip install numpy {packages}"\n'
    )
    head, rest = TEMPLATE.read_text(encoding="utf-8").split(BEGIN)
    return f"{head}{BEGIN}{values}{END}{rest.split(END)[1]}"


def padded_axes(form: Packing | None) -> dict[str, list[int | str]]:
    """Axes of the padded arrays that a batch without padding is made of, by their names; none for a padded one."""
    if form is None:
        return {}
    axes: list[int | str] = ["batch", "choices", "sequence"] if form.choices else ["batch", "sequence"]
    names = ("input_ids", "attention_mask", *({"token_type_ids"} & set(form.inputs)))
    return {name: list(axes) for name in names}


def _plain(form: Packing | None) -> Mapping[str, object] | None:
    return None if form is None else {**asdict(form), "inputs": list(form.inputs)}


def rows(model: onnx.ModelProto) -> dict[str, int]:
    """Rows of the table that each input looks up, the smallest of several: ids below it are valid.

    An input that looks up none is left out.
    """
    graph = model.graph
    tables = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    for node in graph.node:
        if node.op_type in ("DequantizeLinear", "Cast") and node.input[0] in tables:
            tables[node.output[0]] = tables[node.input[0]]
    found: dict[str, int] = {}
    for value in graph.input:
        sizes = [tables[name] for name in _looked_up(graph, value.name) if name in tables]
        if sizes and value.name not in tables:
            found[value.name] = min(sizes)
    return found


def _looked_up(graph: onnx.GraphProto, name: str) -> Iterator[str]:
    """Data of every Gather that takes the tensor `name`, unchanged, as its indices."""
    for node in graph.node:
        if node.op_type == "Gather" and node.input[1] == name:
            yield node.input[0]
        elif node.op_type in CARRIED and node.input[0] == name:
            yield from _looked_up(graph, node.output[0])
