"""Finding in a graph what the form of its batch depends on: ids, mask, positions, and what is computed per token.

Shared by the passes that take padding out of a batch. All of it is found by what a node reads, not by its name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from export.names import PAIR
from export.passes.attention_masks import MaskedAttention, NotMaskedError, masked_attention
from export.passes.needed_rows import ELEMENTWISE
from qdq.errors import PassError

IDS, MASK = "input_ids", "attention_mask"
SAMPLE = (3, 7)  # texts and tokens of the ids that position rules are tried on
# A node of these computes each token from the same token of its inputs; attention is the only other way.
BY_TOKEN = (
    *sorted(ELEMENTWISE),
    *PAIR,
    *("Gather", "LayerNormalization", "Log", "LogSoftmax", "MatMul", "Gemm", "Max", "Min", "Neg", "Clip"),
    *("Reciprocal", "Reshape", "Selu", "Softmax", "Softplus", "Split", "Squeeze", "Transpose", "Unsqueeze", "Where"),
    *("And", "Equal", "GatherElements", "Not"),
)
LAST_AXIS = ("LayerNormalization", "LogSoftmax", "Softmax")


@dataclass(frozen=True)
class Positions:
    """The rows of the position table that tokens look up.

    `indices` [texts or 1, S] of the table; a token's is its column plus `offset`, or, with a `padding` id, as in
    RoBERTa: ``cumsum(ids != padding) * (ids != padding) + padding``.
    """

    indices: gs.Tensor
    offset: int = 0
    padding: int | None = None


@dataclass(frozen=True)
class TextInputs:
    """The inputs of an encoder by what they mean.

    `tokens`: every input's tensor [texts, S] by the input's name; where the input is [batch, choices, S], that is the
    Reshape of it. `attends`: bool [texts, 1, 1, S], the keys that every attention sees. `positions` is None for a model
    without absolute ones.
    """

    tokens: Mapping[str, gs.Tensor]
    attends: gs.Tensor
    positions: Positions | None
    choices: bool

    def as_json(self) -> dict[str, Any]:
        """The part of it that clients have to know."""
        positions = (
            None if self.positions is None else {"offset": self.positions.offset, "padding": self.positions.padding}
        )
        return {"positions": positions, "choices": self.choices}

    @property
    def ids(self) -> gs.Tensor:
        """Token ids [texts, S]."""
        return self.tokens[IDS]


def text_inputs(graph: gs.Graph) -> TextInputs:
    """Find them. Raises PassError, naming what is missing or unknown, for a graph that is not an encoder's."""
    known = {tensor.name: tensor for tensor in graph.inputs}
    for name in (IDS, MASK):
        if name not in known:
            raise PassError(f"the graph has no input {name}, but {', '.join(known) or 'none'}; export it with this one")
    try:
        attention = masked_attention(graph)
    except NotMaskedError as reason:
        raise PassError(f"{reason.node}: {reason}, so texts cannot be told apart there; keep the padded form") from None
    if attention.mask is not known[MASK]:
        raise PassError(f"attention takes its mask from {attention.mask.name}, not from {MASK}; keep the padded form")
    choices = len(known[IDS].shape) == 3
    tokens = {name: _flattened(tensor) if choices else tensor for name, tensor in known.items()}
    attends = _attends(tokens[MASK], attention)
    return TextInputs(tokens, attends, find_positions(graph, tokens[IDS]), choices)


def _flattened(tensor: gs.Tensor) -> gs.Tensor:
    """The [batch * choices, S] form of an input; everything but its shape is read in that form."""
    reshapes = [node for node in tensor.outputs if node.op == "Reshape"]
    others = [node.name for node in tensor.outputs if node.op not in ("Reshape", "Shape")]
    if len(reshapes) != 1 or others:
        found = ", ".join(others) or f"{len(reshapes)} Reshapes"
        raise PassError(f"input {tensor.name} [batch, choices, sequence]: expected one Reshape to texts, found {found}")
    return reshapes[0].outputs[0]


def _attends(mask: gs.Tensor, attention: MaskedAttention) -> gs.Tensor:
    """The mask as bool [texts, 1, 1, S], behind a Cast and an Unsqueeze of axes 1 and 2: all terms are made from it."""
    made_from = [
        {id(tensor) for node in ancestors([term], stop={id(mask)}) for tensor in node.inputs}
        for term in attention.terms
    ]
    casts = [node for node in mask.outputs if node.op == "Cast" and node.attrs.get("to") == onnx.TensorProto.BOOL]
    readers = [reader.outputs[0] for cast in casts for reader in cast.outputs[0].outputs if _adds_axes(reader)]
    found = [tensor for tensor in readers if all(id(tensor) in tensors for tensors in made_from)]
    if len(found) != 1:
        raise PassError(
            f"{MASK}: expected one Cast to bool with an Unsqueeze to [batch, 1, 1, sequence], found {len(found)}; the "
            "attention of this graph is masked in a way this pass does not know"
        )
    return found[0]


