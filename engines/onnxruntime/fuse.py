"""The lowered graph in the operators ONNX Runtime's CPU kernels are written for; values stay what they were.

ONNX Runtime's own fusions find the INT8 multiplications of a Q/DQ graph, but not their biases, and they leave attention
in pieces whose scores travel through memory five times. `fuse` writes the operators of the com.microsoft domain
directly (github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md): it changes nothing it does not
recognise, and says what and why.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from engines.onnxruntime.fuse_attention import DOMAIN, LINEAR, fuse_attention
from engines.onnxruntime.unsigned import safe_weights


def fuse(lowered: Path, saturate: bool = False) -> tuple[Any, dict[str, Any]]:
    """Return a lowered file's ModelProto with its weights, and the ``fused`` object of build.json's settings.

    With `saturate` the weights of INT8 multiplications become u8, or such that fit, as a CPU needs whose s8 products
    saturate. The object counts multiplications that became one INT8 operator with scale and bias, attention blocks that
    became one floating-point operator, and weights by their coding; it names the quantizers inside those blocks, which
    do not run any more, and what looked like either and was left alone, with the reason.
    """
    import onnx
    import onnx_graphsurgeon as gs

    model = onnx.load(lowered)
    graph = gs.import_onnx(model)
    declined: list[tuple[str, str]] = []
    linears = _fuse_linears(graph, declined)
    attention, dropped = fuse_attention(graph, declined)
    graph.cleanup().toposort()
    # Last: the fusions above know weights in s8, and leave nodes behind that cleaning up takes away
    weights = safe_weights(graph) if saturate else {}
    if linears:
        graph.import_domains = [*(graph.import_domains or ()), onnx.helper.make_opsetid(DOMAIN, 1)]
    fused = gs.export_onnx(graph)
    fused.ir_version = model.ir_version  # graphsurgeon would write the newest
    del fused.graph.value_info[:]
    return fused, {
        "linears": linears,
        "attention": attention,
        "dropped_quantizers": dropped,
        **({"weights": weights} if weights else {}),
        "declined": [{"name": name, "reason": reason} for name, reason in declined],
    }


def _fuse_linears(graph: Any, declined: list[tuple[str, str]]) -> int:
    """``DQ(u8 codes) x DQ(s8 weight) -> MatMul -> Add bias`` becomes MatMulIntegerToFloat, in place; how many."""
    import onnx_graphsurgeon as gs

    done = 0
    for node in [node for node in graph.nodes if node.op == "MatMul"]:
        pair: list[Any] = [tensor.inputs[0] for tensor in node.inputs if tensor.inputs]
        if len(pair) != 2 or any(producer.op != "DequantizeLinear" for producer in pair):
            continue
        if not isinstance(pair[1].inputs[0], gs.Constant):
            continue  # an attention product, not a linear
        if reason := _obstacle(*pair):
            declined.append((node.name, reason))
            continue
        _replace_linear(graph, node, *pair)
        done += 1
    return done


def _obstacle(activation: Any, weight: Any) -> str | None:
    """Reason that two dequantized operands do not fit MatMulIntegerToFloat; None when they do."""
    zeros = [dq.inputs[2].values if len(dq.inputs) > 2 else None for dq in (activation, weight)]
    if zeros[0] is None or zeros[0].dtype != "uint8" or zeros[0].size != 1 or activation.inputs[1].values.size != 1:
        return "its first operand is not coded per tensor in u8"
    if zeros[1] is None or zeros[1].dtype != "int8" or zeros[1].any():
        return "its weight is not coded in symmetric s8"
    codes, scale = weight.inputs[0].values, weight.inputs[1].values
    columns = scale.ndim == 1 and weight.attrs.get("axis", 1) in (1, -1) and scale.size == codes.shape[-1]
    if codes.ndim != 2 or not (scale.size == 1 or columns):
        return "its weight is not [in, out] with one scale per output or one for all"
    return None


def _replace_linear(graph: Any, node: Any, activation: Any, weight: Any) -> None:
    """Put one MatMulIntegerToFloat in the place of `node`, and of the Add after it when that adds a bias."""
    import onnx_graphsurgeon as gs

    last, bias = node, None
    readers = node.outputs[0].outputs
    if len(readers) == 1 and readers[0].op == "Add" and node.outputs[0] not in graph.outputs:
        others = [tensor for tensor in readers[0].inputs if tensor is not node.outputs[0]]
        width = weight.inputs[0].values.shape[1]
        if len(others) == 1 and isinstance(others[0], gs.Constant) and others[0].values.shape == (width,):
            last, bias = readers[0], others[0]
    codes, scale, zero = activation.inputs[:3]
    inputs = [codes, weight.inputs[0], scale, weight.inputs[1], zero, gs.Variable.empty()]
    outputs = list(last.outputs)
    node.outputs.clear()
    last.outputs.clear()
    inputs += [] if bias is None else [bias]
    graph.nodes.append(gs.Node(LINEAR, node.name, {}, inputs, outputs, DOMAIN))
