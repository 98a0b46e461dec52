"""Read from OpenVINO's compiled model which matrix multiplications run in INT8.

The runtime model holds one node per CPU primitive, each with the names of the operations it was fused from. What a
FullyConnected or MatMul multiplies is read from the element types on its two edges, not from the precision it reports:
with INT8 weights and float activations it reports i8 too, but unpacks the weights and multiplies floats. A fused block
("Subgraph") reports one precision for everything inside, so what is concluded from it is marked inferred.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from engines.precision import Verdict

INT8_TYPES = frozenset({"i8", "u8"})
MULTIPLICATIONS = frozenset({"FullyConnected", "MatMul"})
BLOCKS = frozenset({"Subgraph", "ScaledDotProductAttention"})
LAYOUT = frozenset({"Convert", "Reorder", "Reshape", "Transpose"})  # between a stored weight and its multiplication


def verdicts(runtime_model: Any) -> Callable[[str], Verdict]:
    """A lookup from ONNX node name to what the compiled model says; a primitive of its own counts before a block."""
    found: dict[str, Verdict] = {}
    blocks: dict[str, Verdict] = {}
    for node in runtime_model.get_ordered_ops():
        kind = information(node, "layerType")
        if kind in MULTIPLICATIONS:
            first, second = operand_types(node)
            verdict = Verdict({first, second} <= INT8_TYPES, False, f"OpenVINO's {kind} takes {first} and {second}")
            found |= dict.fromkeys(_multiplied(node), verdict)
        elif kind in BLOCKS:
            precision = information(node, "runtimePrecision")
            verdict = Verdict(precision in INT8_TYPES, True, f"OpenVINO runs it inside a {kind} in {precision}")
            blocks |= dict.fromkeys(origins(node), verdict)
    absent = Verdict(False, False, "OpenVINO's compiled model has no multiplication of this name")
    return lambda name: found.get(name) or blocks.get(name, absent)


def _multiplied(node: Any) -> Iterator[str]:
    """ONNX names of a multiplication: ``x.MatMul``, ``x.MatMul/DequantizationMultiply`` or ``x.MatMul_original``."""
    for name in (*origins(node), *weight_origins(node)):
        yield name.partition("/")[0].removesuffix("_original")


def operand_types(node: Any) -> tuple[str, str]:
    """Element types on the two edges of a multiplication: i8, u8, f32, …"""
    first, second = (node.input_value(index).get_element_type().get_type_name() for index in (0, 1))
    return first, second


def origins(node: Any) -> list[str]:
    """Names of the operations a primitive was fused from, in OpenVINO's spelling."""
    return [name for name in information(node, "originalLayersNames").split(",") if name]


def weight_origins(node: Any) -> Iterator[str]:
    """Names along the way from a stored weight to the multiplication `node`.

    Fused with a bias the multiplication may carry only the bias's name, but its weight still says ``x/transpose_b``.
    """
    weight = node.input_value(1).get_node()
    while information(weight, "layerType") in LAYOUT:
        yield from origins(weight)
        weight = weight.input_value(0).get_node()


def information(node: Any, key: str) -> str:
    """One entry of a primitive's run-time information, "" where it has none."""
    entries = node.get_rt_info()
    return str(entries[key].astype(str)) if key in entries else ""