def _adds_axes(node: gs.Node) -> bool:
    axes = node.inputs[1] if node.op == "Unsqueeze" else None
    return isinstance(axes, gs.Constant) and axes.values.tolist() == [1, 2]


def find_positions(graph: gs.Graph, ids: gs.Tensor) -> Positions | None:
    """Positions of the tokens, by trying the known rules on what the graph computes from sample ids.

    None when no table is looked up so. Raises PassError for a table that is looked up by another rule.
    """
    inputs = {id(tensor) for tensor in graph.inputs} | {id(ids)}
    for lookup in embedding_lookups(graph):
        indices = lookup.inputs[1]
        if id(indices) in inputs or not indices.inputs or indices.inputs[0].op == "Reshape":
            continue
        if _only_row(indices) is not None:
            continue
        nodes = ancestors([indices], stop=inputs)
        paddings = [int(constant.values) for node in nodes if node.op == "Equal" for constant in _scalars(node)]
        sample = _sample(paddings)
        values = _evaluate(nodes, graph, ids, indices, sample)
        rule = _rule(values, sample, paddings)
        if rule is None:
            raise PassError(
                f"{lookup.name} looks positions up by a rule this pass does not know: it makes {values[0].tolist()} of "
                f"ids {sample[0].tolist()}"
            )
        return Positions(indices, *rule)
    return None


def fold_equal_lookups(graph: gs.Graph) -> None:
    """Replace a lookup that finds the same row for every token by that row: RoBERTa's token types are no input."""
    for lookup in embedding_lookups(graph):
        row = _only_row(lookup.inputs[1])
        if row is not None:
            table = lookup.inputs[0]
            replace_readers(lookup.outputs[0], gs.Constant(f"{lookup.name}.row", np.asarray(table.values)[row]))
    graph.cleanup().toposort()


def _only_row(indices: gs.Tensor) -> int | None:
    """The one value of indices that are picked out of equal ones, whatever by; None for others."""
    picked = False
    while indices.inputs and indices.inputs[0].op in ("Expand", "GatherElements"):
        picked |= indices.inputs[0].op == "GatherElements"
        indices = indices.inputs[0].inputs[0]
    if not picked or not isinstance(indices, gs.Constant) or (indices.values != indices.values.flat[0]).any():
        return None
    return int(indices.values.flat[0])


def _scalars(node: gs.Node) -> Iterable[gs.Constant]:
    return (tensor for tensor in node.inputs if isinstance(tensor, gs.Constant) and tensor.values.size == 1)


def _sample(paddings: Iterable[int]) -> NDArray[np.int64]:
    """Ids with the padding id in the middle of one text and behind another."""
    ids = np.arange(SAMPLE[0] * SAMPLE[1], dtype=np.int64).reshape(SAMPLE) + 50
    for padding in paddings:
        ids[0, 2], ids[1, 4:] = padding, padding
    return ids


def _rule(values: NDArray[Any], ids: NDArray[np.int64], paddings: Iterable[int]) -> tuple[int, int | None] | None:
    """(offset, padding) of the rule that gives `values`, None for none."""
    columns = np.arange(ids.shape[1])
    offset = int(values.flat[0])
    if np.array_equal(np.broadcast_to(values, ids.shape), np.broadcast_to(columns + offset, ids.shape)):
        return offset, None
    for padding in paddings:
        real = ids != padding
        if np.array_equal(values, np.cumsum(real, axis=1) * real + padding):
            return 0, padding
    return None


def _evaluate(
    nodes: Iterable[gs.Node], graph: gs.Graph, ids: gs.Tensor, wanted: gs.Tensor, sample: NDArray[np.int64]
) -> NDArray[Any]:
    """Value of `wanted`, which `nodes` compute from the inputs' values or shapes, when all inputs are `sample`."""
    from onnx.reference import ReferenceEvaluator

    needed = {id(node) for node in nodes}
    part = [node for node in graph.nodes if id(node) in needed]  # sorted
    constants = {tensor.name: tensor for node in part for tensor in node.inputs if isinstance(tensor, gs.Constant)}
    shapes = {str(tensor.name): sample if len(tensor.shape) == 2 else sample[None] for tensor in graph.inputs}
    feeds = shapes | {str(ids.name): sample}
    integers = onnx.TensorProto.INT64
    proto = onnx.helper.make_graph(
        [OnnxExporter.export_node(node) for node in part],
        "positions",
        [onnx.helper.make_tensor_value_info(name, integers, array.shape) for name, array in feeds.items()],
        [onnx.helper.make_tensor_value_info(wanted.name, integers, None)],
        [onnx.numpy_helper.from_array(np.asarray(tensor.values), name) for name, tensor in constants.items()],
    )
    model = onnx.helper.make_model(proto, opset_imports=[onnx.helper.make_opsetid("", graph.opset)])
    values: Any = ReferenceEvaluator(model).run(None, feeds)
    return np.asarray(values[0])


