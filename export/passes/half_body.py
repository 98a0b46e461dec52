"""Pass: everything that is not quantized in FP16 (or BF16), in a graph whose types alone decide what runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_graphsurgeon as gs

from export.passes.base import Declined, PassResult
from export.passes.element_types import element_types
from export.passes.half_types import HALVES, Body, Half
from export.passes.keep_float import Kept, kept_in_fp32
from export.passes.retype import Retyping
from qdq.base.choices import BODIES
from qdq.base.config import choice


def half_body(graph: gs.Graph, body: Body = "fp16", ranges: Mapping[str, float] | None = None) -> PassResult:
    """Retype the float part of a graph.

    Before: FP32 everywhere, ``x -> Q -> DQ -> MatMul`` with FP32 scales.
    After: constants, scales and tensors of the `body` type; every DQ makes the type its reader multiplies in, so no
    Cast stands between them; LayerNormalization says ``stash_type=1`` (its sums in FP32); a mask constant beyond the
    type is clamped. Outputs keep their FP32 type behind one Cast each.
    Leaves alone, in FP32 and listed as declined: what `keep_float` finds by operator, constant and `ranges` (largest
    |x| per tensor, see `export.ranges.measure_ranges`). Integers and INT8 codes. Everything when `body` is fp32.

    FP16 keeps every scale exactly. BF16 has 8 bits of precision and rounds a scale by up to 0.4 %, as it does every
    tensor; the INT8 codes stay right, since 127 * 2**-8 is under half a step.

    Raises ConfigError for an unknown body, PassError for a scale that is no FP16 value and for what `element_types`
    refuses.
    """
    if choice(body, BODIES, "body") == "fp32":
        return PassResult()
    half = HALVES[body]
    types = element_types(graph)
    kept = kept_in_fp32(graph, types, half, ranges)
    retyping = Retyping(graph, types, half, kept.nodes, kept.clamped)
    retyping.run()
    return PassResult(tuple(retyping.changed), tuple(_listed(graph, kept, half, retyping.rounding, ranges is not None)))


def _listed(graph: gs.Graph, kept: Kept, half: Half, rounding: float, measured: bool) -> Iterator[Declined]:
    """Everything that is not exactly the half type, in graph order."""
    for node in graph.nodes:
        if node.name in kept.nodes:
            yield Declined(node.name, f"stays FP32: {kept.nodes[node.name]}")
    for name, why in kept.clamped.items():
        yield Declined(name, why)
    if rounding:
        yield Declined("scales", f"rounded to {half.title}, by at most {rounding:.2%}")
    if not measured:
        yield Declined("ranges", f"not measured; that no tensor exceeds {half.title} is not proved")
    elif kept.unmeasured:
        number, first = len(kept.unmeasured), kept.unmeasured[0]
        yield Declined("ranges", f"{number} tensor(s) were not measured and may overflow, the first is {first}")
