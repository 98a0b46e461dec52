"""Notes of `qdq check`: small edits of the canonical graph on which each one fires, and near misses."""

from __future__ import annotations

from qdq.studies.linter.graphs.editor import Graph
from qdq.studies.linter.graphs.edits import (
    ADD,
    BMM1,
    PAIR,
    QUERY,
    SOFTMAX,
    WEIGHT,
    edit,
    float_attention,
    float_linear,
    float_residual,
    without_zero_point,
)
from qdq.studies.linter.graphs.edits_blocks import (
    conditional,
    head_size,
    ir_version,
    scalar,
)
from qdq.studies.linter.graphs.edits_errors import half
from qdq.studies.linter.graphs.edits_types import own_ops_of_opset_12

from .graphs import Cases


def float_heads_of_8(graph: Graph) -> None:
    """Float attention is right where INT8 attention cannot fuse."""
    head_size(8)(graph)
    float_attention(graph)


CASES: Cases = {
    "QDQ-N301": (
        [(float_attention, (SOFTMAX,))],
        [lambda graph: graph.float_operand(BMM1, 1), lambda graph: graph.strip(), float_heads_of_8],
    ),
    "QDQ-N302": (
        [(float_residual, (ADD,)), (lambda graph: graph.float_operand(ADD, 1), (ADD,))],
        [lambda graph: graph.float_operand(ADD, 0)],
    ),
    "QDQ-N303": (
        [(float_linear, (f"{QUERY}.MatMul",))],
        [lambda graph: graph.float_operand(f"{QUERY}.MatMul", 1), lambda graph: graph.strip()],
    ),
    "QDQ-N304": (
        [(edit(), ("bert.embeddings.LayerNorm.LayerNormalization",))],
        [lambda graph: graph.half(), lambda graph: graph.strip()],
    ),
    "QDQ-N305": ([(without_zero_point(*PAIR), PAIR[:1])], [without_zero_point(WEIGHT)]),
    "QDQ-N306": ([(scalar, ("point.q",))], []),
    "QDQ-N307": ([(ir_version(14), ())], [ir_version(13)]),
    "QDQ-N308": ([(lambda graph: graph.opset(25), ())], [lambda graph: graph.opset(24)]),
    "QDQ-N309": ([(lambda graph: graph.strip(), ())], []),
    "QDQ-N310": ([(edit(half, lambda graph: graph.opset(17)), PAIR[:1])], [half, lambda graph: graph.opset(17)]),
    "QDQ-N311": ([(own_ops_of_opset_12, (WEIGHT,))], [lambda graph: graph.opset(13)]),
    "QDQ-N312": ([(conditional, ("choose",))], [lambda graph: graph.strip()]),
}
