"""Finding attention: a Softmax between two multiplications of computed tensors, whatever lies in between."""

from __future__ import annotations

from onnx import NodeProto

from export.inventory import MULTIPLICATIONS
from export.lint.graph import LintGraph
from export.lint.patterns import Attention, ancestors
from export.names import PAIR

# Between the first multiplication and the softmax: masks, scaling, clipping, casts, Q/DQ.
SCORES = frozenset(("Add", "Cast", "Clip", "Div", "Max", "Mul", "Sub", "Where", *PAIR))
# Between the softmax and the second multiplication: dropout, head masks, NaN guards, casts, Q/DQ.
PROBABILITIES = frozenset(("Cast", "Dropout", "Mul", "Where", *PAIR))


def find_attentions(graph: LintGraph) -> tuple[Attention, ...]:
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
    path: list[NodeProto] = []
    for tensor in ancestors(graph, scores, lambda node: node is not bmm1 and node.op_type in SCORES):
        node = graph.producer(tensor)
        if node is not None and node.op_type in ("Mul", "Div") and _carries(graph, node, bmm1):
            path.append(node)
    return tuple(path)


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
