"""Find the one input that all attention of a graph takes its mask from, and prove that it erases padding."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from export.names import IR_VERSION, PAIR

ERASED = -1e3  # softmax of anything as low is 0 in float32 beside any ordinary score
TO_LINEAR = frozenset({"Transpose", "Reshape", "Mul", "Div", *PAIR})  # between a linear and an attention product


@dataclass(frozen=True)
class MaskedAttention:
    """All attention of a graph, by the one input it takes its mask from.

    Attributes:
        mask: that input, [batch, S] or [batch, choices, S].
        terms: the tensors that follow from it and are added to scores, each once.
        operands: ids of the nodes between linears and attention products.
    """

    mask: gs.Tensor
    terms: tuple[gs.Tensor, ...]
    operands: frozenset[int]


class NotMaskedError(Exception):
    """Raised with the node and the reason that padding cannot be left out."""

    def __init__(self, node: str, reason: str) -> None:
        super().__init__(reason)
        self.node = node


def masked_attention(graph: gs.Graph) -> MaskedAttention:
    """Find it, and prove that the mask erases padding.

    Raises NotMaskedError when there is no attention, or attention without a mask or with another one.
    """
    found: dict[str, gs.Tensor] = {}
    readers: set[int] = set()
    proven: dict[str, gs.Tensor] = {}
    softmaxes = [node for node in graph.nodes if node.op == "Softmax"]
    # Every attention of the graph, each with its mask.
    if not softmaxes:
        raise NotMaskedError("graph", "there is no attention in it")
    for softmax in softmaxes:
        scores, terms = _scores(softmax)
        masks = [(term, source) for term in terms if (source := _source(graph, term)) is not None]
        if not masks:
            raise NotMaskedError(softmax.name, "no mask that follows from one input is added in front of it")
        for term, source in masks:
            found[source.name] = source
            if term.name not in proven:
                _prove(graph, softmax, term, source)
                proven[term.name] = term
        products = [scores, _weighed(softmax)]
        for product in products:
            for tensor in product.inputs:
                _walk(tensor, readers)
    if len(found) > 1:
        raise NotMaskedError(softmaxes[0].name, f"attention has several masks: {', '.join(sorted(found))}")
    return MaskedAttention(next(iter(found.values())), tuple(proven.values()), frozenset(readers))


def _scores(softmax: gs.Node) -> tuple[gs.Node, list[gs.Tensor]]:
    """The product in front of a Softmax, and everything that is added to it."""
    terms: list[gs.Tensor] = []
    node = softmax
    while True:
        operands = node.inputs if node.op == "Add" else node.inputs[:1]
        paths = [tensor for tensor in operands if tensor.inputs and tensor.inputs[0].op in ("Add", "MatMul")]
        if len(paths) != 1:
            raise NotMaskedError(softmax.name, "it is not the softmax of one product and what is added to it")
        terms += [tensor for tensor in operands if tensor is not paths[0]]
        node = paths[0].inputs[0]
        if node.op == "MatMul":
            return node, terms


def _weighed(softmax: gs.Node) -> gs.Node:
    """The product of a Softmax's result, behind factors and quantizers."""
    node = softmax
    while node.op != "MatMul":
        readers = node.outputs[0].outputs
        if len(readers) != 1 or readers[0].op not in ("MatMul", "Mul", *PAIR):
            raise NotMaskedError(softmax.name, "its result is not multiplied with values")
        node = readers[0]
    return node


def _walk(tensor: gs.Tensor, readers: set[int]) -> None:
    """Collect what lies between an operand of attention and the linear that made it."""
    while tensor.inputs and tensor.inputs[0].op in TO_LINEAR:
        node = tensor.inputs[0]
        readers.add(id(node))
        tensor = node.inputs[0]


def _source(graph: gs.Graph, tensor: gs.Tensor) -> gs.Tensor | None:
    """The one graph input of integers that a tensor's values follow from; shapes do not count."""
    sources = {source.name: source for source in _sources(tensor)}
    source = next(iter(sources.values())) if len(sources) == 1 else None
    return source if source is not None and any(source is own for own in graph.inputs) else None


def _sources(tensor: gs.Tensor) -> list[gs.Tensor]:
    if isinstance(tensor, gs.Constant) or tensor.is_empty():
        return []
    if not tensor.inputs:
        return [tensor]
    node = tensor.inputs[0]
    return [] if node.op in ("Shape", "Size") else [found for own in node.inputs for found in _sources(own)]


def _prove(graph: gs.Graph, softmax: gs.Node, term: gs.Tensor, source: gs.Tensor) -> None:
    """Compute the mask of a few texts: padding must be erased for every query."""
    from onnx.reference import ReferenceEvaluator

    part = graph.copy()
    tensors = part.tensors()
    part.outputs = [tensors[term.name]]
    part.cleanup()
    values = np.array([[1, 0, 1], [0, 1, 0]], np.int64).reshape(-1, *(1,) * (len(source.shape) - 2), 3)
    model = gs.export_onnx(part, do_type_check=False)
    model.ir_version = IR_VERSION
    feeds = {own.name: values.astype(own.dtype) for own in part.inputs}
    try:
        (mask,) = ReferenceEvaluator(onnx.load_from_string(model.SerializeToString())).run(None, feeds)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        raise NotMaskedError(softmax.name, f"its mask cannot be computed from {source.name} alone ({error})") from error
    mask, erased = np.asarray(mask), values.reshape(2, 1, 1, 3) == 0
    if mask.ndim != 4 or mask.shape[-1] != 3 or (np.where(erased, mask, -np.inf) > ERASED).any():
        raise NotMaskedError(softmax.name, f"its mask does not erase every position where {source.name} is 0")