def embedding_lookups(graph: gs.Graph) -> list[gs.Node]:
    """Lookups of constant tables whose sum enters the encoder, in graph order: in front of the first LayerNorm."""
    norm = next((node for node in graph.nodes if node.op == "LayerNormalization"), None)
    if norm is None:
        raise PassError("the graph has no LayerNormalization, so it is no encoder of a known family")
    inside = {id(node) for node in ancestors([norm.inputs[0]], stop=())}
    return [
        node
        for node in graph.nodes
        if id(node) in inside
        and node.op == "Gather"
        and node.attrs.get("axis", 0) == 0
        and isinstance(node.inputs[0], gs.Constant)
        and node.inputs[0].values.ndim == 2
    ]


def ancestors(tensors: Iterable[gs.Tensor], stop: Collection[int]) -> list[gs.Node]:
    """Every node that `tensors` depend on, each once; not beyond tensors whose id is in `stop`."""
    found: dict[int, gs.Node] = {}
    front = list(tensors)
    while front:
        tensor = front.pop()
        for node in tensor.inputs if id(tensor) not in stop else ():
            if id(node) not in found:
                found[id(node)] = node
                front.extend(node.inputs)
    return list(found.values())


def row_selection(node: gs.Node) -> bool:
    """Tell whether a node takes the first token's row of [texts, S, H], with or without keeping the axis."""
    if node.op != "Gather" or node.attrs.get("axis", 0) != 1 or not isinstance(node.inputs[1], gs.Constant):
        return False
    index = node.inputs[1].values
    return index.size == 1 and index.ndim <= 1 and int(index.flat[0]) == 0


def check_by_token(node: gs.Node, mixed: Collection[int]) -> None:
    """Raise PassError for a node that mixes tokens in a way other than attention.

    `mixed`: ids of the tensors that have tokens on their axes; every other input is the same for all tokens.
    """
    known = node.op in BY_TOKEN
    if node.op in LAST_AXIS:
        known = node.attrs.get("axis", -1) in (-1, 2, 3)
    elif node.op == "Reshape":
        target = node.inputs[1]
        known = isinstance(target, gs.Constant) and not target.values[:2].any() and not node.attrs.get("allowzero")
    elif node.op in ("Gather", "GatherElements") and id(node.inputs[0]) in mixed:
        known = bool(node.inputs[0].inputs) and node.inputs[0].inputs[0].op == "Transpose"  # one of q, k and v
    elif node.op == "Split":
        known = node.attrs.get("axis", 0) in (-1, 2)
    if not known:
        raise PassError(
            f"{node.name} ({node.op}) mixes the tokens of a text, and is neither attention, nor the first token's row, "
            "nor a pooling under the attention mask"
        )


def add_node(graph: gs.Graph, op: str, name: str, inputs: list[gs.Tensor], attrs: dict[str, Any] | None = None) -> Any:
    """Append a node with one output, which has its name and the type of its first input; returns that output."""
    made = gs.Variable(name, dtype=inputs[0].dtype)
    graph.nodes.append(gs.Node(op, name, attrs or {}, inputs, [made]))
    return made


def axes(name: str, *values: int) -> gs.Constant:
    """A constant list of axes."""
    return gs.Constant(name, np.asarray(values, np.int64))


def replace_readers(old: gs.Tensor, new: gs.Tensor, but: Collection[int] = ()) -> None:
    """Let every reader of `old` read `new`, except the nodes whose id is in `but`; a graph output stays."""
    for reader in [node for node in old.outputs if id(node) not in but]:
        reader.inputs = [new if tensor is old else tensor for tensor in reader.inputs]


def drop_choices(output: gs.Tensor) -> None:
    """Let an output [batch, choices] be what its Reshape reads, [texts, 1]: texts have lost their grouping."""
    producer = output.inputs[0]
    reshape = producer.inputs[0].inputs[0] if producer.op == "Cast" else producer
    if reshape.op != "Reshape" or isinstance(reshape.inputs[1], gs.Constant):
        raise PassError(f"output {output.name} [batch, choices]: expected a Reshape in front of it, found {reshape.op}")
    texts = reshape.inputs[0]
    if producer is not reshape:
        producer.inputs = [texts]
        return
    reshape.outputs = []
    texts.inputs[0].outputs = [output]
