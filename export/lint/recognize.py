"""All patterns of a graph, and the role of each linear in its encoder block.

GELU and LayerNorm are found as a single op or written out in primitive ops, also with Q/DQ pairs inside; attention as a
Softmax between two multiplications of computed tensors, whatever lies in between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from onnx import NodeProto

from export.inventory import MULTIPLICATIONS
from export.lint.graph import LintGraph
from export.lint.patterns import (
    Attention,
    Chain,
    Linear,
    Patterns,
    Residual,
    ancestors,
    before,
    find_linears,
    find_residuals,
    linears_behind,
    next_reader,
)
from export.names import PAIR

PROJECTIONS = {"q": "query", "k": "key", "v": "value"}
GELU_OPS = frozenset({"BiasGelu", "FastGelu", "Gelu", "QuickGelu"})
NORM_OPS = frozenset({"LayerNormalization", "SimplifiedLayerNormalization", "SkipLayerNormalization"})
# Between the first multiplication and the softmax: masks, scaling, clipping, casts, Q/DQ.
SCORES = frozenset(("Add", "Cast", "Clip", "Div", "Max", "Mul", "Sub", "Where", *PAIR))
# Between the softmax and the second multiplication: dropout, head masks, NaN guards, casts, Q/DQ.
PROBABILITIES = frozenset(("Cast", "Dropout", "Mul", "Where", *PAIR))


def recognize(graph: LintGraph) -> Patterns:
    """Find every pattern of `graph`."""
    linears = find_linears(graph)
    residuals = find_residuals(graph, linears)
    attentions = tuple(_with_heads(graph, attention, linears) for attention in _find_attentions(graph))
    roles = _projections(graph, linears, attentions) | _branch_ends(graph, linears, residuals, attentions)
    gelus = _find_chains(graph, GELU_OPS, ("Erf", "Tanh"), _written_gelu)
    norms = _find_chains(graph, NORM_OPS, ("Sub",), _written_norm)
    return Patterns(linears, gelus, norms, residuals, attentions, roles)


def _with_heads(graph: LintGraph, attention: Attention, linears: tuple[Linear, ...]) -> Attention:
    """The attention with its number of heads from the width of the value projection, where no shape states it."""
    if attention.heads is not None or attention.head_size is None:
        return attention
    tensors = dict(attention.operands)
    query, value = (linears_behind(graph, tensors[role], linears) for role in ("q", "v"))
    if len(value) != 1 or value[0].n is None:
        return attention
    width = value[0].n // 3 if value == query else value[0].n  # one linear for q, k and v makes all three
    return replace(attention, heads=width // attention.head_size)


def _projections(graph: LintGraph, linears: tuple[Linear, ...], attentions: tuple[Attention, ...]) -> dict[str, str]:
    """Linears that make the query, key and value of an attention; one that makes several is "qkv"."""
    roles: dict[str, str] = {}
    for attention in attentions:
        for operand, tensor in attention.operands:
            if operand not in PROJECTIONS:
                continue
            for linear in linears_behind(graph, tensor, linears):
                key = linear.node.output[0]
                roles[key] = "qkv" if key in roles else PROJECTIONS[operand]
    return roles


def _branch_ends(
    graph: LintGraph,
    linears: tuple[Linear, ...],
    residuals: tuple[Residual, ...],
    attentions: tuple[Attention, ...],
) -> dict[str, str]:
    """Linears that end in a residual add: behind an attention, or behind other linears and an activation."""
    products = {attention.bmm2.output[0] for attention in attentions}
    roles: dict[str, str] = {}
    for residual in residuals:
        linear = residual.linear
        source = linear.node.input[1 - linear.weight]

        def moved(node: NodeProto) -> bool:
            return node.op_type in ("Cast", *PAIR) or graph.moves(node)

        if any(tensor in products for tensor in ancestors(graph, source, moved)):
            roles[linear.node.output[0]] = "attention_output"
            continue
        ups = linears_behind(graph, source, linears)
        if ups:
            roles[linear.node.output[0]] = "ffn_down"
            roles |= {up.node.output[0]: "ffn_up" for up in ups}
    return roles


def _find_chains(
    graph: LintGraph, ops: Iterable[str], starts: Iterable[str], written: Callable[[LintGraph, NodeProto], Chain | None]
) -> tuple[Chain, ...]:
    """Every op of `ops`, and what `written` makes of every op of `starts`, in graph order."""
    found = []
    for node in graph.nodes:
        if node.op_type in ops:
            found.append(Chain(node, node.input[0], node.output[0]))
        elif node.op_type in starts and (chain := written(graph, node)) is not None:
            found.append(chain)
    return tuple(found)


def _written_gelu(graph: LintGraph, node: NodeProto) -> Chain | None:
    """The chain around an Erf or Tanh, x·(1+erf(x/√2))/2 or the tanh approximation.

    None when it is not followed by +1 and a product with the input.
    """
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
    crossed_out: tuple[NodeProto, ...] = ()
    half, crossed_half = next_reader(graph, output, ("Mul",), constant=True)
    if half is not None:
        output, crossed_out = half.output[0], crossed_half
    return Chain(node, source, output, (*crossed_in, *crossed_one, *crossed_two, *crossed_out))


def _chain_input(graph: LintGraph, node: NodeProto, product: NodeProto) -> tuple[str, tuple[NodeProto, ...]]:
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


def _written_norm(graph: LintGraph, node: NodeProto) -> Chain | None:
    """The chain behind x - mean(x): ReduceMean → Sub → Pow → ReduceMean → Add → Sqrt → Div.

    None when it does not end in a division by a square root.
    """
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
        tensor = scale.output[0]
        shift, passed_shift = next_reader(graph, tensor, ("Add",), constant=True)
        crossed += passed
        if shift is not None:
            tensor = shift.output[0]
            crossed += passed_shift
    return Chain(node, node.input[0], tensor, tuple(crossed))


def _find_attentions(graph: LintGraph) -> tuple[Attention, ...]:
    """Every attention block, in graph order; a Softmax that is not between two such products is none."""
    found = []
    for node in graph.nodes:
        if node.op_type != "Softmax":
            continue
        bmm1 = _first_product(graph, node.input[0])
        second = _second_product(graph, node.output[0])
        if bmm1 is None or second is None:
            continue
        bmm2, a_index = second
        heads, head_size, sequence = _sizes(graph, bmm1, bmm2.input[1 - a_index])
        scalings = _scalings(graph, node.input[0], bmm1)
        found.append(Attention(node, bmm1, bmm2, a_index, scalings, heads, head_size, sequence))
    return tuple(found)


def _is_product(graph: LintGraph, node: NodeProto | None) -> bool:
    """Return whether a node multiplies two computed tensors."""
    return node is not None and node.op_type in MULTIPLICATIONS and len(graph.computed_inputs(node)) == 2


def _first_product(graph: LintGraph, scores: str) -> NodeProto | None:
    for tensor in ancestors(graph, scores, lambda node: node.op_type in SCORES or graph.moves(node)):
        node = graph.producer(tensor)
        if _is_product(graph, node):
            return node
    return None


def _second_product(graph: LintGraph, probabilities: str) -> tuple[NodeProto, int] | None:
    pending, seen = [probabilities], {probabilities}
    while pending:
        tensor = pending.pop(0)
        for node in graph.readers(tensor):
            if _is_product(graph, node):
                return node, list(node.input).index(tensor)
            if (node.op_type in PROBABILITIES or graph.moves(node)) and node.output[0] not in seen:
                seen.add(node.output[0])
                pending.append(node.output[0])
    return None


def _scalings(graph: LintGraph, scores: str, bmm1: NodeProto) -> tuple[NodeProto, ...]:
    """Mul and Div by one number on the way from the first product to the softmax."""
    tensors = ancestors(graph, scores, lambda node: node is not bmm1 and node.op_type in SCORES)
    makers = [node for tensor in tensors if (node := graph.producer(tensor)) is not None]
    return tuple(node for node in makers if node.op_type in ("Mul", "Div") and _carries(graph, node, bmm1))


def _carries(graph: LintGraph, node: NodeProto, bmm1: NodeProto) -> bool:
    """Return whether a Mul or Div multiplies the scores by a single number."""
    product = bmm1.output[0]

    def passes(inner: NodeProto) -> bool:
        return inner is not bmm1 and (inner.op_type in SCORES or graph.moves(inner))

    reached = [product in ancestors(graph, tensor, passes) for tensor in node.input[:2]]
    if reached[0] == reached[1]:
        return False
    return graph.size(node.input[reached.index(False)]) == 1


def _sizes(graph: LintGraph, bmm1: NodeProto, value: str) -> tuple[int | None, int | None, int | None]:
    """Return (heads, head size, sequence of keys), each from the first operand that states it."""
    query, key = (graph.shapes.get(tensor) or () for tensor in bmm1.input[:2])
    values = graph.shapes.get(value) or ()
    heads = next((shape[1] for shape in (query, key, values) if len(shape) == 4 and shape[1] is not None), None)
    sizes = [shape[position] for shape, position in ((query, -1), (key, -2), (values, -1)) if len(shape) >= 3]
    lengths = [shape[position] for shape, position in ((key, -1), (values, -2)) if len(shape) >= 3]
    size = next((size for size in sizes if size is not None), None)
    return heads, size, next((length for length in lengths if length is not None), None)
