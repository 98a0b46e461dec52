"""Finding GELU and LayerNorm, each as a single op or written out in primitive ops, also with Q/DQ pairs inside."""

from __future__ import annotations

from onnx import NodeProto

from export.lint.graph import LintGraph
from export.lint.patterns import Gelu, Norm, before, next_reader

GELU_OPS = frozenset({"BiasGelu", "FastGelu", "Gelu", "QuickGelu"})
NORM_OPS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization"})

Crossed = tuple[NodeProto, ...]


def find_gelus(graph: LintGraph) -> tuple[Gelu, ...]:
    """Every GELU: one op, x·(1+erf(x/√2))/2, or the tanh approximation."""
    found = []
    for node in graph.nodes:
        if node.op_type in GELU_OPS:
            found.append(Gelu(node, node.input[0], node.output[0]))
        elif node.op_type in ("Erf", "Tanh"):
            gelu = _written_gelu(graph, node)
            if gelu is not None:
                found.append(gelu)
    return tuple(found)


def _written_gelu(graph: LintGraph, node: NodeProto) -> Gelu | None:
    """The chain around an Erf or Tanh; None when it is not followed by +1 and a product with the input."""
    plus_one, crossed_one = next_reader(graph, node.output[0], ("Add",), constant=True)
    if plus_one is None:
        return None
    product, crossed_two = next_reader(graph, plus_one.output[0], ("Mul",))
    if product is None:
        return None
    if len(graph.computed_inputs(product)) == 1:  # ½·(1+erf) first, then ·x
        product, crossed_half = next_reader(graph, product.output[0], ("Mul",), constant=False)
        crossed_two += crossed_half
        if product is None:
            return None
    source, crossed_in = _chain_input(graph, node, product)
    output: str = product.output[0]
    crossed_out: Crossed = ()
    half, crossed_half = next_reader(graph, output, ("Mul",), constant=True)
    if half is not None:
        output, crossed_out = half.output[0], crossed_half
    return Gelu(node, source, output, (*crossed_in, *crossed_one, *crossed_two, *crossed_out))


def _chain_input(graph: LintGraph, node: NodeProto, product: NodeProto) -> tuple[str, Crossed]:
    """Return x of the chain: the tensor that the product and the Erf or Tanh both come from."""
    tensor: str = node.input[0]
    crossed: list[NodeProto] = []
    while True:
        maker, passed = before(graph, tensor)
        scales = maker is not None and maker.op_type in ("Add", "Div", "Mul", "Pow")
        if maker is None or not scales or _bias_like(graph, maker):
            return tensor, tuple(crossed)
        crossed += passed
        computed = graph.computed_inputs(maker)
        tensor = _common(graph, computed) if computed else tensor
        if not computed or tensor in product.input:
            return tensor, tuple(crossed)


def _common(graph: LintGraph, computed: list[str]) -> str:
    """The earliest of the computed operands: in the tanh form x + c·x³ that is x."""
    return min(computed, key=lambda tensor: graph.order.get(getattr(graph.producer(tensor), "output", [""])[0], -1))


def _bias_like(graph: LintGraph, node: NodeProto) -> bool:
    """Return whether an Add adds a vector: the linear's bias, in front of the chain."""
    if node.op_type != "Add":
        return False
    return any(graph.constant(tensor) and (graph.size(tensor) or 1) > 1 for tensor in node.input)


def find_norms(graph: LintGraph) -> tuple[Norm, ...]:
    """Every LayerNorm: one op, or ReduceMean → Sub → Pow → ReduceMean → Add → Sqrt → Div."""
    found = []
    for node in graph.nodes:
        if node.op_type in NORM_OPS:
            found.append(Norm(node, node.input[0]))
        elif node.op_type == "Sub":
            norm = _written_norm(graph, node)
            if norm is not None:
                found.append(norm)
    return tuple(found)


def _written_norm(graph: LintGraph, node: NodeProto) -> Norm | None:
    """The chain behind x - mean(x); None when it does not end in a division by a square root."""
    mean, crossed_mean = before(graph, node.input[1])
    if mean is None or mean.op_type != "ReduceMean" or mean.input[0] != node.input[0]:
        return None
    crossed = list(crossed_mean)
    tensor = node.output[0]
    for ops in (("Pow", "Mul"), ("ReduceMean",), ("Add",), ("Sqrt",), ("Div", "Reciprocal")):
        reader, passed = next_reader(graph, tensor, ops)
        if reader is None:
            return None
        crossed += passed
        tensor = reader.output[0]
    scale, passed = next_reader(graph, tensor, ("Mul",), constant=True)
    if scale is not None:
        shift, passed_shift = next_reader(graph, scale.output[0], ("Add",), constant=True)
        crossed += (*passed, *(passed_shift if shift is not None else ()))
    return Norm(node, node.input[0], tuple(crossed))
