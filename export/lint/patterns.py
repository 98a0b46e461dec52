"""Building blocks of a transformer graph, found by wiring alone: linears, GELUs, LayerNorms, residual adds, attention.

Node names mean nothing here, because every exporter has its own. A block is found whether it is one op or written out,
and also where Q/DQ pairs, casts or reshapes lie inside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from onnx import NodeProto

from export.inventory import MULTIPLICATIONS
from export.lint.graph import LintGraph
from export.names import PAIR, QUANTIZE
from export.reading import attribute

# What may lie between an activation function's input and its output, or between a linear and the next one.
POINTWISE = frozenset(
    (
        *("Abs", "Add", "Clip", "Concat", "Div", "Dropout", "Elu", "Erf", "Exp", "FastGelu", "Gelu", "HardSigmoid"),
        *("LeakyRelu", "Max", "Min", "Mul", "Neg", "Pow", "Relu", "Sigmoid", "Softplus", "Split", "Sqrt", "Sub"),
        *("Tanh", "Where"),
    )
)


@dataclass(frozen=True)
class Linear:
    """A MatMul or Gemm by a constant. `crossed` are Q/DQ nodes between the product and its bias.

    `ratio` is a Mul of the product by a number per output channel: what is left of the weight's scales once they are
    one (`export.passes.weight_ratios`). A Q/DQ pair before it is no hindrance: the GEMM then writes INT8
    (`export.passes.quantized_products`).
    """

    node: NodeProto
    weight: int  # index of the factor that is the constant
    k: int | None
    n: int | None
    bias: NodeProto | None
    crossed: tuple[NodeProto, ...]
    ratio: NodeProto | None = None

    @property
    def output(self) -> str:
        """The tensor behind the ratio and the bias."""
        return str((self.bias or self.ratio or self.node).output[0])


@dataclass(frozen=True)
class Chain:
    """A GELU or a LayerNormalization, as one op or written out. `crossed` are Q/DQ nodes inside the chain."""

    node: NodeProto
    input: str
    output: str
    crossed: tuple[NodeProto, ...] = ()


@dataclass(frozen=True)
class Residual:
    """An Add that joins a branch, which ends in `linear`, with the tensor that went around it."""

    node: NodeProto
    linear: Linear
    branch: int  # index of the operand that comes from the linear

    @property
    def skip(self) -> int:
        """Index of the operand that went around the branch."""
        return 1 - self.branch


@dataclass(frozen=True)
class Attention:
    """softmax(q k^T) v. The four fields q, k, a, v are operand tensors of the two multiplications."""

    softmax: NodeProto
    bmm1: NodeProto
    bmm2: NodeProto
    a_index: int  # index of bmm2's operand that comes from the softmax
    scalings: tuple[NodeProto, ...]  # Mul or Div by a scalar between bmm1 and softmax
    heads: int | None
    head_size: int | None
    sequence: int | None  # None: dynamic

    @property
    def operands(self) -> tuple[tuple[str, str], ...]:
        """Pairs (role, tensor) of the four operands."""
        a, v = self.bmm2.input[self.a_index], self.bmm2.input[1 - self.a_index]
        return ("q", self.bmm1.input[0]), ("k", self.bmm1.input[1]), ("a", a), ("v", v)


@dataclass(frozen=True)
class Patterns:
    """Everything recognized in one graph, each group in graph order.

    `roles` maps the first output of a linear's node to query, key, value, qkv, attention_output, ffn_up or ffn_down;
    a linear that is not in it belongs to no encoder block (pooler, head, embedding projection).
    """

    linears: tuple[Linear, ...]
    gelus: tuple[Chain, ...]
    norms: tuple[Chain, ...]
    residuals: tuple[Residual, ...]
    attentions: tuple[Attention, ...]
    roles: dict[str, str]

    def role(self, linear: Linear) -> str:
        """Role of the linear in its encoder block, or "" outside."""
        return self.roles.get(linear.node.output[0], "")


def find_linears(graph: LintGraph) -> tuple[Linear, ...]:
    """Every MatMul and Gemm with exactly one constant factor."""
    found = []
    for node in graph.nodes:
        if node.op_type not in MULTIPLICATIONS:
            continue
        constants = [index for index, tensor in enumerate(node.input[:2]) if graph.constant(tensor)]
        if len(constants) == 1:
            k, n = _sizes(graph, node, constants[0])
            ratio = _ratio(graph, node, n)
            bias, crossed = next_reader(graph, (ratio or node).output[0], ("Add",), constant=True)
            found.append(Linear(node, constants[0], k, n, bias, crossed, ratio))
    return tuple(found)


def _ratio(graph: LintGraph, product: NodeProto, n: int | None) -> NodeProto | None:
    """The Mul by a constant of `n` numbers, all that reads the product or its codes; None for any other reader."""
    readers = [reader for reader, _ in behind(graph, product.output[0])]
    if len(readers) != 1 or readers[0].op_type != "Mul" or n in (None, 1):
        return None
    return readers[0] if any(graph.constant(t) and graph.size(t) == n for t in readers[0].input) else None


def output_axis(graph: LintGraph, node: NodeProto, weight: int) -> int | None:
    """Axis of the weight operand that holds the output channels; None when its rank is unknown.

    MatMul x·W(K,N): the last; MatMul W(N,K)·x: the one before; Gemm: as transA and transB say.
    """
    shape = graph.shapes.get(node.input[weight])
    if shape is None or len(shape) < 2:
        return None
    transposed = node.op_type == "Gemm" and attribute(node, ("transA", "transB")[weight], 0)
    last = bool(weight) != bool(transposed)
    return len(shape) - 1 if last else len(shape) - 2


def _sizes(graph: LintGraph, node: NodeProto, weight: int) -> tuple[int | None, int | None]:
    axis = output_axis(graph, node, weight)
    shape = graph.shapes.get(node.input[weight])
    if axis is None or shape is None:
        return None, None
    return shape[2 * len(shape) - 3 - axis], shape[axis]  # the two last axes: one is N, the other K


def next_reader(
    graph: LintGraph, tensor: str, ops: Iterable[str], constant: bool | None = None
) -> tuple[NodeProto | None, tuple[NodeProto, ...]]:
    """The reader of `tensor` with one of `ops`, and the Q/DQ nodes on the way; `constant` asks for such an operand."""
    for reader, crossed in behind(graph, tensor):
        if reader.op_type in ops and (
            constant is None or any(graph.constant(source) for source in reader.input) == constant
        ):
            return reader, crossed
    return None, ()


def behind(graph: LintGraph, tensor: str) -> Iterator[tuple[NodeProto, tuple[NodeProto, ...]]]:
    """Readers of `tensor`, direct ones first, then those behind Q/DQ pairs; with the Q and DQ nodes on the way."""
    pending: list[tuple[str, tuple[NodeProto, ...]]] = [(tensor, ())]
    while pending:
        current, passed = pending.pop(0)
        for reader in graph.readers(current):
            if reader.op_type in PAIR and reader.input[0] == current:
                pending.append((reader.output[0], (*passed, reader)))
            else:
                yield reader, passed


def before(graph: LintGraph, tensor: str) -> tuple[NodeProto | None, tuple[NodeProto, ...]]:
    """The producer of `tensor`, and the Q and DQ nodes between."""
    passed: list[NodeProto] = []
    node = graph.producer(tensor)
    while node is not None and node.op_type in PAIR and not graph.constant(node.output[0]):
        passed.append(node)
        node = graph.producer(node.input[0])
    return node, tuple(passed)


def find_residuals(graph: LintGraph, linears: tuple[Linear, ...]) -> tuple[Residual, ...]:
    """Every Add of two computed tensors of which one is a linear's result."""
    by_output = {linear.output: linear for linear in linears}
    found = []
    for node in graph.nodes:
        if node.op_type != "Add" or len(graph.computed_inputs(node)) != 2:
            continue
        ends = [_trunk(graph, tensor, by_output) for tensor in node.input]
        branch = next((index for index, linear in enumerate(ends) if linear is not None), None)
        linear = None if branch is None else ends[branch]
        if branch is None or linear is None or not _same_shape(graph, node):
            continue
        if linear not in linears_behind(graph, node.input[1 - branch], linears):  # else x + c·x³ of a tanh GELU
            found.append(Residual(node, linear, branch))
    return tuple(found)


def _trunk(graph: LintGraph, tensor: str, by_output: dict[str, Linear]) -> Linear | None:
    """The linear whose result `tensor` is, seen through moves, casts, Q/DQ and scaling by a constant."""
    while tensor not in by_output:
        node = graph.producer(tensor)
        if node is None or (node.op_type not in ("Cast", "Mul", *PAIR) and not graph.moves(node)):
            return None
        computed = graph.computed_inputs(node)
        if (node.op_type == "Mul" and len(computed) != 1) or not computed:
            return None
        tensor = computed[0]
    return by_output[tensor]


def _same_shape(graph: LintGraph, node: NodeProto) -> bool:
    """Return whether the operands of an Add can have one shape; unknown sizes count as equal."""
    shapes = [graph.shapes.get(tensor) for tensor in node.input]
    if shapes[0] is None or shapes[1] is None:
        return True
    pairs = zip(shapes[0], shapes[1], strict=False)
    return len(shapes[0]) == len(shapes[1]) and all(a == b or a is None or b is None for a, b in pairs)


def linears_behind(graph: LintGraph, tensor: str, linears: tuple[Linear, ...]) -> tuple[Linear, ...]:
    """The nearest linears that `tensor` is made from, through pointwise ops, moves, casts and Q/DQ."""
    by_output = {linear.output: linear for linear in linears} | {linear.node.output[0]: linear for linear in linears}
    found: dict[str, Linear] = {}

    def passes(node: NodeProto) -> bool:
        return node.op_type in POINTWISE or node.op_type in ("Cast", *PAIR) or graph.moves(node)

    for current in ancestors(graph, tensor, passes, stop=by_output.__contains__):
        if current in by_output:
            found.setdefault(by_output[current].node.output[0], by_output[current])
    return tuple(found.values())


def ancestors(
    graph: LintGraph, tensor: str, passes: Callable[[NodeProto], bool], stop: Callable[[str], bool] = lambda _: False
) -> Iterator[str]:
    """Computed tensors that `tensor` is made from, itself first, nearest first, as long as `passes` allows."""
    seen, pending = {tensor}, [tensor]
    while pending:
        current = pending.pop(0)
        yield current
        node = graph.producer(current)
        if node is None or stop(current) or not passes(node):
            continue
        for source in graph.computed_inputs(node):
            if source not in seen:
                seen.add(source)
                pending.append(source)


def quantizers(nodes: tuple[NodeProto, ...]) -> tuple[NodeProto, ...]:
    """The Q nodes among Q/DQ nodes."""
    return tuple(node for node in nodes if node.op_type == QUANTIZE)
